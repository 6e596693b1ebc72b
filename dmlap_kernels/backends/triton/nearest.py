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
from dmlap_kernels.backends.triton.configurations import REGISTERS
from dmlap_kernels.backends.triton.gathered import ordered, tile
from dmlap_kernels.backends.triton.tile import INTERPRETED, NEAR

# Neighbours that a program keeps on chip; beyond, blocks of distances are written, and sorted.
ON_CHIP = 128
# Rows and features of a tile, and warps, by how many neighbours are kept. Not measured.
LAUNCHES = {16: (32, 32, 4), 32: (32, 32, 4), 64: (16, 32, 4), 128: (16, 32, 4)}
_BLOCK_LAUNCH = (32, 64, 32, 4)
_INTERPRETED = (32, 32, 32, 4)
# Numbers of a block.
_BLOCK = 1 << 12 if INTERPRETED else 1 << 23

_NOTHING = tl.constexpr(2**63 - 1)


@triton.jit
def _keys(
    X, Y, x_norms, y_norms, row, row_in, at, columns, width,
    SELF: tl.constexpr, DISTANCE: tl.constexpr, PRECISION: tl.constexpr, NEAR: tl.constexpr,
    COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Numbers (ROWS, COLUMNS) of the columns from `at` on."""
    column = at + tl.arange(0, COLUMNS).to(tl.int64)
    column_in = column < columns
    d = tile(
        X, x_norms, row, row_in, Y, y_norms, column, column_in, width,
        SELF, DISTANCE, PRECISION, NEAR, CHUNK,
    )  # fmt: skip
    there = row_in[:, None] & column_in[None, :]
    if SELF:
        there = there & (row[:, None] != column[None, :])
    return tl.where(there, (ordered(d) << 32) | column[None, :], _NOTHING)


@triton.jit(do_not_specialize=["rows", "columns", "k"])
def nearest_on_chip(
    X, Y, x_norms, y_norms, found, rows, columns, width, k,
    SELF: tl.constexpr, DISTANCE: tl.constexpr, PRECISION: tl.constexpr, NEAR: tl.constexpr,
    KEPT: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Ascending numbers found (rows, k), k <= KEPT. Grid: blocks of rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_in = row < rows
    best = tl.full((ROWS, KEPT), _NOTHING, tl.int64)
    for at in range(0, columns, KEPT):
        keys = _keys(
            X, Y, x_norms, y_norms, row, row_in, at, columns, width,
            SELF, DISTANCE, PRECISION, NEAR, KEPT, CHUNK,
        )  # fmt: skip
        beaten = tl.min(keys, 1) < tl.max(best, 1)
        if tl.max(beaten.to(tl.int32), 0) > 0:
            # Of an ascending and a descending list the lesser of each place are the least of both.
            best = tl.sort(tl.minimum(best, tl.sort(keys, descending=True)))
    place = tl.arange(0, KEPT)
    mask = row_in[:, None] & (place < k)[None, :]
    tl.store(found + row[:, None] * k + place[None, :], best, mask=mask)


@triton.jit(do_not_specialize=["row_offset", "column_offset", "rows", "columns"])
def block_of_keys(
    X, Y, x_norms, y_norms, keys, row_offset, column_offset, rows, columns, width, pitch,
    SELF: tl.constexpr, DISTANCE: tl.constexpr, PRECISION: tl.constexpr, NEAR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Numbers of the rows and columns from the offsets on, up to the given ends, into keys
    (., pitch). Grid: blocks of rows, tiles of columns."""
    begin = tl.program_id(0).to(tl.int64) * ROWS
    row = begin + row_offset + tl.arange(0, ROWS)
    row_in = row < rows
    left = tl.program_id(1) * COLUMNS
    found = _keys(
        X, Y, x_norms, y_norms, row, row_in, column_offset + left, columns, width,
        SELF, DISTANCE, PRECISION, NEAR, COLUMNS, CHUNK,
    )  # fmt: skip
    place = left + tl.arange(0, COLUMNS)
    mask = row_in[:, None] & (column_offset + place < columns)[None, :]
    tl.store(keys + (row - row_offset)[:, None] * pitch + place[None, :], found, mask=mask)


def nearest(sides: Sides, k: int) -> tuple[Tensor, Tensor]:
    """`Sweeps.nearest`."""
    found = torch.empty(sides.anchors, k, dtype=torch.int64, device=sides.x.device)
    if sides.anchors:
        (_on_chip if k <= ON_CHIP else _by_blocks)(sides, k, found)
    return _distances(found >> 32), found & 0xFFFFFFFF


def _on_chip(sides: Sides, k: int, found: Tensor) -> None:
    kept = max(16, triton.next_power_of_2(k))
    rows, chunk, warps = LAUNCHES[kept]
    nearest_on_chip[(triton.cdiv(sides.anchors, rows),)](
        sides.x, sides.y, sides.x_norms, sides.y_norms, found,
        sides.anchors, sides.columns, sides.x.shape[1], k,
        **_options(sides), KEPT=kept, ROWS=rows, CHUNK=chunk, num_warps=warps, maxnreg=REGISTERS,
    )  # fmt: skip


def _by_blocks(sides: Sides, k: int, found: Tensor) -> None:
    """A block of numbers after the k least so far, again and again reduced to the k least."""
    rows, columns, chunk, warps = _INTERPRETED if INTERPRETED else _BLOCK_LAUNCH
    width = min(sides.columns, max(2 * k, 4 * columns))
    height = max(rows, _BLOCK // (k + width))
    device = sides.x.device
    for top in range(0, sides.anchors, height):
        bottom = min(top + height, sides.anchors)
        best = torch.empty(bottom - top, 0, dtype=torch.int64, device=device)
        for left in range(0, sides.columns, width):
            right = min(left + width, sides.columns)
            keys = torch.empty(bottom - top, right - left, dtype=torch.int64, device=device)
            grid = triton.cdiv(bottom - top, rows), triton.cdiv(right - left, columns)
            block_of_keys[grid](
                sides.x, sides.y, sides.x_norms, sides.y_norms, keys,
                top, left, bottom, right, sides.x.shape[1], right - left,
                **_options(sides), ROWS=rows, COLUMNS=columns, CHUNK=chunk,
                num_warps=warps, maxnreg=REGISTERS,
            )  # fmt: skip
            best = torch.cat((best, keys), 1)
            best = best.topk(min(k, best.shape[1]), dim=1, largest=False).values
        found[top:bottom] = best


def _options(sides: Sides) -> dict[str, object]:
    return {
        "SELF": sides.self_case,
        "DISTANCE": sides.distance,
        "PRECISION": sides.precision,
        "NEAR": NEAR[sides.precision],
    }


def _distances(order: Tensor) -> Tensor:
    """What `gathered.ordered` made these numbers of."""
    bits = order.int()
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)
