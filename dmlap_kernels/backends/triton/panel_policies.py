"""What an anchor keeps of a panel, by the names that `plans` uses.

A policy is four functions. Three are those of `forward`, which lets policies be shared; ``finish``
makes of a state what the `Sweeps` of `backends/device` return. An end (`coefficient`) is here the
numbers themselves, and the index.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from dmlap_kernels.backends.triton import hinge, soft
from dmlap_kernels.backends.triton.policies import coefficient, nt_xent

_NONE = tl.constexpr(2147483647)


class PanelPolicy(NamedTuple):
    """The functions, how many vectors a state has, and whether columns and labels are the end."""

    empty: Any
    visit: Any
    merge: Any
    finish: Any
    size: int
    mines: bool = False


@triton.jit
def _same(state):
    return state


@triton.jit
def _finish_log_sums(state):
    return state[0] + tl.log(state[1]), state[2] + tl.log(state[3]), state[4]


@triton.jit
def _empty_terms(count: tl.constexpr):
    """Sums of terms, how many are positive, sums of derivatives by neg_lse."""
    zeros = tl.zeros((count,), tl.float32)
    return zeros, tl.zeros((count,), tl.int32), zeros


@triton.jit
def _merge_terms(state, other):
    return state[0] + other[0], state[1] + other[1], state[2] + other[2]


@triton.jit
def _visit_nt_xent(exponents, own, d, positive, negative, runs, axis: tl.constexpr):
    exponent = exponents.positive
    e = exponents.slope(exponent, d) * (d - exponent[1])
    value, _, by_neg_lse = nt_xent(e, coefficient(own, 0), 0.0)
    value = tl.where(positive, value, 0.0)
    slopes = tl.sum(tl.where(positive, by_neg_lse, 0.0), axis)
    return tl.sum(value, axis), tl.sum((value > 0).to(tl.int32), axis), slopes


@triton.jit
def _empty_extremes(count: tl.constexpr):
    """Distance and column of the farthest positive; of the nearest negative, with the halves of its
    label: of equal distances the one of the lower label is kept, and of these the lower column."""
    some = tl.full((count,), float("inf"), tl.float32)
    none = tl.full((count,), _NONE, tl.int32)
    return some, none, some, none, none, none


@triton.jit
def _nearer(state, other):
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
def _merge_extremes(state, other):
    zero = tl.zeros_like(state[1])
    p, p_column, _, _ = _nearer((state[0], state[1], zero, zero), (other[0], other[1], zero, zero))
    n, n_column, high, low = _nearer(
        (state[2], state[3], state[4], state[5]), (other[2], other[3], other[4], other[5])
    )
    return p, p_column, n, n_column, high, low


@triton.jit
def _visit_extremes(exponents, own, d, positive, negative, runs, axis: tl.constexpr):
    columns, labels = own
    farthest = tl.min(tl.where(positive, -d, float("inf")), axis)
    at = positive & (-d == tl.expand_dims(farthest, axis))
    p_column = tl.min(tl.where(at, columns, _NONE), axis)
    nearest = tl.min(tl.where(negative, d, float("inf")), axis)
    at = negative & (d == tl.expand_dims(nearest, axis))
    label = tl.min(tl.where(at, labels, 9223372036854775807), axis)
    at = at & (labels == tl.expand_dims(label, axis))
    n_column = tl.min(tl.where(at, columns, _NONE), axis)
    # The lower half is kept in the order of signed numbers.
    high, low = (label >> 32).to(tl.int32), ((label & 0xFFFFFFFF) - 2147483648).to(tl.int32)
    return farthest, p_column, nearest, n_column, high, low


@triton.jit
def _finish_extremes(state):
    p = tl.where(state[1] == _NONE, -1, state[1])
    n = tl.where(state[3] == _NONE, -1, state[3])
    return -state[0], p, state[2], n


POLICIES = {
    "hinge": PanelPolicy(*hinge.POLICIES[False], _same, 6),
    "squared_hinge": PanelPolicy(*hinge.POLICIES[True], _same, 6),
    "logistic": PanelPolicy(*hinge.LOGISTIC, _same, 1),
    "log_sums": PanelPolicy(*soft.PLAIN, _finish_log_sums, 5),
    "mined_log_sums": PanelPolicy(*soft.MINED, _finish_log_sums, 5),
    "nt_xent": PanelPolicy(_empty_terms, _visit_nt_xent, _merge_terms, _same, 3),
    "extremes": PanelPolicy(
        _empty_extremes, _visit_extremes, _merge_extremes, _finish_extremes, 6, True
    ),
}
