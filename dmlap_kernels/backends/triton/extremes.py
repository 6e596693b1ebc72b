"""Farthest or nearest positive, and nearest negative of each anchor.

A distance and its column make one integer, distance first, so that the least of such keys is the
nearest pair, the lower column where distances are equal; farthest positives are the nearest by
minus the distance. An atomic minimum of integers gives the same in any order. In the self case a
tile serves its rows and its columns, and only tiles from the diagonal on are visited.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import Extremes
from dmlap_kernels.backends.triton.configurations import launch_of, splits_of
from dmlap_kernels.backends.triton.keys import distances_of, ordered
from dmlap_kernels.backends.triton.tile import (
    Pairs,
    Tiling,
    columns_of,
    distances,
    row_block,
    rows_of,
    sides_of,
)

_EMPTY = torch.iinfo(torch.int64).max


@triton.jit
def _keep_least(keys, index, count, d, other, pairs_of, axis: tl.constexpr):
    """Lowers keys (count,) at ``index`` to the least of d over the mask ``pairs_of`` along axis.

    ``other`` is the index, as (1, BN) or (BM, 1), of what lies along the axis.
    """
    d = tl.where(pairs_of, d, float("inf"))
    least = tl.min(d, axis=axis)
    at_least = pairs_of & (d == tl.expand_dims(least, axis))
    column = tl.min(tl.where(at_least, other, 2147483647), axis=axis)
    key = (ordered(least) << 32) | column.to(tl.int64)
    tl.atomic_min(keys + index, key, mask=(index < count) & (column < 2147483647), sem="relaxed")


@triton.jit
def _bounds(above, index, count):
    return tl.load(above + index, mask=index < count, other=float("inf"))


@triton.jit(do_not_specialize_on_alignment=["negative_keys", "negative_sums", "above"])
def extremes_kernel(
    pairs,
    positive_keys,  # (rows,)
    negative_keys,  # (rows,)
    positive_sums,  # (splits, rows)
    negative_sums,  # (splits, rows)
    above,  # (rows,): negatives at this distance or nearer are left out; or None
    span,
    sums: tl.constexpr,
    nearest: tl.constexpr,  # positives, in the place of the farthest ones
    how: tl.constexpr,
):
    block = row_block(pairs, tl.program_id(0), how)
    rows = block.rows
    start = tl.program_id(1) * span
    end = tl.minimum(start + span, columns_of(pairs))
    if how.self_case:
        start = tl.maximum(start, tl.program_id(0) * how.BM // how.BN * how.BN)
    positive_sum = tl.zeros((how.BM,), dtype=tl.float32)
    negative_sum = tl.zeros((how.BM,), dtype=tl.float32)
    for c in range(start, end, how.BN):
        columns = c + tl.arange(0, how.BN)
        d = distances(pairs, rows, columns, how)
        positive, negative = sides_of(pairs, block, columns, how)
        of_rows, of_columns = negative, negative
        if above is not None:
            of_rows = negative & (d > _bounds(above, rows, rows_of(pairs))[:, None])
            if how.self_case:
                of_columns = negative & (d > _bounds(above, columns, columns_of(pairs))[None, :])
        _keep_least(negative_keys, rows, rows_of(pairs), d, columns[None, :], of_rows, 1)
        if how.self_case:
            _keep_least(negative_keys, columns, columns_of(pairs), d, rows[:, None], of_columns, 0)
        runs = (c < block.high) & (c + how.BN > block.low)
        if runs:
            key = d if nearest else -d
            _keep_least(positive_keys, rows, rows_of(pairs), key, columns[None, :], positive, 1)
            if how.self_case:
                _keep_least(
                    positive_keys, columns, columns_of(pairs), key, rows[:, None], positive, 0
                )
        if sums:
            if how.self_case:
                later = rows[:, None] < columns[None, :]
                positive &= later
                negative &= later
            positive_sum += tl.sum(tl.where(positive, d, 0.0), axis=1)
            negative_sum += tl.sum(tl.where(negative, d, 0.0), axis=1)
    if sums:
        share = 2.0 if how.self_case else 1.0
        at = tl.program_id(1).to(tl.int64) * rows_of(pairs) + rows
        tl.store(positive_sums + at, share * positive_sum, mask=rows < rows_of(pairs))
        tl.store(negative_sums + at, share * negative_sum, mask=rows < rows_of(pairs))


def extremes(sides: Sides, sums: bool) -> Extremes:
    found = _extremes(sides, sums)
    return found._replace(positive=-found.positive)


def nearest_pairs(sides: Sides, negative_above: Tensor | None = None) -> Extremes:
    above = None if negative_above is None else negative_above.contiguous()
    return _extremes(sides, False, above, nearest=True)


def _extremes(
    sides: Sides, sums: bool, above: Tensor | None = None, nearest: bool = False
) -> Extremes:
    """Positive distances are those of their keys."""
    launch = launch_of("extremes", sides)
    splits, span = splits_of(sides, launch)
    keys = torch.full((2, sides.anchors), _EMPTY, dtype=torch.int64, device=sides.x.device)
    parts = sides.x.new_empty((2, splits, sides.anchors if sums else 0))
    if sides.anchors:
        extremes_kernel[(triton.cdiv(sides.anchors, launch.BM), splits)](
            Pairs.of(sides),
            *keys,
            *parts,
            above,
            span,
            sums,
            nearest,
            Tiling.of(sides, launch),
            **launch.options,
        )
    (positive, negative), (p, n) = _decoded(keys)
    found = Extremes(positive, p, negative, n, None, None)
    return found._replace(positive_sum=parts[0], negative_sum=parts[1]) if sums else found


def _decoded(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Distances and columns; inf and -1 for empty keys."""
    none = keys == _EMPTY
    d = torch.where(none, torch.inf, distances_of(keys >> 32))
    return d, torch.where(none, -1, (keys & 0x7FFFFFFF).int())
