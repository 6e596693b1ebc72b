"""Policies of losses between embeddings and proxies: from a block of distances to terms."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dmlap_kernels.backends.chunked.blocks import Block
from dmlap_kernels.backends.chunked.pairs import Params
from dmlap_kernels.backends.chunked.terms import Terms, anchor_terms, log_sum_exp, softplus


def proxy_nca(params: Params, block: Block) -> Iterator[Terms]:
    (scale,) = params
    counted = block.positive.any(1)
    own = torch.where(counted, log_sum_exp(-scale * block.d, block.positive), 0)
    others = log_sum_exp(-scale * block.d, block.negative)
    yield anchor_terms((softplus(others - own), counted))


def proxy_anchor(params: Params, block: Block) -> Iterator[Terms]:
    alpha, near, far = params
    pull = softplus(log_sum_exp(alpha * (block.d - near), block.positive))
    push = softplus(log_sum_exp(alpha * (far - block.d), block.negative))
    every = torch.ones_like(block.positive[:, 0])
    yield anchor_terms((pull, block.positive.any(1)), (push, every))


def soft_triple(params: Params, block: Block) -> Iterator[Terms]:
    """Classes are columns of (b, N), of which the first are used.

    The similarity is minus the distance: a constant makes no difference to a softmax.
    """
    la, gamma, margin = params
    s = -block.d
    pairs = block.positive | block.negative
    column = block.refs.classes.expand_as(s)
    scaled = (s / gamma).masked_fill(~pairs, -torch.inf)
    top = torch.full_like(s, -torch.inf).scatter_reduce(1, column, scaled.detach(), "amax")
    top = torch.where(top > -torch.inf, top, 0).gather(1, column)
    weight = (scaled - top).exp()
    total = torch.zeros_like(s).scatter_add(1, column, weight)
    weighted = torch.zeros_like(s).scatter_add(1, column, weight * s)
    present = total > 0
    similarity = weighted / torch.where(present, total, 1)
    own = torch.zeros_like(s).scatter_add(1, column, block.positive.to(s.dtype)) > 0
    logits = la * (similarity - margin * own.to(s.dtype))  # a bool times a number is float32
    counted = block.positive.any(1)
    others = log_sum_exp(logits, present & ~own)
    mine = torch.where(own, logits, 0).sum(1)
    yield anchor_terms((softplus(others - mine), counted))
