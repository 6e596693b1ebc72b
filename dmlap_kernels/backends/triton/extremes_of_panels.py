"""Of an anchor the farthest or the nearest positive, and the nearest negative, out of panels: the
functions of `panel_policies.PanelPolicy`. Of equal distances the pair of the lower label counts,
and of these the one of the lower column, whatever the order in which pairs come."""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.policies import coefficient

_NONE = tl.constexpr(2147483647)


@triton.jit
def empty_extremes(count: tl.constexpr):
    """Distance and column of the farthest positive; of the nearest negative, with the halves of its
    label: of equal distances the one of the lower label is kept, and of these the lower column."""
    some = tl.full((count,), float("inf"), tl.float32)
    none = tl.full((count,), _NONE, tl.int32)
    return some, none, some, none, none, none


@triton.jit
def merge_nearest(state, other):
    """The distance, column and label of the lesser of two, each (count,)."""
    d, column, high, low = state
    other_d, other_column, other_high, other_low = other
    before = (other_low < low) | ((other_low == low) & (other_column < column))
    before = (other_high < high) | ((other_high == high) & before)
    # What is not a number is never nearer.
    before = (other_d < d) | ((other_d == d) & before)
    return (
        tl.where(before, other_d, d),
        tl.where(before, other_column, column),
        tl.where(before, other_high, high),
        tl.where(before, other_low, low),
    )


@triton.jit
def merge_extremes(state, other):
    zero = tl.zeros_like(state[1])
    p, p_column, _, _ = merge_nearest(
        (state[0], state[1], zero, zero), (other[0], other[1], zero, zero)
    )
    n, n_column, high, low = merge_nearest(
        (state[2], state[3], state[4], state[5]), (other[2], other[3], other[4], other[5])
    )
    return p, p_column, n, n_column, high, low


@triton.jit
def begin_extremes(rows: tl.constexpr, columns: tl.constexpr):
    """Distance and column of the farthest or nearest positive, and of the nearest negative; whether
    equal distances were met, which wants another look at labels."""
    some = tl.full((rows, columns), float("inf"), tl.float32)
    none = tl.full((rows, columns), _NONE, tl.int32)
    return some, none, some, none, tl.zeros((rows, columns), tl.int32)


@triton.jit
def _visit_both(columns, key, d, alike, within, state):
    """``key`` is that of positives, of which the least is kept."""
    columns = tl.broadcast_to(columns, d.shape)
    p, p_column, n, n_column, tied = state
    positive, negative = alike & within, (alike == 0) & within
    before, nearer = positive & (key < p), negative & (d < n)
    equal = (positive & (key == p)) | (negative & (d == n))
    return (
        tl.where(before, key, p),
        tl.where(before, columns, p_column),
        tl.where(nearer, d, n),
        tl.where(nearer, columns, n_column),
        tl.where(equal, 1, tied),
    )


@triton.jit
def visit_extremes(exponents, own, d, alike, within, state):
    return _visit_both(own[1], -d, d, alike, within, state)


@triton.jit
def visit_nearest(exponents, own, d, alike, within, state):
    return _visit_both(own[1], d, d, alike, within, state)


@triton.jit
def _reduce_positive(p, p_column):
    least = tl.min(p, 1)
    return least, tl.min(tl.where(p == least[:, None], p_column, _NONE), 1)


@triton.jit
def _reduce_negative(n, n_column, labels):
    nearest = tl.min(n, 1)
    at = (n == nearest[:, None]) & (n_column != _NONE)
    if labels is None:
        label = tl.where(at, 0, _NONE).to(tl.int64)
    else:
        label = tl.load(labels + n_column, mask=at, other=9223372036854775807)
    least = tl.min(label, 1)
    n_column = tl.min(tl.where(at & (label == least[:, None]), n_column, _NONE), 1)
    # The lower half is kept in the order of signed numbers.
    high, low = (least >> 32).to(tl.int32), ((least & 0xFFFFFFFF) - 2147483648).to(tl.int32)
    return nearest, n_column, high, low


@triton.jit
def reduce_extremes(state, labels):
    p, p_column = _reduce_positive(state[0], state[1])
    n, n_column, high, low = _reduce_negative(state[2], state[3], labels)
    return p, p_column, n, n_column, high, low


@triton.jit
def _or_none(column):
    return tl.where(column == _NONE, -1, column)


@triton.jit
def finish_extremes(state):
    return -state[0], _or_none(state[1]), state[2], _or_none(state[3])


@triton.jit
def finish_nearest(state):
    return state[0], _or_none(state[1]), state[2], _or_none(state[3])


@triton.jit
def empty_positive(count: tl.constexpr):
    """Distance and column of the nearest positive: those of a row have one label."""
    some = tl.full((count,), float("inf"), tl.float32)
    return some, tl.full((count,), _NONE, tl.int32)


@triton.jit
def merge_positive(state, other):
    zero = tl.zeros_like(state[1])
    p, p_column, _, _ = merge_nearest(
        (state[0], state[1], zero, zero), (other[0], other[1], zero, zero)
    )
    return p, p_column


@triton.jit
def begin_positive(rows: tl.constexpr, columns: tl.constexpr):
    some = tl.full((rows, columns), float("inf"), tl.float32)
    return some, tl.full((rows, columns), _NONE, tl.int32)


@triton.jit
def visit_positive(exponents, own, d, alike, within, state):
    """Of a tile that has positives, each with a state of its own."""
    nearer = alike & within & (d < state[0])
    columns = tl.broadcast_to(own[1], d.shape)
    return tl.where(nearer, d, state[0]), tl.where(nearer, columns, state[1])


@triton.jit
def reduce_of_positive(state, labels):
    return _reduce_positive(state[0], state[1])


@triton.jit
def finish_one(state):
    return state[0], _or_none(state[1])


@triton.jit
def empty_beyond(count: tl.constexpr):
    """Distance and column of the nearest negative beyond a bound, with the halves of its label."""
    some = tl.full((count,), float("inf"), tl.float32)
    none = tl.full((count,), _NONE, tl.int32)
    return some, none, none, none


@triton.jit
def begin_beyond(rows: tl.constexpr, columns: tl.constexpr):
    some = tl.full((rows, columns), float("inf"), tl.float32)
    none = tl.full((rows, columns), _NONE, tl.int32)
    return some, none, tl.zeros((rows, columns), tl.int32)


@triton.jit
def visit_beyond(exponents, own, d, alike, within, state):
    columns = tl.broadcast_to(own[1], d.shape)
    n, n_column, tied = state
    negative = (alike == 0) & within & (d > coefficient(own, 0))
    nearer = negative & (d < n)
    return (
        tl.where(nearer, d, n),
        tl.where(nearer, columns, n_column),
        tl.where(negative & (d == n), 1, tied),
    )


@triton.jit
def reduce_beyond(state, labels):
    return _reduce_negative(state[0], state[1], labels)
