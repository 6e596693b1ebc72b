"""What near pairs add to a gradient: their weighted rows would cancel in a product but for a few
digits, so that differences of rows are weighted, and added up. Such pairs are rare.

A program owns a block of anchors or of references, and some of their features. Where no near pair
was met it ends at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.coefficients import minus_differences
from dmlap_kernels.backends.triton.panel_kernels import pair_weights, values_of
from dmlap_kernels.backends.triton.panel_labels import row_stride, sides_by_label
from dmlap_kernels.backends.triton.policies import Exponents, KernelPairGradient
from dmlap_kernels.backends.triton.tile import (
    APART,
    COLUMNS_NAMED,
    ROWS_NAMED,
    Pairs,
    apart,
    columns_of,
    from_differences,
    norms_of,
    rows_of,
)


@triton.jit
def _near(pairs, w, rows, row_in, columns, column_in, how: tl.constexpr):
    """Distances (BM, BN), and the mask of the pairs that `weights_of_panel_kernel` left out: those
    whose weights ``w`` in the panel are 0, and which are as near as it takes, give or take the
    rounding of products."""
    q = from_differences(pairs, rows, row_in, columns, column_in, how)
    total = norms_of(pairs, rows, row_in, columns, column_in)
    near = (w == 0) & (q < 2.0 * how.recompute * total)
    if how.distance == "euclidean":
        q = tl.sqrt(q)
    return q, near & row_in[:, None] & column_in[None, :]


@triton.jit
def _sides(
    pairs, labels, bits, rows, row_in, columns, column_in, itself: tl.constexpr, how: tl.constexpr
):
    """Masks (BM, BN) of the pairs that exist, and of those positive for the anchor and for the
    reference: by ``labels`` (BM,) of the rows, or of a match by the bytes at ``bits`` (BM, BN)."""
    if how.matched:
        exists = row_in[:, None] & column_in[None, :]
        if itself != APART:
            exists &= apart(pairs, rows, row_in, columns, column_in, itself)
        found = tl.load(bits, mask=exists, other=0)
        return exists, (found & 1) != 0, (found & 2) != 0
    else:
        positive, negative = sides_by_label(
            pairs, labels, rows, row_in, columns, column_in, itself, how
        )
        return positive | negative, positive, positive


@triton.jit
def _at_rows(
    panel, pairs, ends, marks, number, local, rows, row_in, span, splits, feature, kind,
    how: tl.constexpr, formula: tl.constexpr, prefix: tl.constexpr, groups: tl.constexpr,
    reduction: tl.constexpr,
):  # fmt: skip
    """Less what near pairs add to the gradient (BM, BD) at a block of anchors, and 1 if there are
    any."""
    columns = columns_of(pairs)
    total = tl.zeros((how.BM, how.BD), dtype=tl.float32)
    near = 0
    labels = rows
    if not how.matched:
        labels = tl.load(pairs.first + rows, mask=row_in, other=0)
    own = values_of(ends, rows[:, None], row_in[:, None], formula, prefix, groups, reduction)
    at = panel + local.to(tl.int64)[:, None] * row_stride(columns)
    for split in range(0, splits):
        if tl.load(marks + number * how.BM // how.BK * splits + split) > 0:
            near = 1
            start = split * span
            for c in range(start, tl.minimum(start + span, columns), how.BN):
                column = c + tl.arange(0, how.BN)
                column_in = column < columns
                w = tl.load(at + column[None, :], row_in[:, None] & column_in[None, :], other=1.0)
                d, close = _near(pairs, w, rows, row_in, column, column_in, how)
                bits = pairs.first + local.to(tl.int64)[:, None] * row_stride(columns)
                exists, alike, back = _sides(
                    pairs, labels, bits + column[None, :], rows, row_in, column, column_in,
                    how.itself, how,
                )  # fmt: skip
                other = (own, column[None, :])
                if how.self_case:
                    index, mask = column[None, :], column_in[None, :]
                    values = values_of(ends, index, mask, formula, prefix, groups, reduction)
                    other = (values, index)
                within = exists & close & (d > 0)
                v = pair_weights(d, alike, back, within, (own, rows[:, None]), other, kind, how)
                total = minus_differences(pairs, rows, column, v, feature, total, how)
    return total, near


@triton.jit
def _at_columns(
    panel, pairs, ends, marks, split, top, count, columns, column_in, splits, feature, kind,
    how: tl.constexpr, formula: tl.constexpr, prefix: tl.constexpr, groups: tl.constexpr,
    reduction: tl.constexpr,
):  # fmt: skip
    """The same at a block of references, which here are the rows of ``pairs``."""
    total = tl.zeros((how.BM, how.BD), dtype=tl.float32)
    near = 0
    labels = tl.load(pairs.first + columns, mask=column_in, other=0)
    for r in range(0, count, how.BN):
        local = r + tl.arange(0, how.BN)
        rows, row_in = top + local, local < count
        # Of the blocks of anchors that this tile has parts of.
        mark = (local // how.BK).to(tl.int64) * splits + split
        if tl.max(tl.load(marks + mark, mask=row_in, other=0)) > 0:
            near = 1
            at = panel + local.to(tl.int64)[None, :] * row_stride(rows_of(pairs)) + columns[:, None]
            w = tl.load(at, mask=column_in[:, None] & row_in[None, :], other=1.0)
            d, close = _near(pairs, w, columns, column_in, rows, row_in, how)
            bits = pairs.last + local.to(tl.int64)[None, :] * row_stride(rows_of(pairs))
            exists, alike, back = _sides(
                pairs, labels, bits + columns[:, None], columns, column_in, rows, row_in,
                COLUMNS_NAMED if how.itself == ROWS_NAMED else how.itself, how,
            )  # fmt: skip
            index = rows[None, :]
            values = values_of(ends, index, row_in[None, :], formula, prefix, groups, reduction)
            within = exists & close & (d > 0)
            other = (values, columns[:, None])
            v = pair_weights(d, alike, back, within, (values, index), other, kind, how)
            total = minus_differences(pairs, columns, rows, v, feature, total, how)
    return total, near


@triton.jit(
    do_not_specialize=["stride", "top", "anchors", "columns", "span", "splits", "blocks", "height"]
)
def near_kernel(
    panel,
    x,
    y,
    x_norms,
    y_norms,
    labels_x,
    labels_y,
    itself,
    table,
    header,
    grad,
    anchor_params,
    marks,  # (blocks of how.BK rows of the panel, splits), whether there are near pairs
    x_near,  # (anchors, features) and (columns, features): what is added
    y_near,
    x_marks,  # (chunks, blocks): whether it is
    y_marks,
    stride,
    top,
    anchors,
    columns,
    features,
    span,
    splits,
    blocks,  # of anchors in the panel, 0 where their gradient is not wanted
    p0,
    p1,
    p2,
    p3,
    n0,
    n1,
    n2,
    n3,
    number0,
    number1,
    number2,
    number3,
    number4,
    number5,
    formula: tl.constexpr,
    slope: tl.constexpr,
    kind: tl.constexpr,
    term: tl.constexpr,
    prefix: tl.constexpr,
    groups: tl.constexpr,
    reduction: tl.constexpr,
    height,
    how: tl.constexpr,
):
    numbers = (number0, number1, number2, number3, number4, number5)
    ends = (table, header, grad, stride, anchor_params, numbers, anchors)
    feature = tl.program_id(1) * how.BD + tl.arange(0, how.BD)
    count = tl.minimum(anchors - top, height)
    if tl.program_id(0) < blocks:
        number = tl.program_id(0)
        local = number * how.BM + tl.arange(0, how.BM)
        rows, row_in = top + local, local < count
        total, near = _at_rows(
            panel,
            Pairs(
                x, y, x_norms, y_norms, labels_x, labels_y, itself, anchors * 16, columns * 16,
                features,
            ),
            ends, marks, number, local, rows, row_in, span, splits, feature,
            # Not given a name, as functions cannot be assigned.
            KernelPairGradient(
                kind, term, Exponents(slope, (p0, p1, p2, p3), (n0, n1, n2, n3)), None, None
            ),
            how, formula, prefix, groups, reduction,
        )  # fmt: skip
        mark = top // how.BM + number
        mark += tl.program_id(1) * tl.cdiv(anchors, how.BM)
        tl.store(x_marks + mark, near)
        if near > 0:
            to = x_near + rows.to(tl.int64)[:, None] * features + feature[None, :]
            tl.store(to, -total, mask=row_in[:, None] & (feature < features)[None, :])
    else:
        number = tl.program_id(0) - blocks
        rows = number * how.BM + tl.arange(0, how.BM)
        row_in = rows < columns
        total, near = _at_columns(
            panel,
            Pairs(
                y, x, y_norms, x_norms, labels_y, labels_x, itself, columns * 16, anchors * 16,
                features,
            ),
            ends, marks, number * how.BM // span, top, count, rows, row_in, splits, feature,
            KernelPairGradient(
                kind, term, Exponents(slope, (p0, p1, p2, p3), (n0, n1, n2, n3)), None, None
            ),
            how, formula, prefix, groups, reduction,
        )  # fmt: skip
        mark = number
        mark += tl.program_id(1) * tl.cdiv(columns, how.BM)
        before = 0
        if top > 0:
            before = tl.load(y_marks + mark)
        if near > 0:
            to = y_near + rows.to(tl.int64)[:, None] * features + feature[None, :]
            there = row_in[:, None] & (feature < features)[None, :]
            if before > 0:
                total -= tl.load(to, mask=there, other=0.0)
            tl.store(to, -total, mask=there)
        tl.store(y_marks + mark, tl.maximum(near, before))
