"""Rows of one class: where they are in the order of labels."""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.row_kernels import group_weights
from dmlap_kernels.backends.triton.tile import ROWS_NAMED, SELF


@triton.jit
def _rank(labels, count, label, steps, equal: tl.constexpr):
    """How many of ``count`` ascending labels come before these; with ``equal`` also equal ones."""
    found = tl.zeros_like(label).to(tl.int32)
    for k in range(0, steps):
        probe = found + (1 << (steps - 1 - k))
        there = probe <= count
        other = tl.load(labels + tl.where(there, probe - 1, 0))
        before = other <= label if equal else other < label
        found = tl.where(there & before, probe, found)
    return found


@triton.jit(do_not_specialize=["count", "anchors", "steps"])
def runs_kernel(
    labels,  # (count,) ascending
    order,  # (count,) int64, which row each is
    places,  # (count,) int32, of each row its place in the order
    labels_x,  # (anchors,)
    begins,  # (anchors,) int32, where the class of each begins in the order
    ends,  # (anchors,) int32
    count,
    anchors,
    steps,  # bits of count
    BLOCK: tl.constexpr,
):
    """Grid: blocks of rows and anchors."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(order + at, mask=at < count, other=0)
    tl.store(places + row, at, mask=at < count)
    label = tl.load(labels_x + at, mask=at < anchors, other=0)
    tl.store(begins + at, _rank(labels, count, label, steps, False), mask=at < anchors)
    tl.store(ends + at, _rank(labels, count, label, steps, True), mask=at < anchors)


@triton.jit
def own_of(itself, rows, there, how: tl.constexpr):
    """Which reference is the anchor itself, -1 for none."""
    if how.itself == ROWS_NAMED:
        return tl.load(itself + rows, mask=there, other=-1).to(tl.int32)
    elif how.itself == SELF:
        return rows
    else:
        return rows * 0 - 1


@triton.jit
def weights_of(table, header, grad, stride, count, rows, there, reduction: tl.constexpr):
    """What the terms of anchors count with, where the table is a group alone."""
    found = group_weights(table, header, grad, stride, count, rows, there, 0, 1, reduction)
    return found[0]
