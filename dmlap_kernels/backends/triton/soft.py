"""Logarithms of sums of exponentials, and terms of positive pairs made of them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import Exponent, LogSums, PairTerms
from dmlap_kernels.backends.triton.configurations import launch_of, splits_of
from dmlap_kernels.backends.triton.policies import TERMS, numbers_of, slope_of
from dmlap_kernels.backends.triton.tile import Pairs, Tiling, distances, row_block, sides_of


@triton.jit
def add_exponentials(top, total, exponents):
    """top (BM,) and total (BM,), whose log-sum is top + log(total), with exponents (BM, BN) added;
    those of -inf add nothing."""
    new = tl.maximum(top, tl.max(exponents, axis=1))
    new_or_0 = tl.where(new > float("-inf"), new, 0.0)
    added = tl.sum(tl.exp(exponents - new_or_0[:, None]), axis=1)
    return new, total * tl.exp(top - new_or_0) + added


@triton.jit
def log_sums_kernel(
    pairs,
    positive_above,  # (rows,), as the next read if mined
    negative_below,
    sums,  # (3, splits, rows): zp, zn, sum of exponents
    pe,
    ne,
    span,
    slope: tl.constexpr,
    mined: tl.constexpr,
    how: tl.constexpr,
):
    rows, first, last, low, high = row_block(pairs, tl.program_id(0), how)
    exists = rows < pairs.rows
    if mined:
        above = tl.load(positive_above + rows, mask=exists, other=0.0)
        below = tl.load(negative_below + rows, mask=exists, other=0.0)
    top_p = tl.full((how.BM,), float("-inf"), dtype=tl.float32)
    top_n = tl.full((how.BM,), float("-inf"), dtype=tl.float32)
    total_p = tl.zeros((how.BM,), dtype=tl.float32)
    total_n = tl.zeros((how.BM,), dtype=tl.float32)
    exponent_sum = tl.zeros((how.BM,), dtype=tl.float32)
    start = tl.program_id(1) * span
    for c in range(start, tl.minimum(start + span, pairs.columns), how.BN):
        columns = c + tl.arange(0, how.BN)
        d = distances(pairs, rows, columns, how)
        positive, negative = sides_of(pairs, rows, columns, first, last, how)
        if mined:
            positive &= d > above[:, None]
            negative &= d < below[:, None]
        e = tl.where(negative, slope(ne, d) * (d - ne[1]), float("-inf"))
        top_n, total_n = add_exponentials(top_n, total_n, e)
        runs = (c < high) & (c + how.BN > low)
        if runs:
            e = slope(pe, d) * (d - pe[1])
            exponent_sum += tl.sum(tl.where(positive, e, 0.0), axis=1)
            e = tl.where(positive, e, float("-inf"))
            top_p, total_p = add_exponentials(top_p, total_p, e)
    part = tl.num_programs(1).to(tl.int64) * pairs.rows
    at = tl.program_id(1).to(tl.int64) * pairs.rows + rows
    tl.store(sums + at, top_p + tl.log(total_p), mask=exists)
    tl.store(sums + part + at, top_n + tl.log(total_n), mask=exists)
    tl.store(sums + 2 * part + at, exponent_sum, mask=exists)


def log_sums(
    sides: Sides,
    positive: Exponent,
    negative: Exponent,
    positive_above: Tensor | None = None,
    negative_below: Tensor | None = None,
) -> LogSums:
    launch = launch_of("log_sums")
    splits, span = splits_of(sides, launch)
    sums = sides.x.new_empty((3, splits, sides.anchors))
    if sides.anchors:
        log_sums_kernel[(triton.cdiv(sides.anchors, launch.BM), splits)](
            Pairs.of(sides),
            positive_above,
            negative_below,
            sums,
            numbers_of(positive),
            numbers_of(negative),
            span,
            slope_of(positive, negative),
            positive_above is not None,
            Tiling.of(sides, launch.BM, launch.BN, launch.BK),
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
    zp, zn = sums[:2].logsumexp(1)
    return LogSums(zp, zn, sums[2].sum(0))


@triton.jit
def pair_terms_kernel(
    pairs,
    zn_of_rows,  # (rows,)
    zn_of_columns,  # (columns,), read for terms of both ends
    weight_of_columns,  # (columns,), read if weighted
    sums,  # (2, splits, rows): of terms, of their derivatives by zn
    counts,  # (splits, rows)
    exponent,
    slope: tl.constexpr,
    term: tl.constexpr,
    both_ends: tl.constexpr,
    weighted: tl.constexpr,
    how: tl.constexpr,
):
    rows, first, last, low, high = row_block(pairs, tl.program_id(0), how)
    exists = rows < pairs.rows
    zn = tl.load(zn_of_rows + rows, mask=exists, other=0.0)[:, None]
    total = tl.zeros((how.BM,), dtype=tl.float32)
    slopes = tl.zeros((how.BM,), dtype=tl.float32)
    nonzero = tl.zeros((how.BM,), dtype=tl.int32)
    # The run is dealt out tile by tile: only positive pairs are visited.
    start = low + tl.program_id(1) * how.BN
    for c in range(start, high, tl.num_programs(1) * how.BN):
        columns = c + tl.arange(0, how.BN)
        d = distances(pairs, rows, columns, how)
        positive, _ = sides_of(pairs, rows, columns, first, last, how)
        other = zn
        if both_ends:
            there = columns < pairs.columns
            other = tl.load(zn_of_columns + columns, mask=there, other=0.0)[None, :]
        value, _, by_zn = term(slope(exponent, d) * (d - exponent[1]), zn, other)
        value = tl.where(positive, value, 0.0)
        by_zn = tl.where(positive, by_zn, 0.0)
        if weighted:
            there = columns < pairs.columns
            by_zn *= tl.load(weight_of_columns + columns, mask=there, other=0.0)[None, :]
        total += tl.sum(value, axis=1)
        slopes += tl.sum(by_zn, axis=1)
        nonzero += tl.sum((value > 0).to(tl.int32), axis=1)
    part = tl.num_programs(1).to(tl.int64) * pairs.rows
    at = tl.program_id(1).to(tl.int64) * pairs.rows + rows
    tl.store(sums + at, total, mask=exists)
    tl.store(sums + part + at, slopes, mask=exists)
    tl.store(counts + at, nonzero, mask=exists)


def pair_terms(
    sides: Sides,
    kind: str,
    exponent: Exponent,
    zn: Tensor,
    zn_of_columns: Tensor | None = None,
    weight_of_columns: Tensor | None = None,
) -> PairTerms:
    launch = launch_of("pair_terms")
    splits, _ = splits_of(sides, launch)
    sums = sides.x.new_empty((2, splits, sides.anchors))
    counts = torch.empty((splits, sides.anchors), dtype=torch.int32, device=sums.device)
    if sides.anchors:
        pair_terms_kernel[(triton.cdiv(sides.anchors, launch.BM), splits)](
            Pairs.of(sides),
            zn,
            zn_of_columns,
            weight_of_columns,
            sums,
            counts,
            numbers_of(exponent),
            slope_of(exponent),
            TERMS[kind],
            zn_of_columns is not None,
            weight_of_columns is not None,
            Tiling.of(sides, launch.BM, launch.BN, launch.BK),
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
    total, by_zn = sums.sum(1)
    return PairTerms(total, counts.sum(0, dtype=torch.int32), by_zn)
