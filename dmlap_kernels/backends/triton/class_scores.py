"""Negative pairs between two classes: their violations, and the nearest.

A tile is one of classes: the a-th row of each class of its rows meets the b-th column of each class
of its columns, for all a and b.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.triton.configurations import Launch
from dmlap_kernels.backends.triton.gathered import tile
from dmlap_kernels.backends.triton.slot_mining import own_column
from dmlap_kernels.backends.triton.tile import INTERPRETED, NEAR, ROWS_NAMED, SELF, itself_of

# Not measured.
LAUNCH = Launch(16, 16, 16, 4, 1) if INTERPRETED else Launch(16, 32, 32, 4, 2)


@triton.jit
def _runs(ends, group, groups):
    """First row of each class and how many rows it has."""
    begin = tl.load(ends + group - 1, mask=(group > 0) & (group < groups), other=0)
    end = tl.load(ends + group, mask=group < groups, other=0)
    return begin, end - begin


@triton.jit(do_not_specialize=["x_classes", "y_classes"])
def class_scores_kernel(
    X, Y, x_norms, y_norms, first, last, itself, thresholds, ends_x, ends_y, sums, smallest,
    x_classes, y_classes, width,
    DISTANCE: tl.constexpr, PRECISION: tl.constexpr, NEAR: tl.constexpr, ITSELF: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """sums and smallest (x_classes, y_classes). Grid: tiles of classes."""
    row_class = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column_class = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    row_begin, row_count = _runs(ends_x, row_class, x_classes)
    column_begin, column_count = _runs(ends_y, column_class, y_classes)
    # The class is the same where its rows' run of columns starts where the columns' class does.
    start = tl.load(first + row_begin, mask=row_count > 0, other=0)
    stop = tl.load(last + row_begin, mask=row_count > 0, other=0)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    least = tl.full((ROWS, COLUMNS), float("inf"), tl.float32)
    for a in range(0, tl.max(row_count, 0)):
        row_in = a < row_count
        row = row_begin + a
        bound = tl.load(thresholds + row, mask=row_in, other=0.0)
        if ITSELF == ROWS_NAMED:
            own = own_column(itself, row, row_in, ITSELF)
        for b in range(0, tl.max(column_count, 0)):
            column_in = b < column_count
            d = tile(
                X, x_norms, row, row_in, Y, y_norms, column_begin + b, column_in, width,
                ITSELF == SELF, DISTANCE, PRECISION, NEAR, CHUNK,
            )  # fmt: skip
            there = row_in[:, None] & column_in[None, :]
            if ITSELF == ROWS_NAMED:
                there &= own[:, None] != (column_begin + b)[None, :]
            violation = bound[:, None] - d
            total += tl.where(there & (violation > 0), violation, 0.0)
            least = tl.where(there & (d < least), d, least)
    same = (start[:, None] == column_begin[None, :]) & (stop > start)[:, None]
    to = row_class[:, None] * y_classes + column_class[None, :]
    mask = (row_class < x_classes)[:, None] & (column_class < y_classes)[None, :]
    tl.store(sums + to, tl.where(same, 0.0, total), mask=mask)
    tl.store(smallest + to, tl.where(same, float("inf"), least), mask=mask)


def class_scores(
    sides: Sides, thresholds: Tensor, ends_x: Tensor, ends_y: Tensor
) -> tuple[Tensor, Tensor]:
    """`Sweeps.class_scores`."""
    shape = len(ends_x), len(ends_y)
    sums, smallest = torch.empty(2, *shape, dtype=torch.float32, device=sides.x.device)
    itself, named = itself_of(sides)
    if 0 not in shape:
        grid = triton.cdiv(shape[0], LAUNCH.BM), triton.cdiv(shape[1], LAUNCH.BN)
        class_scores_kernel[grid](
            sides.x, sides.y, sides.x_norms, sides.y_norms, sides.first, sides.last, itself,
            thresholds.contiguous(), ends_x, ends_y, sums, smallest, *shape, sides.x.shape[1],
            DISTANCE=sides.distance, PRECISION=sides.precision, NEAR=NEAR[sides.precision],
            ITSELF=named, ROWS=LAUNCH.BM, COLUMNS=LAUNCH.BN, CHUNK=LAUNCH.BK,
            **LAUNCH.options,
        )  # fmt: skip
    return sums, smallest
