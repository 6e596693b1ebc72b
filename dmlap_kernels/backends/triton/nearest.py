"""Exact nearest neighbours.

A neighbour is one int64 number: its distance, in the order of integers, above its column. Such
numbers are all different, so any sort gives the same neighbours, ties to the lower column.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.triton.configurations import NEIGHBOURS_ON_CHIP, block_of, launch_of
from dmlap_kernels.backends.triton.keys import distances_of, ordered
from dmlap_kernels.backends.triton.tile import (
    APART,
    Pairs,
    Tiling,
    apart,
    columns_of,
    rows_of,
    tile,
)

_NOTHING = tl.constexpr(2**63 - 1)


@triton.jit
def _keys(pairs, rows, row_in, columns, column_in, how: tl.constexpr):
    """Numbers (BM, BN) of a tile."""
    d, _ = tile(pairs, rows, row_in, columns, column_in, how.itself, how)
    there = row_in[:, None] & column_in[None, :]
    if how.itself != APART:
        there = there & apart(pairs, rows, row_in, columns, column_in, how.itself)
    return tl.where(there, (ordered(d) << 32) | columns[None, :], _NOTHING)


@triton.jit(do_not_specialize=["k"])
def nearest_on_chip(pairs, found, k, how: tl.constexpr):
    """Ascending numbers found (rows, k), k <= BN. Grid: blocks of rows."""
    rows = tl.program_id(0).to(tl.int64) * how.BM + tl.arange(0, how.BM)
    row_in = rows < rows_of(pairs)
    best = tl.full((how.BM, how.BN), _NOTHING, tl.int64)
    for c in range(0, columns_of(pairs), how.BN):
        columns = c + tl.arange(0, how.BN).to(tl.int64)
        keys = _keys(pairs, rows, row_in, columns, columns < columns_of(pairs), how)
        beaten = tl.min(keys, 1) < tl.max(best, 1)
        if tl.max(beaten.to(tl.int32), 0) > 0:
            # Of an ascending and a descending list the lesser of each place are the least of both.
            best = tl.sort(tl.minimum(best, tl.sort(keys, descending=True)))
    place = tl.arange(0, how.BN)
    mask = row_in[:, None] & (place < k)[None, :]
    tl.store(found + rows[:, None] * k + place[None, :], best, mask=mask)


@triton.jit(do_not_specialize=["top", "left", "bottom", "right"])
def block_of_keys(pairs, keys, top, left, bottom, right, pitch, how: tl.constexpr):
    """Numbers of the rows from top to bottom and the columns from left to right, into keys
    (., pitch). Grid: blocks of rows, tiles of columns."""
    rows = tl.program_id(0).to(tl.int64) * how.BM + top + tl.arange(0, how.BM)
    row_in = rows < bottom
    place = tl.program_id(1) * how.BN + tl.arange(0, how.BN)
    columns = left + place.to(tl.int64)
    column_in = columns < right
    found = _keys(pairs, rows, row_in, columns, column_in, how)
    mask = row_in[:, None] & column_in[None, :]
    tl.store(keys + (rows - top)[:, None] * pitch + place[None, :], found, mask=mask)


def nearest(sides: Sides, k: int) -> tuple[Tensor, Tensor]:
    """`Sweeps.nearest`."""
    found = torch.empty(sides.anchors, k, dtype=torch.int64, device=sides.x.device)
    if sides.anchors:
        (_on_chip if k <= NEIGHBOURS_ON_CHIP else _by_blocks)(sides, k, found)
    return distances_of(found >> 32), found & 0xFFFFFFFF


def _on_chip(sides: Sides, k: int, found: Tensor) -> None:
    launch = launch_of(f"nearest_{max(16, triton.next_power_of_2(k))}", sides)
    nearest_on_chip[(triton.cdiv(sides.anchors, launch.BM),)](
        Pairs.of(sides), found, k, Tiling.of(sides, launch), **launch.options
    )


def _by_blocks(sides: Sides, k: int, found: Tensor) -> None:
    """A block of numbers after the k least so far, again and again reduced to the k least."""
    launch = launch_of("nearest_blocks", sides)
    height, width = block_of(sides, k, launch)
    pairs, how = Pairs.of(sides), Tiling.of(sides, launch)
    for top in range(0, sides.anchors, height):
        bottom = min(top + height, sides.anchors)
        best = found.new_empty(bottom - top, 0)
        for left in range(0, sides.columns, width):
            right = min(left + width, sides.columns)
            keys = found.new_empty(bottom - top, right - left)
            grid = triton.cdiv(bottom - top, launch.BM), triton.cdiv(right - left, launch.BN)
            block_of_keys[grid](
                pairs, keys, top, left, bottom, right, right - left, how, **launch.options
            )
            best = torch.cat((best, keys), 1)
            best = best.topk(min(k, best.shape[1]), dim=1, largest=False).values
        found[top:bottom] = best
