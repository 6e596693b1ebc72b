"""The original form of the lifted structure loss over a panel.

A pair has the log-sums of both its ends: over the negatives of the anchor, and over those of the
reference, which are anchors. In a batch with itself both are rows of one vector. A log-sum is kept
as its largest exponent and the sum of the rest, (2, rows).
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.coefficients import coefficient_of
from dmlap_kernels.backends.triton.panel_distances import panel_distances, store_weights
from dmlap_kernels.backends.triton.panel_labels import row_stride, sides_by_label
from dmlap_kernels.backends.triton.policies import lifted
from dmlap_kernels.backends.triton.row_kernels import group_weights
from dmlap_kernels.backends.triton.tile import Pairs

_SIZES = ["top", "anchors", "columns", "count", "blocks", "stride"]
# In the place of -inf, so that it may be subtracted.
_LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def _tile(panel, pairs, top, local, count, columns, how: tl.constexpr, at: tl.constexpr):
    """Distances (BM, BN), masks of near, of positive and of negative pairs."""
    rows, row_in = top + local, local < count
    column_in = columns < pairs.columns_16 // 16
    d, near = panel_distances(panel, pairs, local, rows, row_in, columns, column_in, how, at)
    labels = tl.load(pairs.first + rows, mask=row_in, other=0)
    positive, negative = sides_by_label(
        pairs, labels, rows, row_in, columns, column_in, how.itself, at
    )
    return d, near, positive, negative


@triton.jit
def _lse(ends, count, index, mask):
    """Log-sums, -inf of no exponents."""
    top = tl.load(ends + index, mask=mask, other=0.0)
    total = tl.load(ends + count + index, mask=mask, other=0.0)
    return tl.where(total > 0, top + tl.log(tl.where(total > 0, total, 1.0)), float("-inf"))


@triton.jit
def _more(top, total, d, negative, neg_margin):
    """Log-sums with those of a tile, place by place."""
    e = tl.where(negative, neg_margin - d, _LOWEST)
    higher = tl.maximum(top, e)
    return higher, total * tl.exp(top - higher) + tl.where(negative, tl.exp(e - higher), 0.0)


@triton.jit(do_not_specialize=_SIZES)
def ends_kernel(
    panel,
    x,
    y,
    x_norms,
    y_norms,
    labels_x,
    labels_y,
    itself,
    of_x,  # (2, anchors)
    of_y,  # (2, columns), what earlier panels left
    top,
    anchors,
    columns,
    features,
    count,  # rows of the panel
    blocks,  # of these
    neg_margin,
    how: tl.constexpr,
    across: tl.constexpr,  # of the tiles of a block of columns
):
    """Grid: blocks of rows, and with references blocks of columns."""
    pairs = Pairs(
        x, y, x_norms, y_norms, labels_x, labels_y, itself, anchors * 16, columns * 16, features
    )
    number = tl.program_id(0)
    if number < blocks:
        local = number * how.BM + tl.arange(0, how.BM)
        highest = tl.full((how.BM, how.BN), _LOWEST, tl.float32)
        total = tl.zeros((how.BM, how.BN), tl.float32)
        for c in range(0, columns, how.BN):
            column = c + tl.arange(0, how.BN)
            d, _, _, negative = _tile(panel, pairs, top, local, count, column, how, how)
            highest, total = _more(highest, total, d, negative, neg_margin)
        best = tl.max(highest, 1)
        total = tl.sum(total * tl.exp(highest - best[:, None]), 1)
        tl.store(of_x + top + local, best, mask=local < count)
        tl.store(of_x + anchors + top + local, total, mask=local < count)
    else:
        line = (number - blocks) * across.BN + tl.arange(0, across.BN)
        line_in = line < columns
        tops = tl.full((across.BM, across.BN), _LOWEST, tl.float32)
        totals = tl.zeros((across.BM, across.BN), tl.float32)
        for r in range(0, count, across.BM):
            places = r + tl.arange(0, across.BM)
            e, _, _, pushed = _tile(panel, pairs, top, places, count, line, how, across)
            tops, totals = _more(tops, totals, e, pushed, neg_margin)
        earlier = line < tl.where(top > 0, columns, 0)
        before = tl.load(of_y + line, mask=earlier, other=_LOWEST)
        peak = tl.maximum(tl.max(tops, 0), before)
        totals = tl.sum(totals * tl.exp(tops - peak[None, :]), 0)
        sums = tl.load(of_y + columns + line, mask=earlier, other=0.0)
        totals += sums * tl.exp(before - peak)
        tl.store(of_y + line, peak, mask=line_in)
        tl.store(of_y + columns + line, totals, mask=line_in)


@triton.jit(do_not_specialize=_SIZES)
def lifted_terms_kernel(
    panel,
    x,
    y,
    x_norms,
    y_norms,
    labels_x,
    labels_y,
    itself,
    of_x,
    of_y,
    table,  # (3, anchors): of each anchor's terms the sum, how many there are and are positive
    top,
    anchors,
    columns,
    features,
    count,
    pos_margin,
    how: tl.constexpr,
):
    """Grid: blocks of rows."""
    pairs = Pairs(
        x, y, x_norms, y_norms, labels_x, labels_y, itself, anchors * 16, columns * 16, features
    )
    local = tl.program_id(0) * how.BM + tl.arange(0, how.BM)
    own = _lse(of_x, anchors, top + local, local < count)[:, None]
    sums = tl.zeros((how.BM, how.BN), tl.float32)
    number = tl.zeros((how.BM, how.BN), tl.int32)
    nonzero = tl.zeros((how.BM, how.BN), tl.int32)
    for c in range(0, columns, how.BN):
        column = c + tl.arange(0, how.BN)
        d, _, positive, _ = _tile(panel, pairs, top, local, count, column, how, how)
        other = _lse(of_y, columns, column, column < columns)[None, :]
        value, _, _ = lifted(d - pos_margin, own, other)
        sums += tl.where(positive, value, 0.0)
        number += positive.to(tl.int32)
        nonzero += (positive & (value > 0)).to(tl.int32)
    at = table + top + local
    tl.store(at, tl.sum(sums, 1), mask=local < count)
    tl.store(at + anchors, tl.sum(number, 1).to(tl.float32), mask=local < count)
    tl.store(at + 2 * anchors, tl.sum(nonzero, 1).to(tl.float32), mask=local < count)


@triton.jit
def _upstream(table, header, grad, stride, anchors, index, mask, reduction: tl.constexpr):
    return group_weights(table, header, grad, stride, anchors, index, mask, 0, 1, reduction)[0]


@triton.jit(do_not_specialize=_SIZES)
def by_ends_kernel(
    panel,
    x,
    y,
    x_norms,
    y_norms,
    labels_x,
    labels_y,
    itself,
    of_x,
    of_y,
    by_x,  # (anchors,), d loss / d log-sum
    by_y,  # (columns,), what earlier panels left
    table,
    header,
    grad,
    stride,
    top,
    anchors,
    columns,
    features,
    count,
    blocks,
    pos_margin,
    reduction: tl.constexpr,
    how: tl.constexpr,
    across: tl.constexpr,
):
    """Grid: as `ends_kernel`. In a batch with itself a log-sum is an end of pairs both ways."""
    pairs = Pairs(
        x, y, x_norms, y_norms, labels_x, labels_y, itself, anchors * 16, columns * 16, features
    )
    number = tl.program_id(0)
    if number < blocks:
        local = number * how.BM + tl.arange(0, how.BM)
        own = _lse(of_x, anchors, top + local, local < count)[:, None]
        weight = _upstream(
            table, header, grad, stride, anchors, top + local, local < count, reduction
        )[:, None]
        total = tl.zeros((how.BM, how.BN), tl.float32)
        for c in range(0, columns, how.BN):
            column = c + tl.arange(0, how.BN)
            column_in = column < columns
            d, _, positive, _ = _tile(panel, pairs, top, local, count, column, how, how)
            other = _lse(of_y, columns, column, column_in)[None, :]
            _, _, share = lifted(d - pos_margin, own, other)
            both = weight
            if how.self_case:
                both += _upstream(
                    table, header, grad, stride, anchors, column, column_in, reduction
                )[None, :]
            total += tl.where(positive, share * both, 0.0)
        tl.store(by_x + top + local, tl.sum(total, 1), mask=local < count)
    else:
        line = (number - blocks) * across.BN + tl.arange(0, across.BN)
        line_in = line < columns
        own_of_line = _lse(of_y, columns, line, line_in)[None, :]
        totals = tl.zeros((across.BM, across.BN), tl.float32)
        for r in range(0, count, across.BM):
            places = r + tl.arange(0, across.BM)
            e, _, pulled, _ = _tile(panel, pairs, top, places, count, line, how, across)
            other_end = _lse(of_x, anchors, top + places, places < count)[:, None]
            _, _, part = lifted(e - pos_margin, own_of_line, other_end)
            factor = _upstream(
                table, header, grad, stride, anchors, top + places, places < count, reduction
            )
            totals += tl.where(pulled, part * factor[:, None], 0.0)
        found = tl.sum(totals, 0)
        if top > 0:
            found += tl.load(by_y + line, mask=line_in, other=0.0)
        tl.store(by_y + line, found, mask=line_in)


@triton.jit(do_not_specialize=_SIZES)
def lifted_weights_kernel(
    panel,
    x,
    y,
    x_norms,
    y_norms,
    labels_x,
    labels_y,
    itself,
    of_x,
    of_y,
    by_x,
    by_y,
    table,
    header,
    grad,
    weights,
    marks,  # (blocks, tiles)
    stride,
    top,
    anchors,
    columns,
    features,
    count,
    pos_margin,
    neg_margin,
    reduction: tl.constexpr,
    how: tl.constexpr,
):
    """Grid: blocks of rows, each with all tiles. In a batch with itself the weights are those of
    the anchors' ends alone."""
    pairs = Pairs(
        x, y, x_norms, y_norms, labels_x, labels_y, itself, anchors * 16, columns * 16, features
    )
    tiles = tl.cdiv(columns, how.BN)
    local = (tl.program_id(0) // tiles) * how.BM + tl.arange(0, how.BM)
    column = (tl.program_id(0) % tiles) * how.BN + tl.arange(0, how.BN)
    row_in, column_in = local < count, column < columns
    d, near, positive, negative = _tile(panel, pairs, top, local, count, column, how, how)
    own = _lse(of_x, anchors, top + local, row_in)[:, None]
    other = _lse(of_y, columns, column, column_in)[None, :]
    weight = _upstream(table, header, grad, stride, anchors, top + local, row_in, reduction)
    _, hinge, _ = lifted(d - pos_margin, own, other)
    by = tl.load(by_x + top + local, mask=row_in, other=0.0)[:, None]
    e = neg_margin - d
    push = by * tl.exp(tl.minimum(e - own, 0.0))
    if how.self_case == 0:
        by = tl.load(by_y + column, mask=column_in, other=0.0)[None, :]
        push += by * tl.exp(tl.minimum(e - other, 0.0))
    v = tl.where(positive, weight[:, None] * hinge, 0.0) - tl.where(negative, push, 0.0)
    at = local.to(tl.int64)[:, None] * row_stride(columns) + column[None, :]
    inside = row_in[:, None] & (column < row_stride(columns))[None, :]
    v = tl.where(positive | negative, coefficient_of(v, d, how), 0.0)
    store_weights(weights, panel, marks + tl.program_id(0), at, inside, v, near, how)
