"""Sums of hinges on single pairs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import HingeSums
from dmlap_kernels.backends.triton.configurations import launch_of, splits_of
from dmlap_kernels.backends.triton.tile import Pairs, Tiling, distances, row_block, sides_of


@triton.jit
def hinge_sums_kernel(
    pairs,
    positive_bound,  # (rows,)
    negative_bound,  # (rows,)
    sums,  # (4, splits, rows): of positives, of negatives, and of their plain hinges
    counts,  # (2, splits, rows)
    span,
    squared: tl.constexpr,
    how: tl.constexpr,
):
    rows, first, last, low, high = row_block(pairs, tl.program_id(0), how)
    exists = rows < pairs.rows
    near = tl.load(positive_bound + rows, mask=exists, other=0.0)
    far = tl.load(negative_bound + rows, mask=exists, other=0.0)
    pull = tl.zeros((how.BM,), dtype=tl.float32)
    push = tl.zeros((how.BM,), dtype=tl.float32)
    pull_squared = tl.zeros((how.BM,), dtype=tl.float32)
    push_squared = tl.zeros((how.BM,), dtype=tl.float32)
    pulled = tl.zeros((how.BM,), dtype=tl.int32)
    pushed = tl.zeros((how.BM,), dtype=tl.int32)
    start = tl.program_id(1) * span
    for c in range(start, tl.minimum(start + span, pairs.columns), how.BN):
        columns = c + tl.arange(0, how.BN)
        d = distances(pairs, rows, columns, how)
        positive, negative = sides_of(pairs, rows, columns, first, last, how)
        hinge = tl.where(negative, tl.maximum(far[:, None] - d, 0.0), 0.0)
        push += tl.sum(hinge, axis=1)
        pushed += tl.sum((hinge > 0).to(tl.int32), axis=1)
        if squared:
            push_squared += tl.sum(hinge * hinge, axis=1)
        runs = (c < high) & (c + how.BN > low)
        if runs:
            hinge = tl.where(positive, tl.maximum(d - near[:, None], 0.0), 0.0)
            pull += tl.sum(hinge, axis=1)
            pulled += tl.sum((hinge > 0).to(tl.int32), axis=1)
            if squared:
                pull_squared += tl.sum(hinge * hinge, axis=1)
    part = tl.num_programs(1).to(tl.int64) * pairs.rows
    at = tl.program_id(1).to(tl.int64) * pairs.rows + rows
    tl.store(sums + at, pull_squared if squared else pull, mask=exists)
    tl.store(sums + part + at, push_squared if squared else push, mask=exists)
    tl.store(sums + 2 * part + at, pull, mask=exists)
    tl.store(sums + 3 * part + at, push, mask=exists)
    tl.store(counts + at, pulled, mask=exists)
    tl.store(counts + part + at, pushed, mask=exists)


def hinge_sums(
    sides: Sides, positive_bound: Tensor, negative_bound: Tensor, squared: bool
) -> HingeSums:
    launch = launch_of("hinge_sums")
    splits, span = splits_of(sides, launch)
    sums = sides.x.new_empty((4, splits, sides.anchors))
    counts = torch.empty((2, splits, sides.anchors), dtype=torch.int32, device=sums.device)
    if sides.anchors:
        hinge_sums_kernel[(triton.cdiv(sides.anchors, launch.BM), splits)](
            Pairs.of(sides),
            positive_bound,
            negative_bound,
            sums,
            counts,
            span,
            squared,
            Tiling.of(sides, launch.BM, launch.BN, launch.BK),
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
    return HingeSums(*sums.sum(1), *counts.sum(1, dtype=torch.int32))
