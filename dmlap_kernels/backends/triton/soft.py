"""Logarithms of sums of exponentials, and terms of positive pairs made of them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import Exponent, LogSums, PairTerms
from dmlap_kernels.backends.triton.configurations import launch_of, splits_of
from dmlap_kernels.backends.triton.forward import Policy, forward
from dmlap_kernels.backends.triton.policies import TERMS, Exponents, coefficient
from dmlap_kernels.backends.triton.tile import (
    Pairs,
    Tiling,
    columns_of,
    distances,
    row_block,
    rows_of,
    sides_of,
)


@triton.jit
def _empty(count: tl.constexpr):
    """Of positives and of negatives, largest exponent t and sum of e^(exponent - t); the sum of the
    positives' exponents."""
    nothing, zeros = tl.full((count,), float("-inf"), tl.float32), tl.zeros((count,), tl.float32)
    return nothing, zeros, nothing, zeros, zeros


@triton.jit
def merged_log_sum(top, total, other_top, other_total):
    new = tl.maximum(top, other_top)
    new_or_0 = tl.where(new > float("-inf"), new, 0.0)
    return new, total * tl.exp(top - new_or_0) + other_total * tl.exp(other_top - new_or_0)


@triton.jit
def _merge(state, other):
    top_p, total_p = merged_log_sum(state[0], state[1], other[0], other[1])
    top_n, total_n = merged_log_sum(state[2], state[3], other[2], other[3])
    return top_p, total_p, top_n, total_n, state[4] + other[4]


@triton.jit
def _exponentials(exponents, axis: tl.constexpr):
    """Those of -inf add nothing."""
    top = tl.max(exponents, axis)
    top_or_0 = tl.where(top > float("-inf"), top, 0.0)
    return top, tl.sum(tl.exp(exponents - tl.expand_dims(top_or_0, axis)), axis)


@triton.jit
def _visit(exponents, own, d, positive, negative, runs, axis: tl.constexpr):
    pe, ne = exponents.positive, exponents.negative
    e = tl.where(negative, exponents.slope(ne, d) * (d - ne[1]), float("-inf"))
    top_n, total_n = _exponentials(e, axis)
    top_p, total_p = tl.zeros_like(top_n) + float("-inf"), tl.zeros_like(top_n)
    exponent_sum = tl.zeros_like(top_n)
    if runs:
        e = exponents.slope(pe, d) * (d - pe[1])
        exponent_sum = tl.sum(tl.where(positive, e, 0.0), axis)
        top_p, total_p = _exponentials(tl.where(positive, e, float("-inf")), axis)
    return top_p, total_p, top_n, total_n, exponent_sum


@triton.jit
def _visit_mined(exponents, own, d, positive, negative, runs, axis: tl.constexpr):
    kept_positive = positive & (d > coefficient(own, 0))
    kept_negative = negative & (d < coefficient(own, 1))
    return _visit(exponents, own, d, kept_positive, kept_negative, runs, axis)


# Of all pairs, and of those within bounds.
PLAIN, MINED = Policy(_empty, _visit, _merge), Policy(_empty, _visit_mined, _merge)


def log_sums(
    sides: Sides,
    positive: Exponent,
    negative: Exponent,
    positive_above: Tensor | None = None,
    negative_below: Tensor | None = None,
    read: tuple[str, ...] = LogSums._fields,
) -> LogSums:
    policy, bounds, exponents = PLAIN, None, Exponents.of(positive, negative)
    if positive_above is not None and negative_below is not None:
        policy, bounds = MINED, torch.stack((positive_above, negative_below))
    partials = forward("log_sums", sides, policy, 5, bounds, exponents)
    pos_lse, neg_lse = (partials[:4:2] + partials[1:4:2].log()).logsumexp(1)
    return LogSums(pos_lse, neg_lse, partials[4].sum(0))


@triton.jit(do_not_specialize_on_alignment=["of_rows", "of_columns", "weight_of_columns"])
def pair_terms_kernel(
    pairs,
    of_rows,  # (rows,), neg_lse
    of_columns,  # (columns,) likewise; None for terms of one end
    weight_of_columns,  # (columns,), or None
    sums,  # (2, splits, rows): of terms, of their derivatives by neg_lse
    counts,  # (splits, rows)
    exponents,
    term: tl.constexpr,
    how: tl.constexpr,
):
    block = row_block(pairs, tl.program_id(0), how)
    rows, exponent = block.rows, exponents.positive
    exists = rows < rows_of(pairs)
    neg_lse = tl.load(of_rows + rows, mask=exists, other=0.0)[:, None]
    total = tl.zeros((how.BM,), dtype=tl.float32)
    slopes = tl.zeros((how.BM,), dtype=tl.float32)
    nonzero = tl.zeros((how.BM,), dtype=tl.int32)
    # The run is dealt out tile by tile: only positive pairs are visited.
    start = block.low + tl.program_id(1) * how.BN
    for c in range(start, block.high, tl.num_programs(1) * how.BN):
        columns = c + tl.arange(0, how.BN)
        d = distances(pairs, rows, columns, how)
        positive, _ = sides_of(pairs, block, columns, how)
        other = neg_lse
        if of_columns is not None:
            there = columns < columns_of(pairs)
            other = tl.load(of_columns + columns, mask=there, other=0.0)[None, :]
        e = exponents.slope(exponent, d) * (d - exponent[1])
        value, _, by_neg_lse = term(e, neg_lse, other)
        value = tl.where(positive, value, 0.0)
        by_neg_lse = tl.where(positive, by_neg_lse, 0.0)
        if weight_of_columns is not None:
            there = columns < columns_of(pairs)
            by_neg_lse *= tl.load(weight_of_columns + columns, mask=there, other=0.0)[None, :]
        total += tl.sum(value, axis=1)
        slopes += tl.sum(by_neg_lse, axis=1)
        nonzero += tl.sum((value > 0).to(tl.int32), axis=1)
    part = tl.num_programs(1).to(tl.int64) * rows_of(pairs)
    at = tl.program_id(1).to(tl.int64) * rows_of(pairs) + rows
    tl.store(sums + at, total, mask=exists)
    tl.store(sums + part + at, slopes, mask=exists)
    tl.store(counts + at, nonzero, mask=exists)


def pair_terms(
    sides: Sides,
    kind: str,
    exponent: Exponent,
    neg_lse: Tensor,
    neg_lse_of_columns: Tensor | None = None,
    weight_of_columns: Tensor | None = None,
    read: tuple[str, ...] = PairTerms._fields,
) -> PairTerms:
    launch = launch_of("pair_terms", sides)
    splits, _ = splits_of(sides, launch)
    sums = sides.x.new_empty((2, splits, sides.anchors))
    counts = torch.empty((splits, sides.anchors), dtype=torch.int32, device=sums.device)
    if sides.anchors:
        pair_terms_kernel[(triton.cdiv(sides.anchors, launch.BM), splits)](
            Pairs.of(sides),
            neg_lse,
            neg_lse_of_columns,
            weight_of_columns,
            sums,
            counts,
            Exponents.of(exponent, exponent),
            TERMS[kind],
            Tiling.of(sides, launch),
            **launch.options,
        )
    total, by_neg_lse = sums.sum(1)
    return PairTerms(total, counts.sum(0, dtype=torch.int32), by_neg_lse)
