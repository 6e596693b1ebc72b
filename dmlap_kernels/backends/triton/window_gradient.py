"""Gradient of what `window_mining` and `window_sums` compute, window by window.

A sweep over tiles of rows and columns. A row takes part in up to four ways, each switched on where
the two sides of the tile can meet so: as the anchor of a triplet whose negative is the column, as
its negative whose anchor is the column, and likewise with the positive in place of the anchor (for
swap, and for the angular loss). A batch without references needs one sweep with all of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.coefficients import coefficient_of, minus_differences
from dmlap_kernels.backends.triton.policies import sigmoid
from dmlap_kernels.backends.triton.positives import (
    position_of,
    positive_at,
    positives_of,
    swap_share,
)
from dmlap_kernels.backends.triton.tile import (
    ROWS_NAMED,
    among_columns,
    columns_of,
    distances,
    exchanged,
    own_column,
    product,
    rows_of,
    tile,
    tile_among_columns,
    tile_exchanged,
    was_recomputed,
)


class Members(NamedTuple):
    """Indices along a side of a tile, and which of them exist."""

    index: Any
    exists: Any


@triton.jit
def _as_positive(pairs, window, member, k, how: tl.constexpr):
    """The k-th anchor of each positive's class, the positive's position there, and if it is one."""
    begin = tl.load(window.col_first + member.index, mask=member.exists, other=0).to(tl.int64)
    end = tl.load(window.col_last + member.index, mask=member.exists, other=0)
    anchors = begin + k
    there = member.exists & (anchors < end)
    start, _, left_out = positives_of(pairs, anchors, there, how)
    position, there = position_of(window, start, left_out, member.index, there, how)
    return anchors, position, there


@triton.jit
def _by_negative(
    window,
    slopes,
    weights,
    d,
    other_d,
    live,
    anchors,
    at,
    there,
    AXIS: tl.constexpr,
    terms: tl.constexpr,
):
    """d loss / d d of the ``live`` pairs (member, negative), whose partner is at other_d from the
    negative."""
    if terms.kind == "angular":
        by_sum = tl.expand_dims(tl.load(slopes.by_sum + at, mask=there, other=0.0), AXIS)
        power = tl.exp(window.spread * (1 - d)) * tl.exp(window.spread * (1 - other_d))
        return tl.where(live, -window.spread * by_sum * power, 0.0)
    else:
        inner = tl.expand_dims(tl.load(window.distances + at, mask=there, other=0.0), AXIS)
        upstream = tl.expand_dims(tl.load(weights + anchors, mask=there, other=0.0), AXIS)
        excess = inner - tl.minimum(d, other_d) + window.margin
        slope = (excess > 0).to(tl.float32)
        if terms.smooth:
            slope = sigmoid(excess)
        if terms.third:
            slope = swap_share(d, other_d, slope)
        return tl.where(live, -upstream * slope, 0.0)


@triton.jit
def _of_negatives(
    pairs,
    window,
    slopes,
    weights,
    d,
    negative,
    member,
    opposite,
    AXIS: tl.constexpr,
    POSITIVE: tl.constexpr,
    terms: tl.constexpr,
    how: tl.constexpr,
):
    """d loss / d d of a tile of pairs (member, negative), or their coefficients if mined.

    Members are anchors, or with POSITIVE positives; they lie along the axis that is not AXIS.
    """
    total = tl.zeros_like(d)
    if POSITIVE:
        start = tl.load(window.col_first + member.index, mask=member.exists, other=0)
        count = tl.load(window.col_last + member.index, mask=member.exists, other=0) - start
    else:
        start, count, left_out = positives_of(pairs, member.index, member.exists, how)
        count = tl.minimum(count - window.base, window.size)
    for k in range(0, tl.max(count, 0)):
        if POSITIVE:
            anchors, position, there = _as_positive(pairs, window, member, k, how)
            at = anchors * window.size + position
        else:
            anchors = member.index
            there = k < count
            at = anchors * window.size + k
        if terms.kind == "mined":
            by_negative = slopes.by_pn if POSITIVE else slopes.by_an
            chosen = tl.expand_dims(tl.load(slopes.negatives + at, mask=there, other=-1), AXIS)
            slope = tl.expand_dims(tl.load(by_negative + at, mask=there, other=0.0), AXIS)
            total -= tl.where(chosen == tl.expand_dims(opposite.index, 1 - AXIS), slope, 0.0)
        else:
            live = negative & tl.expand_dims(there, AXIS)
            if how.itself == ROWS_NAMED:
                named = tl.expand_dims(own_column(pairs, anchors, there, how), AXIS)
                live = live & (named != tl.expand_dims(opposite.index, 1 - AXIS))
            other_d = d
            if terms.third:
                if POSITIVE:
                    other_d = _tile_of_anchors(pairs, anchors, there, opposite, AXIS, how)
                else:
                    positives = positive_at(start, window.base + k, left_out, how)
                    other_d = _tile_of_positives(pairs, positives, there, opposite, AXIS, how)
            total += _by_negative(
                window, slopes, weights, d, other_d, live, anchors, at, there, AXIS, terms
            )
    return total


@triton.jit
def _tile_of_anchors(pairs, anchors, there, opposite, AXIS: tl.constexpr, how: tl.constexpr):
    """Distances of anchors, along the axis that is not AXIS, to columns."""
    if AXIS == 1:
        d, _ = tile(pairs, anchors, there, opposite.index, opposite.exists, how.itself, how)
        return d
    else:
        return tile_exchanged(pairs, opposite.index, opposite.exists, anchors, there, how)


@triton.jit
def _tile_of_positives(pairs, positives, there, opposite, AXIS: tl.constexpr, how: tl.constexpr):
    """Distances of positives, along the axis that is not AXIS, to columns."""
    if AXIS == 1:
        return tile_among_columns(pairs, positives, there, opposite.index, opposite.exists, how)
    else:
        return tile_among_columns(pairs, opposite.index, opposite.exists, positives, there, how)


@triton.jit
def _of_positives(
    pairs, window, slopes, anchor, positive, same, AXIS: tl.constexpr, how: tl.constexpr
):
    """`Slopes.by_ap` of a tile of positive pairs; anchors lie along the axis that is not AXIS."""
    start, _, left_out = positives_of(pairs, anchor.index, anchor.exists, how)
    start, left_out = tl.expand_dims(start, AXIS), tl.expand_dims(left_out, AXIS)
    positives = tl.expand_dims(positive.index, 1 - AXIS)
    position, there = position_of(window, start, left_out, positives, same, how)
    at = tl.expand_dims(anchor.index, AXIS) * window.size + position
    return tl.load(slopes.by_ap + at, mask=there, other=0.0)


@triton.jit
def _accumulate(view, row, column, by_distance, d, feature, total, sums, how: tl.constexpr):
    """Adds a tile of d loss / d d to what `_finish` makes a gradient of."""
    v = by_distance
    if how.distance == "euclidean" or how.distance == "sqeuclidean":
        recomputed = was_recomputed(
            view, row.index, row.exists, column.index, column.exists, d, how
        )
        v = coefficient_of(by_distance, d, how)
        few = tl.where(recomputed, v, 0.0)
        v = tl.where(recomputed, 0.0, v)
        if tl.max(tl.abs(few)) > 0:
            total = minus_differences(view, row.index, column.index, few, feature, total, how)
    return _multiply(view, column, v, feature, total, how), sums + tl.sum(v, 1)


@triton.jit
def _add_mined(view, row, column, v, feature, total, how: tl.constexpr):
    """As `_accumulate`, of a tile of coefficients of which few are not 0; nothing for sums."""
    if how.distance == "euclidean" or how.distance == "sqeuclidean":
        return minus_differences(view, row.index, column.index, v, feature, total, how)
    else:
        return _multiply(view, column, v, feature, total, how)


@triton.jit
def _multiply(view, column, v, feature, total, how: tl.constexpr):
    at = column.index[:, None] * view.features + feature[None, :]
    there = column.exists[:, None] & (feature < view.features)[None, :]
    return product(v, tl.load(view.y + at, mask=there, other=0.0), total, how)


@triton.jit
def _finish(gradient, view, row, feature, total, sums, how: tl.constexpr):
    """Adds the sum over columns of v * (row - column), or v * -column, to the gradient."""
    at = row.index[:, None] * view.features + feature[None, :]
    mask = row.exists[:, None] & (feature < view.features)[None, :]
    found = -total
    if how.distance == "euclidean" or how.distance == "sqeuclidean":
        found += tl.load(view.x + at, mask=mask, other=0.0) * sums[:, None]
    before = tl.load(gradient + at, mask=mask, other=0.0)
    tl.store(gradient + at, before + found, mask=mask)


@triton.jit(do_not_specialize_on_alignment=["weights"])
def window_gradient(
    pairs,
    window,
    weights,  # (rows,)
    slopes,
    largest,  # (1,): the most positives of any anchor
    gradient,
    rows_are: tl.constexpr,
    terms: tl.constexpr,
    how: tl.constexpr,
):
    """Adds one window's part to the gradient.

    Rows of the gradient are the "anchors" and "references" of their pairs, "both" in the self case;
    or "positives" and negatives of pairs of two references, for losses that see such pairs. Grid:
    blocks of rows, BD features each.
    """
    if tl.load(largest) > window.base:
        view, row_class, column_class = pairs, window.x_class, window.y_class
        if rows_are == "references":
            view, row_class, column_class = exchanged(pairs), window.y_class, window.x_class
        elif rows_are == "positives":
            view, row_class = among_columns(pairs), window.y_class
        rows = tl.program_id(0).to(tl.int64) * how.BM + tl.arange(0, how.BM)
        row = Members(rows, rows < rows_of(view))
        feature = tl.program_id(1) * how.BD + tl.arange(0, how.BD)
        own = tl.load(row_class + rows, mask=row.exists, other=-3)
        total = tl.zeros((how.BM, how.BD), tl.float32)
        sums = tl.zeros((how.BM,), tl.float32)
        for c in range(0, columns_of(view), how.BN):
            columns = c + tl.arange(0, how.BN).to(tl.int64)
            column = Members(columns, columns < columns_of(view))
            # The negatives of mined triplets are known, and so are their distances.
            d = tl.zeros((how.BM, how.BN), tl.float32)
            if terms.kind != "mined":
                if rows_are == "references":
                    d = tile_exchanged(pairs, rows, row.exists, columns, column.exists, how)
                elif rows_are == "positives":
                    d = tile_among_columns(pairs, rows, row.exists, columns, column.exists, how)
                else:
                    d = distances(pairs, rows, columns, how)
            other = tl.load(column_class + columns, mask=column.exists, other=-4)
            same = own[:, None] == other[None, :]
            negative = row.exists[:, None] & column.exists[None, :] & (same == 0)
            found = tl.zeros((how.BM, how.BN), tl.float32)
            if rows_are == "both" or rows_are == "anchors":
                found += _of_negatives(
                    pairs, window, slopes, weights, d, negative, row, column, 1, False, terms, how
                )
                found += _of_positives(pairs, window, slopes, row, column, same, 1, how)
            if rows_are == "both" or rows_are == "references":
                found += _of_negatives(
                    pairs, window, slopes, weights, d, negative, column, row, 0, False, terms, how
                )
                found += _of_positives(pairs, window, slopes, column, row, same, 0, how)
            if rows_are == "positives":
                found += _of_negatives(
                    pairs, window, slopes, weights, d, negative, row, column, 1, True, terms, how
                )
                found += _of_negatives(
                    pairs, window, slopes, weights, d, negative, column, row, 0, True, terms, how
                )
            if tl.max((found != 0).to(tl.int32)) > 0:
                if terms.kind == "mined":
                    total = _add_mined(view, row, column, found, feature, total, how)
                else:
                    total, sums = _accumulate(
                        view, row, column, found, d, feature, total, sums, how
                    )
        _finish(gradient, view, row, feature, total, sums, how)
