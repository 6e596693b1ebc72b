"""Policies of losses over mined triplets: from a block of distances to terms."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dmlap_kernels.backends.chunked.blocks import Block
from dmlap_kernels.backends.chunked.pairs import Params
from dmlap_kernels.backends.chunked.terms import Terms, anchor_terms, listed_terms, softplus


def hard(params: Params, block: Block) -> Iterator[Terms]:
    margin, smooth, swap = params
    d, positive, negative = block.d, block.positive, block.negative
    p = d.masked_fill(~positive, -torch.inf).argmax(1)
    n = d.masked_fill(~negative, torch.inf).argmin(1)
    d_ap = d.gather(1, p[:, None]).squeeze(1)
    d_an = d.gather(1, n[:, None]).squeeze(1)
    if swap:
        d_an = block.nearer(torch.arange(len(d), device=d.device), p, n)
    excess = d_ap - d_an + margin
    hinge = excess.relu()
    triplet = positive.any(1) & negative.any(1)
    yield anchor_terms((softplus(excess) if smooth else hinge, triplet), hinge=hinge)


def semihard(params: Params, block: Block) -> Iterator[Terms]:
    d = block.d.detach()
    candidates = d.masked_fill(~block.negative, torch.inf)
    ascending, column = candidates.sort(dim=1, stable=True)
    position = torch.searchsorted(ascending, d.contiguous(), right=True)
    inside = block.negative.sum(1, keepdim=True)
    outside = column.gather(1, position.clamp(max=d.shape[1] - 1))
    farthest = d.masked_fill(~block.negative, -torch.inf).argmax(1, keepdim=True)
    yield from _one_negative(
        params, block, torch.where(position < inside, outside, farthest), inside > 0
    )


def distance_weighted(params: Params, block: Block) -> Iterator[Terms]:
    *params3, cutoff, nonzero_loss_cutoff, seed = params
    with torch.no_grad():
        weights = _weights(block, cutoff, nonzero_loss_cutoff)
        running = weights.cumsum(1)
        total = running[:, -1:].contiguous()
        rank = block.positive.cumsum(1) - 1
        u = uniform01(seed, block.anchors[:, None], rank)
        drawn = torch.searchsorted(running, u * total, right=True)
        # Rounding may make u * total the total itself, which no running sum exceeds.
        drawn = torch.minimum(drawn, torch.searchsorted(running, total))
    yield from _one_negative(tuple(params3), block, drawn, total > 0)


def every(params: Params, block: Block) -> Iterator[Terms]:
    margin, smooth, swap = params
    for rows, columns in block.positive_pairs(block.d.shape[1]):
        d_an = block.lines(rows)
        if swap:
            d_an = torch.minimum(d_an, block.from_refs(columns))
        excess = block.entries(rows, columns)[:, None] - d_an + margin
        hinge = excess.relu()
        yield listed_terms(
            len(block.d),
            rows,
            softplus(excess) if smooth else hinge,
            exists=block.negative[rows],
            hinge=hinge,
        )


def _one_negative(
    params: Params, block: Block, negative: Tensor, exists: Tensor
) -> Iterator[Terms]:
    """Triplets of every positive pair with the negative (b, N) of its place, of anchors (b, 1)."""
    margin, smooth, swap = params
    features = block.refs.rows.shape[1]
    for rows, columns in block.positive_pairs(features if swap else 1):
        n = negative[rows, columns]
        d_an = block.entries(rows, n)
        if swap:
            d_an = block.nearer(rows, columns, n)
        excess = block.entries(rows, columns) - d_an + margin
        hinge = excess.relu()
        yield listed_terms(
            len(block.d),
            rows,
            softplus(excess) if smooth else hinge,
            exists=exists[rows, 0],
            hinge=hinge,
        )


def _weights(block: Block, cutoff: float, nonzero_loss_cutoff: float) -> Tensor:
    """Weights (b, N) in float64 of the negatives in a draw: one over the density of distances.

    Divided by the largest of each anchor, so that it does not vanish in many dimensions.
    """
    d = block.d.detach().double()
    d = {"euclidean": d, "sqeuclidean": d.sqrt(), "cosine": (2 * d).clamp(min=0).sqrt()}[
        block.distance
    ]
    features = block.refs.rows.shape[1]
    c = d.clamp(min=cutoff)
    log_weight = (2 - features) * c.log() - (features - 3) / 2 * (1 - c.square() / 4).log()
    possible = block.negative & log_weight.isfinite() & (d < nonzero_loss_cutoff)
    log_weight = log_weight.masked_fill(~possible, -torch.inf)
    top = log_weight.amax(1, keepdim=True)
    return (log_weight - torch.where(top > -torch.inf, top, 0)).exp()


def uniform01(seed: float | Tensor, anchor: Tensor, rank: Tensor) -> Tensor:
    """Counter-based random numbers in [0, 1), float64: the same for equal arguments everywhere."""
    if isinstance(seed, Tensor):
        z = seed.to(anchor.device, torch.int64)
    else:
        z = torch.full((), int(seed), dtype=torch.int64, device=anchor.device)
    for counter in (None, anchor, rank):
        z = _splitmix64(z if counter is None else z ^ counter)
    return _shifted(z, 11).double() * 2.0**-53


def _splitmix64(z: Tensor) -> Tensor:
    """The finaliser of splitmix64 on unsigned 64-bit numbers, held as int64 that wrap around."""
    z = z + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
