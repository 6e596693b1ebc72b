"""Where the rows of a label lie among sorted ones."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _bound(ascending, count, labels, beyond: tl.constexpr):
    """How many of the labels (count,) come before each of ``labels``, or before the first one
    ``beyond`` it."""
    low = tl.zeros(labels.shape, tl.int32)
    length = count
    while length > 0:
        half = length // 2
        at = low + half
        # What lies beyond the last one is beyond every label.
        found = tl.load(ascending + at, mask=at < count, other=0)
        before = found <= labels if beyond else found < labels
        low = tl.where(before & (at < count), at + 1, low)
        length = half
    return low


@triton.jit
def _bounds(labels, ascending, begins, ends, block, rows, count, BLOCK: tl.constexpr):
    row = block * BLOCK + tl.arange(0, BLOCK)
    label = tl.load(labels + row, mask=row < rows, other=0)
    tl.store(begins + row, _bound(ascending, count, label, False), mask=row < rows)
    tl.store(ends + row, _bound(ascending, count, label, True), mask=row < rows)


@triton.jit(do_not_specialize=["anchors", "columns", "blocks"])
def bounds_kernel(
    labels_x,  # (anchors,)
    labels_y,  # (columns,)
    sorted_x,  # the same, ascending
    sorted_y,
    x_begins,  # (anchors,) int32, where the references of an anchor's label begin among the sorted
    x_ends,  # and end
    y_begins,  # (columns,) int32, the same of anchors
    y_ends,
    anchors,
    columns,
    blocks,  # of anchors
    BLOCK: tl.constexpr,
):
    """Grid: blocks of anchors, and of references if these are asked for."""
    number = tl.program_id(0)
    if number < blocks:
        _bounds(labels_x, sorted_y, x_begins, x_ends, number, anchors, columns, BLOCK)
    else:
        _bounds(labels_y, sorted_x, y_begins, y_ends, number - blocks, columns, anchors, BLOCK)
