"""Gradient of what `slot_mining` and `slot_sums` compute, window by window.

A sweep over tiles of rows and columns. A row takes part in up to four ways, each switched on where
the two sides of the tile can meet so: as the anchor of a triplet whose negative is the column, as
its negative whose anchor is the column, and likewise with the positive in place of the anchor (for
swap, and for the angular loss). A batch without references needs one sweep with all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.gathered import (
    matmul,
    sigmoid,
    tile,
)
from dmlap_kernels.backends.triton.slot_mining import (
    factor,
    own_column,
    positive_at,
    positives_of,
    swap_share,
)
from dmlap_kernels.backends.triton.slot_sums import ANGULAR, MINED, SWAPPED
from dmlap_kernels.backends.triton.tile import APART, ROWS_NAMED, SELF


@triton.jit
def _as_positive(
    member, k, first, last, itself, col_first, col_last, member_in, base, window,
    ITSELF: tl.constexpr,
):  # fmt: skip
    """The k-th anchor of each positive's class, the positive's slot there, and if it is one."""
    begin = tl.load(col_first + member, mask=member_in, other=0).to(tl.int64)
    end = tl.load(col_last + member, mask=member_in, other=0)
    anchor = begin + k
    there = member_in & (anchor < end)
    start, _, left_out = positives_of(first, last, itself, anchor, there, ITSELF)
    slot = member - start
    if ITSELF != APART:
        slot -= (member > left_out).to(tl.int64)
        there = there & (member != left_out)
    slot -= base
    return anchor, slot, there & (slot >= 0) & (slot < window)


@triton.jit
def _triplet_weights(
    d, live, other_negative_d, at, anchor, there, dp, weights, share, margin, spread,
    AXIS: tl.constexpr, KIND: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    """d loss / d d of the ``live`` pairs (member, negative), whose partner is at other_negative_d
    from the negative."""
    if KIND == ANGULAR:
        by_sum = tl.expand_dims(tl.load(share + at, mask=there, other=0.0), AXIS)
        power = tl.exp(spread * (1 - d)) * tl.exp(spread * (1 - other_negative_d))
        return tl.where(live, -spread * by_sum * power, 0.0)
    else:
        inner = tl.expand_dims(tl.load(dp + at, mask=there, other=0.0), AXIS)
        upstream = tl.expand_dims(tl.load(weights + anchor, mask=there, other=0.0), AXIS)
        excess = inner - tl.minimum(d, other_negative_d) + margin
        slope = (excess > 0).to(tl.float32)
        if SMOOTH:
            slope = sigmoid(excess)
        if KIND == SWAPPED:
            slope = swap_share(d, other_negative_d, slope)
        return tl.where(live, -upstream * slope, 0.0)


@triton.jit
def _member_weights(
    d, negative, member, member_in, opposite, opposite_in, X, Y, x_norms, y_norms,
    first, last, itself, col_first, col_last, dp, weights, share, by_negative, mined,
    base, window, margin, spread, width,
    AXIS: tl.constexpr, POSITIVE: tl.constexpr, KIND: tl.constexpr, SMOOTH: tl.constexpr,
    ITSELF: tl.constexpr, DISTANCE: tl.constexpr, PRECISION: tl.constexpr, NEAR: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """d loss / d d of a tile of pairs (member, negative), or their factors if MINED.

    Members are anchors, or with POSITIVE positives; they lie along the axis that is not AXIS.
    """
    total = tl.zeros_like(d)
    if POSITIVE:
        start = tl.load(col_first + member, mask=member_in, other=0)
        count = tl.load(col_last + member, mask=member_in, other=0) - start
    else:
        start, count, left_out = positives_of(first, last, itself, member, member_in, ITSELF)
        count = tl.minimum(count - base, window)
    for k in range(0, tl.max(count, 0)):
        if POSITIVE:
            anchor, slot, there = _as_positive(
                member, k, first, last, itself, col_first, col_last, member_in, base, window, ITSELF
            )  # fmt: skip
            at = anchor * window + slot
        else:
            anchor = member
            there = k < count
            at = anchor * window + k
        if KIND == MINED:
            chosen = tl.expand_dims(tl.load(mined + at, mask=there, other=-1), AXIS)
            slope = tl.expand_dims(tl.load(by_negative + at, mask=there, other=0.0), AXIS)
            total -= tl.where(chosen == tl.expand_dims(opposite, 1 - AXIS), slope, 0.0)
        else:
            live = negative & tl.expand_dims(there, AXIS)
            if ITSELF == ROWS_NAMED:
                named = own_column(itself, anchor, there, ITSELF)
                live = live & (tl.expand_dims(named, AXIS) != tl.expand_dims(opposite, 1 - AXIS))
            other_d = d
            if KIND >= SWAPPED:
                if POSITIVE:
                    other_d = _tile_along(
                        X, x_norms, anchor, there, Y, y_norms, opposite, opposite_in, width,
                        AXIS, ITSELF == SELF, DISTANCE, PRECISION, NEAR, CHUNK,
                    )  # fmt: skip
                else:
                    positive = positive_at(start, base + k, left_out, ITSELF)
                    other_d = _tile_along(
                        Y, y_norms, positive, there, Y, y_norms, opposite, opposite_in, width,
                        AXIS, True, DISTANCE, PRECISION, NEAR, CHUNK,
                    )  # fmt: skip
            total += _triplet_weights(
                d, live, other_d, at, anchor, there, dp, weights, share, margin, spread,
                AXIS, KIND, SMOOTH,
            )  # fmt: skip
    return total


@triton.jit
def _tile_along(
    M, m_norms, member, member_in, N, n_norms, opposite, opposite_in, width,
    AXIS: tl.constexpr, SAME: tl.constexpr,
    DISTANCE: tl.constexpr, PRECISION: tl.constexpr, NEAR: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Distances of rows of M to rows of N, those of M along the axis that is not AXIS."""
    if AXIS == 1:
        return tile(
            M, m_norms, member, member_in, N, n_norms, opposite, opposite_in, width,
            SAME, DISTANCE, PRECISION, NEAR, CHUNK,
        )  # fmt: skip
    else:
        return tile(
            N, n_norms, opposite, opposite_in, M, m_norms, member, member_in, width,
            SAME, DISTANCE, PRECISION, NEAR, CHUNK,
        )  # fmt: skip


@triton.jit
def _positive_weights(
    anchor, anchor_in, positive, same, by_ap, first, last, itself, base, window,
    AXIS: tl.constexpr, ITSELF: tl.constexpr,
):  # fmt: skip
    """What by_ap has of a tile of positive pairs; anchors lie along the axis that is not AXIS."""
    start, _, left_out = positives_of(first, last, itself, anchor, anchor_in, ITSELF)
    anchor = tl.expand_dims(anchor, AXIS)
    positive = tl.expand_dims(positive, 1 - AXIS)
    slot = positive - tl.expand_dims(start, AXIS) - base
    if ITSELF != APART:
        left_out = tl.expand_dims(left_out, AXIS)
        slot -= (positive > left_out).to(tl.int64)
        same = same & (positive != left_out)
    there = same & (slot >= 0) & (slot < window)
    return tl.load(by_ap + anchor * window + slot, mask=there, other=0.0)


@triton.jit
def _less_differences(
    R, row, row_in, C, column, columns, at, at_in, lone, acc, width, COLUMNS: tl.constexpr
):  # fmt: skip
    """acc less the sums of lone * (row - column): for few pairs, and for near ones, whose weighted
    rows would cancel but for a few digits."""
    r_mask = row_in[:, None] & at_in[None, :]
    place = tl.arange(0, COLUMNS)
    begin = tl.min(column, 0)
    for j in range(0, tl.minimum(columns - begin, COLUMNS)):
        weight = tl.sum(tl.where((place == j)[None, :], lone, 0.0), 1)
        if tl.max(tl.abs(weight), 0) > 0:
            r = tl.load(R + row[:, None] * width + at[None, :], mask=r_mask, other=0.0)
            c = tl.load(C + (begin + j) * width + at, mask=at_in, other=0.0)
            acc -= weight[:, None] * (r - c[None, :])
    return acc


@triton.jit
def accumulate(
    R, r_norms, row, row_in, C, c_norms, begin, columns, at, at_in, pair_weights, d,
    acc, row_sums, width,
    DISTANCE: tl.constexpr, PRECISION: tl.constexpr, NEAR: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Adds a tile of d loss / d d to what `finish` makes a gradient of."""
    column = begin + tl.arange(0, COLUMNS).to(tl.int64)
    column_in = column < columns
    if DISTANCE == "euclidean" or DISTANCE == "sqeuclidean":
        norms = tl.load(r_norms + row, mask=row_in, other=0.0)[:, None]
        norms = norms + tl.load(c_norms + column, mask=column_in, other=0.0)[None, :]
        near = (d * d if DISTANCE == "euclidean" else d) < NEAR * norms
        pair_weights = factor(pair_weights, d, DISTANCE)
        lone = tl.where(near, pair_weights, 0.0)
        pair_weights = tl.where(near, 0.0, pair_weights)
        if tl.max(tl.max(tl.abs(lone), 1), 0) > 0:
            acc = _less_differences(
                R, row, row_in, C, column, columns, at, at_in, lone, acc, width, COLUMNS
            )
    c = tl.load(
        C + column[:, None] * width + at[None, :],
        mask=column_in[:, None] & at_in[None, :],
        other=0.0,
    )
    return matmul(pair_weights, c, acc, PRECISION), row_sums + tl.sum(pair_weights, 1)


@triton.jit
def _add_mined(
    R, row, row_in, C, begin, columns, at, at_in, factors, acc, width,
    DISTANCE: tl.constexpr, PRECISION: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """As `accumulate`, of a tile of factors of which few are not 0; nothing for row_sums."""
    column = begin + tl.arange(0, COLUMNS).to(tl.int64)
    if DISTANCE == "euclidean" or DISTANCE == "sqeuclidean":
        return _less_differences(
            R, row, row_in, C, column, columns, at, at_in, factors, acc, width, COLUMNS
        )
    else:
        c = tl.load(
            C + column[:, None] * width + at[None, :],
            mask=(column < columns)[:, None] & at_in[None, :],
            other=0.0,
        )
        return matmul(factors, c, acc, PRECISION)


@triton.jit
def finish(
    gradient, R, row, row_in, at, at_in, acc, row_sums, width, DISTANCE: tl.constexpr
):  # fmt: skip
    """Adds the sum over columns of weight * (row - column), or * -column, to the gradient."""
    where = row[:, None] * width + at[None, :]
    mask = row_in[:, None] & at_in[None, :]
    found = -acc
    if DISTANCE == "euclidean" or DISTANCE == "sqeuclidean":
        found += tl.load(R + where, mask=mask, other=0.0) * row_sums[:, None]
    before = tl.load(gradient + where, mask=mask, other=0.0)
    tl.store(gradient + where, before + found, mask=mask)


@triton.jit(do_not_specialize=["anchors", "references"], do_not_specialize_on_alignment=["weights"])
def slot_gradient(
    X, Y, x_norms, y_norms, x_class, y_class, first, last, itself, col_first, col_last, largest,
    dp, weights, by_ap, by_an, by_pn, share, mined, gradient,
    base, window, margin, spread, anchors, references, width,
    ROWS_ARE: tl.constexpr, KIND: tl.constexpr, SMOOTH: tl.constexpr,
    ITSELF: tl.constexpr, DISTANCE: tl.constexpr, PRECISION: tl.constexpr, NEAR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Adds one window's part to gradient (rows, width). With MINED, by_ap, by_an and by_pn are
    factors, else by_ap is d loss / d d.

    ROWS_ARE: "anchors" and "references" of their pairs, "both" in the self case; "positives" and
    negatives of pairs of two references, for losses that see such pairs. largest (1,): the most
    positives of any anchor. Grid: blocks of rows, WIDE features each.
    """
    if tl.load(largest) > base:
        R, r_norms, r_class, rows = X, x_norms, x_class, anchors
        C, c_norms, c_class, columns = Y, y_norms, y_class, references
        if ROWS_ARE == "references":
            R, r_norms, r_class, rows = Y, y_norms, y_class, references
            C, c_norms, c_class, columns = X, x_norms, x_class, anchors
        elif ROWS_ARE == "positives":
            R, r_norms, r_class, rows = Y, y_norms, y_class, references
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        row_in = row < rows
        at = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
        at_in = at < width
        own = tl.load(r_class + row, mask=row_in, other=-3)
        acc = tl.zeros((ROWS, WIDE), tl.float32)
        row_sums = tl.zeros((ROWS,), tl.float32)
        for begin in range(0, columns, COLUMNS):
            column = begin + tl.arange(0, COLUMNS).to(tl.int64)
            column_in = column < columns
            # The negatives of mined triplets are known, and so are their distances.
            d = tl.zeros((ROWS, COLUMNS), tl.float32)
            if KIND != MINED:
                d = tile(
                    R, r_norms, row, row_in, C, c_norms, column, column_in, width,
                    ITSELF == SELF or ROWS_ARE == "positives", DISTANCE, PRECISION, NEAR, CHUNK,
                )  # fmt: skip
            other = tl.load(c_class + column, mask=column_in, other=-4)
            same = own[:, None] == other[None, :]
            inside = row_in[:, None] & column_in[None, :]
            negative = inside & (same == 0)
            found = tl.zeros((ROWS, COLUMNS), tl.float32)
            if ROWS_ARE == "both" or ROWS_ARE == "anchors":
                found += _member_weights(
                    d, negative, row, row_in, column, column_in, X, Y, x_norms, y_norms,
                    first, last, itself, col_first, col_last, dp, weights, share, by_an, mined,
                    base, window, margin, spread, width,
                    1, False, KIND, SMOOTH, ITSELF, DISTANCE, PRECISION, NEAR, CHUNK,
                )  # fmt: skip
                found += _positive_weights(
                    row, row_in, column, same, by_ap, first, last, itself, base, window,
                    1, ITSELF,
                )  # fmt: skip
            if ROWS_ARE == "both" or ROWS_ARE == "references":
                found += _member_weights(
                    d, negative, column, column_in, row, row_in, X, Y, x_norms, y_norms,
                    first, last, itself, col_first, col_last, dp, weights, share, by_an, mined,
                    base, window, margin, spread, width,
                    0, False, KIND, SMOOTH, ITSELF, DISTANCE, PRECISION, NEAR, CHUNK,
                )  # fmt: skip
                found += _positive_weights(
                    column, column_in, row, same, by_ap, first, last, itself, base, window,
                    0, ITSELF,
                )  # fmt: skip
            if ROWS_ARE == "positives":
                found += _member_weights(
                    d, negative, row, row_in, column, column_in, X, Y, x_norms, y_norms,
                    first, last, itself, col_first, col_last, dp, weights, share, by_pn, mined,
                    base, window, margin, spread, width,
                    1, True, KIND, SMOOTH, ITSELF, DISTANCE, PRECISION, NEAR, CHUNK,
                )  # fmt: skip
                found += _member_weights(
                    d, negative, column, column_in, row, row_in, X, Y, x_norms, y_norms,
                    first, last, itself, col_first, col_last, dp, weights, share, by_pn, mined,
                    base, window, margin, spread, width,
                    0, True, KIND, SMOOTH, ITSELF, DISTANCE, PRECISION, NEAR, CHUNK,
                )  # fmt: skip
            if tl.max(tl.max((found != 0).to(tl.int32), 1), 0) > 0:
                if KIND == MINED:
                    acc = _add_mined(
                        R, row, row_in, C, begin, columns, at, at_in, found, acc, width,
                        DISTANCE, PRECISION, COLUMNS,
                    )  # fmt: skip
                else:
                    acc, row_sums = accumulate(
                        R, r_norms, row, row_in, C, c_norms, begin, columns, at, at_in, found, d,
                        acc, row_sums, width, DISTANCE, PRECISION, NEAR, COLUMNS,
                    )  # fmt: skip
        finish(gradient, R, row, row_in, at, at_in, acc, row_sums, width, DISTANCE)
