"""Policies of losses over pairs: from a block of distances to terms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.chunked.blocks import Block, References
from dmlap_kernels.backends.chunked.terms import (
    Group,
    Terms,
    anchor_terms,
    listed_terms,
    log_sum_exp,
    matrix_terms,
    softplus,
)

# Numbers, or tensors () where the caller gave them so.
Params = tuple[Any, ...]


def contrastive(params: Params, block: Block) -> Iterator[Terms]:
    pos_margin, neg_margin, squared = params
    sides = (
        ((block.d - pos_margin).relu(), block.positive),
        ((neg_margin - block.d).relu(), block.negative),
    )
    terms = matrix_terms(*sides)
    if squared:
        totals = [torch.where(pairs, hinge.square(), 0).sum(1) for hinge, pairs in sides]
        groups = zip(terms.groups, totals, strict=True)
        terms = terms._replace(groups=tuple(g._replace(total=total) for g, total in groups))
    yield terms


def margin(params: Params, block: Block) -> Iterator[Terms]:
    (width,) = params
    assert block.anchor_params is not None
    beta = block.anchor_params[:, None]
    positives, negatives = block.positive.sum(1), block.negative.sum(1)
    triplets = positives * negatives
    sides = matrix_terms(
        ((width + block.d - beta).relu(), block.positive & (triplets > 0)[:, None]),
        ((width - block.d + beta).relu(), block.negative & (triplets > 0)[:, None]),
    )
    pull, push = sides.groups
    group = Group(
        negatives * pull.total + positives * push.total,
        triplets,
        negatives * pull.nonzero + positives * push.nonzero,
    )
    yield sides._replace(groups=(group,))


def multi_similarity(params: Params, block: Block) -> Iterator[Terms]:
    alpha, beta, threshold, mined, epsilon = params
    positive, negative = block.positive, block.negative
    if mined:
        d = block.d.detach()
        nearest = d.masked_fill(~negative, torch.inf).amin(1, keepdim=True)
        farthest = d.masked_fill(~positive, -torch.inf).amax(1, keepdim=True)
        positive, negative = positive & (d + epsilon > nearest), negative & (d - epsilon < farthest)
    pull = softplus(log_sum_exp(alpha * (block.d - threshold), positive)) / alpha
    push = softplus(log_sum_exp(beta * (threshold - block.d), negative)) / beta
    yield anchor_terms((pull + push, _every(pull)))


def lifted_structure(params: Params, block: Block) -> Iterator[Terms]:
    pos_margin, neg_margin = params
    pull = _or_zero(log_sum_exp(block.d - pos_margin, block.positive))
    push = _or_zero(log_sum_exp(neg_margin - block.d, block.negative))
    yield anchor_terms(((pull + push).relu(), _every(pull)))


def lifted_structure_original(params: Params, block: Block) -> Iterator[Terms]:
    """`of_refs` are the `log_sums_of_negatives` of the references."""
    pos_margin, neg_margin = params
    assert block.of_refs is not None
    own = log_sum_exp(neg_margin - block.d, block.negative)[:, None]
    # Where neither row has negatives the logarithm is -inf and the term 0.
    neither = (own == -torch.inf) & (block.of_refs == -torch.inf)
    push = torch.logaddexp(torch.where(neither, 0, own), block.of_refs)
    hinge = (push + block.d - pos_margin).relu().masked_fill(neither, 0)
    yield matrix_terms((hinge.square() / 2, block.positive))


def log_sums_of_negatives(params: Params, block: Block) -> Tensor:
    """log of the sum (N,) of e^(neg_margin - d) over the anchors that differ in label."""
    _, neg_margin = params
    return log_sum_exp(neg_margin - block.d, block.negative, dim=0)


def nt_xent(params: Params, block: Block) -> Iterator[Terms]:
    (temperature,) = params
    yield _each_positive(block.d / temperature, block.positive, block.negative)


def n_pairs(params: Params, block: Block) -> Iterator[Terms]:
    if not block.self_case:
        yield _each_positive(block.d, block.positive, block.negative)
        return
    first, second = _first_two(block.refs)
    anchor = torch.zeros_like(first).scatter(0, block.refs.order, first)[block.anchors]
    chosen = anchor[:, None] & second
    yield _each_positive(block.d, block.positive & chosen, block.negative & chosen)


def _first_two(refs: References) -> tuple[Tensor, Tensor]:
    """Of each class of two rows or more, the first row and the second one: masks (N,)."""
    classes = refs.classes
    end = classes.new_full((1,), -1)
    before, after = torch.cat((end, classes[:-1])), torch.cat((classes[1:], end))
    first = (classes != before) & (classes == after)
    return first, torch.cat((first.new_zeros(1), first[:-1]))


def _each_positive(d: Tensor, positive: Tensor, negative: Tensor) -> Terms:
    """log(1 + sum_N e^(d_ip - d_in)) of each positive pair."""
    return matrix_terms((softplus(d + log_sum_exp(-d, negative)[:, None]), positive))


def sup_con(params: Params, block: Block) -> Iterator[Terms]:
    (temperature,) = params
    d = block.d / temperature
    whole = log_sum_exp(-d, block.positive | block.negative)[:, None]
    terms = torch.where(block.positive, whole + d, 0).sum(1)
    yield anchor_terms((terms / block.positive.sum(1).clamp(min=1), _every(terms)))


def angular(params: Params, block: Block) -> Iterator[Terms]:
    (alpha,) = params
    t = (alpha.deg2rad().tan() if isinstance(alpha, Tensor) else math.tan(math.radians(alpha))) ** 2
    for rows, columns in block.positive_pairs(block.d.shape[1]):
        with_anchor, with_positive = 1 - block.lines(rows), 1 - block.from_refs(columns)
        between = 1 - block.entries(rows, columns)
        exponents = 4 * t * (with_anchor + with_positive) - 2 * (1 + t) * between[:, None]
        term = softplus(log_sum_exp(exponents, block.negative[rows]))
        yield listed_terms(len(block.d), rows, term)


def circle(params: Params, block: Block) -> Iterator[Terms]:
    m, gamma = params
    s = 1 - block.d
    with torch.no_grad():
        pulled, pushed = (1 + m - s).relu(), (s + m).relu()
    pull = -gamma * pulled * (s - (1 - m))
    push = gamma * pushed * (s - m)
    # Where either is empty the sum is -inf and the term 0.
    both = log_sum_exp(pull, block.positive) + log_sum_exp(push, block.negative)
    yield anchor_terms((softplus(both), _every(both)))


def _every(term: Tensor) -> Tensor:
    return torch.ones_like(term, dtype=torch.bool)


def _or_zero(log_sum: Tensor) -> Tensor:
    """The logarithm of an empty sum counted as 0."""
    return torch.where(log_sum > -torch.inf, log_sum, 0)
