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
from dmlap_kernels.backends.triton.configurations import launch_of
from dmlap_kernels.backends.triton.tile import ROWS_NAMED, Pairs, Tiling, own_column, tile


@triton.jit
def _runs(ends, group, groups):
    """First row of each class and how many rows it has."""
    begin = tl.load(ends + group - 1, mask=(group > 0) & (group < groups), other=0)
    end = tl.load(ends + group, mask=group < groups, other=0)
    return begin, end - begin


@triton.jit(do_not_specialize=["x_classes", "y_classes"])
def class_scores_kernel(
    pairs,
    thresholds,  # (rows,)
    ends_x,  # (x_classes,)
    ends_y,  # (y_classes,)
    sums,  # (x_classes, y_classes)
    smallest,  # (x_classes, y_classes)
    x_classes,
    y_classes,
    how: tl.constexpr,
):
    """Grid: tiles of classes."""
    row_class = tl.program_id(0).to(tl.int64) * how.BM + tl.arange(0, how.BM)
    column_class = tl.program_id(1).to(tl.int64) * how.BN + tl.arange(0, how.BN)
    row_begin, row_count = _runs(ends_x, row_class, x_classes)
    column_begin, column_count = _runs(ends_y, column_class, y_classes)
    # The class is the same where its rows' run of columns starts where the columns' class does.
    start = tl.load(pairs.first + row_begin, mask=row_count > 0, other=0)
    stop = tl.load(pairs.last + row_begin, mask=row_count > 0, other=0)
    total = tl.zeros((how.BM, how.BN), tl.float32)
    least = tl.full((how.BM, how.BN), float("inf"), tl.float32)
    for a in range(0, tl.max(row_count, 0)):
        row_in = a < row_count
        row = row_begin + a
        bound = tl.load(thresholds + row, mask=row_in, other=0.0)
        if how.itself == ROWS_NAMED:
            own = own_column(pairs, row, row_in, how)
        for b in range(0, tl.max(column_count, 0)):
            column_in = b < column_count
            column = column_begin + b
            d, _ = tile(pairs, row, row_in, column, column_in, how.itself, how)
            there = row_in[:, None] & column_in[None, :]
            if how.itself == ROWS_NAMED:
                there &= own[:, None] != column[None, :]
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
    if 0 not in shape:
        launch = launch_of("class_scores", sides)
        class_scores_kernel[(triton.cdiv(shape[0], launch.BM), triton.cdiv(shape[1], launch.BN))](
            Pairs.of(sides),
            thresholds.contiguous(),
            ends_x,
            ends_y,
            sums,
            smallest,
            *shape,
            Tiling.of(sides, launch),
            **launch.options,
        )
    return sums, smallest
