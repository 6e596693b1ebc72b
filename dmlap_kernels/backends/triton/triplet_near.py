"""What near pairs of triplets add to a gradient: differences of rows, weighted, as `panel_near` has
it of pairs whose coefficients follow from their anchors."""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.coefficients import minus_differences
from dmlap_kernels.backends.triton.panel_kernels import row_stride
from dmlap_kernels.backends.triton.tile import Pairs, columns_of, rows_of


@triton.jit
def _some(marks, count, splits, BLOCK: tl.constexpr):
    """Whether a panel has any near pairs."""
    found = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, splits * count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        found = tl.maximum(found, tl.load(marks + at, mask=at < splits * count, other=0))
    return tl.max(found, 0) > 0


@triton.jit
def _at_rows(near, marks, pairs, top, count, rows, total, span, splits, feature, how: tl.constexpr):
    """``total`` (BM, BD) less what they add at anchors, and 1 if there are any."""
    columns, found = columns_of(pairs), 0
    local = rows - top
    row_in = (local >= 0) & (local < count)
    at = near + local.to(tl.int64)[:, None] * row_stride(columns)
    for split in range(0, splits):
        if tl.max(tl.load(marks + split * count + local, mask=row_in, other=0), 0) > 0:
            found = 1
            for c in range(split * span, tl.minimum((split + 1) * span, columns), how.BN):
                column = c + tl.arange(0, how.BN)
                mask = row_in[:, None] & (column < columns)[None, :]
                v = tl.load(at + column[None, :], mask=mask, other=0.0)
                total = minus_differences(pairs, rows, column, v, feature, total, how)
    return total, found


@triton.jit
def _at_columns(
    near, marks, pairs, top, count, columns, column_in, total, split, feature, how: tl.constexpr
):
    """The same at references, which here are the rows of ``pairs``."""
    found = 0
    for start in range(0, count, how.BN):
        local = start + tl.arange(0, how.BN)
        local_in = local < count
        if tl.max(tl.load(marks + split * count + local, mask=local_in, other=0), 0) > 0:
            at = near + local.to(tl.int64)[None, :] * row_stride(rows_of(pairs)) + columns[:, None]
            v = tl.load(at, mask=column_in[:, None] & local_in[None, :], other=0.0)
            if tl.max(tl.max(tl.abs(v), 1), 0) > 0:
                found = 1
                total = minus_differences(pairs, columns, top + local, v, feature, total, how)
    return total, found


@triton.jit(
    do_not_specialize=["adds", "top", "anchors", "columns", "span", "splits", "blocks", "height"]
)
def near_triplets_kernel(
    near,  # panel of coefficients, 0 but for near pairs
    marks,  # (splits, rows of the panel), which rows have any
    x, y,  # packed rows
    x_near, y_near,  # (anchors, features) and (columns, features): what is added
    x_marks, y_marks,  # (chunks, blocks): whether it is
    adds,  # whether other panels came before
    top, anchors, columns, features, span, splits,
    blocks,  # of anchors in the panel; 0 where their gradient is not wanted, or is that at columns
    height, how: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of anchors, and blocks of references; chunks of features. Of a batch with itself
    references are anchors as well."""
    number = tl.program_id(0)
    feature = tl.program_id(1) * how.BD + tl.arange(0, how.BD)
    inside = (feature < features)[None, :]
    count = tl.minimum(anchors - top, height)
    total = tl.zeros((how.BM, how.BD), tl.float32)
    found = 0
    some = _some(marks, count, splits, 1024)
    if number < blocks:
        rows = top + number * how.BM + tl.arange(0, how.BM)
        if some:
            pairs = Pairs(x, y, x, y, x, x, x, anchors * 16, columns * 16, features)
            total, found = _at_rows(
                near, marks, pairs, top, count, rows, total, span, splits, feature, how
            )
        mark = top // how.BM + number + tl.program_id(1) * tl.cdiv(anchors, how.BM)
        tl.store(x_marks + mark, found)
        if found > 0:
            to = x_near + rows.to(tl.int64)[:, None] * features + feature[None, :]
            tl.store(to, -total, mask=(rows < top + count)[:, None] & inside)
    else:
        number -= blocks
        rows = number * how.BM + tl.arange(0, how.BM)
        row_in = rows < columns
        if some:
            pairs = Pairs(y, x, y, x, x, x, x, columns * 16, anchors * 16, features)
            total, found = _at_columns(
                near, marks, pairs, top, count, rows, row_in, total, number * how.BM // span,
                feature, how,
            )  # fmt: skip
            if how.self_case:
                pairs = Pairs(y, y, y, y, x, x, x, columns * 16, columns * 16, features)
                total, more = _at_rows(
                    near, marks, pairs, top, count, rows, total, span, splits, feature, how
                )
                found = tl.maximum(found, more)
        mark = number + tl.program_id(1) * tl.cdiv(columns, how.BM)
        before = 0
        if adds > 0:
            before = tl.load(y_marks + mark)
        if found > 0:
            to = y_near + rows.to(tl.int64)[:, None] * features + feature[None, :]
            there = row_in[:, None] & inside
            if before > 0:
                total -= tl.load(to, mask=there, other=0.0)
            tl.store(to, -total, mask=there)
        tl.store(y_marks + mark, tl.maximum(found, before))
