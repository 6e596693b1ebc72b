"""What an anchor keeps of a panel, by the names that `plans` uses.

A sweep keeps a state for each place of a tile, or for each four columns of one, so that no number
passes between threads before its end. A policy is, for the sweep:

    begin(rows, columns)    the state of a tile's places before the first tile
    visit(exponents, own, d, alike, within, state)
                            the state after a tile of distances d, of which those ``within`` are
                            pairs to be visited, positive where ``alike``
    reduce(state, labels)   the state of the rows; ``labels`` are those of the columns, or None

and of the states of rows, tuples of vectors of 32 bits:

    empty(count)            that of ``count`` anchors before their first pair
    merge(state, other)     what both hold; states are merged in a fixed order
    finish(state)           what the `Sweeps` of `backends/device` return

An end ``own`` (`coefficient`) is the numbers themselves, and here the columns of the tile. Sums are
written as a condition between two sums, of which compilers make one conditional addition.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from dmlap_kernels.backends.triton import extremes_of_panels, hinge, soft
from dmlap_kernels.backends.triton.configurations import INTERPRETED
from dmlap_kernels.backends.triton.extremes_of_panels import (
    begin_extremes,
    empty_extremes,
    merge_extremes,
    reduce_extremes,
    visit_extremes,
)
from dmlap_kernels.backends.triton.policies import coefficient, nt_xent, softplus

_LEAST = tl.constexpr(-3.4028234663852886e38)
_LOG2_E = tl.constexpr(1.4426950408889634)
_INTERPRETED = tl.constexpr(INTERPRETED)
# Columns that share a state where states take registers or exponentials; a thread loads as many.
_GROUP = tl.constexpr(4)


class PanelPolicy(NamedTuple):
    """The functions, and how many vectors a state of rows has; ``kind`` says which pairs a sweep
    visits: of ``extremes`` the last part of a place's state marks equal distances, for which all
    pairs are visited again."""

    begin: Any
    visit: Any
    reduce: Any
    empty: Any
    merge: Any
    finish: Any
    size: int
    kind: str = "sums"


@triton.jit
def exp_or_0(t):
    """e^t, 0 where that has no full precision: a fifth of the instructions that care for it."""
    if _INTERPRETED:
        return tl.exp2(t * _LOG2_E)
    else:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [t * _LOG2_E], tl.float32, True, 1
        )


@triton.jit
def reciprocal(t):
    """1 / t of ordinary numbers, to the last digit or so."""
    if _INTERPRETED:
        return 1.0 / t
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [t], tl.float32, True, 1
        )


@triton.jit
def _same(state):
    return state


@triton.jit
def _begin_hinge(rows: tl.constexpr, columns: tl.constexpr):
    """Sums of positives and of negatives, and how many are not 0: whole floats."""
    zeros = tl.zeros((rows, columns), tl.float32)
    return zeros, zeros, zeros, zeros


@triton.jit
def _hinge(own, d, alike, within):
    """Hinges, and 1 for those that are not 0."""
    h = tl.where(alike, d - coefficient(own, 0), coefficient(own, 1) - d)
    h = tl.where(within, tl.maximum(h, 0.0), 0.0)
    return h, tl.where(h > 0, 1.0, 0.0)


@triton.jit
def _visit_hinge(exponents, own, d, alike, within, state):
    h, some = _hinge(own, d, alike, within)
    return (
        tl.where(alike, state[0] + h, state[0]),
        tl.where(alike, state[1], state[1] + h),
        tl.where(alike, state[2] + some, state[2]),
        tl.where(alike, state[3], state[3] + some),
    )


@triton.jit
def count(numbers):
    """The sums of the rows of whole floats, int32."""
    return tl.sum(numbers.to(tl.int32), 1)


@triton.jit
def _reduce_hinge(state, labels):
    pull, push = tl.sum(state[0], 1), tl.sum(state[1], 1)
    return pull, push, pull, push, count(state[2]), count(state[3])


@triton.jit
def _begin_squared(rows: tl.constexpr, columns: tl.constexpr):
    """Sums of squares before those of plain ones."""
    zeros = tl.zeros((rows, columns), tl.float32)
    return zeros, zeros, zeros, zeros, zeros, zeros


@triton.jit
def _visit_squared(exponents, own, d, alike, within, state):
    h, some = _hinge(own, d, alike, within)
    return (
        tl.where(alike, state[0] + h * h, state[0]),
        tl.where(alike, state[1], state[1] + h * h),
        tl.where(alike, state[2] + h, state[2]),
        tl.where(alike, state[3], state[3] + h),
        tl.where(alike, state[4] + some, state[4]),
        tl.where(alike, state[5], state[5] + some),
    )


@triton.jit
def _reduce_squared(state, labels):
    return (
        tl.sum(state[0], 1),
        tl.sum(state[1], 1),
        tl.sum(state[2], 1),
        tl.sum(state[3], 1),
        count(state[4]),
        count(state[5]),
    )


@triton.jit
def _begin_logistic(rows: tl.constexpr, columns: tl.constexpr):
    return (tl.zeros((rows, columns), tl.float32),)


@triton.jit
def _visit_logistic(exponents, own, d, alike, within, state):
    pe, ne = exponents.positive, exponents.negative
    e = tl.where(alike, exponents.slope(pe, d) * (d - pe[1]), exponents.slope(ne, d) * (d - ne[1]))
    return (state[0] + tl.where(within, softplus(e), 0.0),)


@triton.jit
def _reduce_logistic(state, labels):
    return (tl.sum(state[0], 1),)


@triton.jit
def _begin_log_sums(rows: tl.constexpr, columns: tl.constexpr):
    """Of four columns as `soft` has it of a row, but for the largest of no exponents: a number from
    which numbers can be taken."""
    least = tl.full((rows, columns // _GROUP), _LEAST, tl.float32)
    zeros = tl.zeros((rows, columns // _GROUP), tl.float32)
    return least, zeros, least, zeros, zeros


@triton.jit
def _grouped(values):
    """(BM, BN // 4, 4) of (BM, BN): what one thread has."""
    return tl.reshape(values, (values.shape[0], values.shape[1] // _GROUP, _GROUP))


@triton.jit
def _visit_log_sums(exponents, own, d, alike, within, state):
    pe, ne = exponents.positive, exponents.negative
    e_p, e_n = exponents.slope(pe, d) * (d - pe[1]), exponents.slope(ne, d) * (d - ne[1])
    positive, negative = alike & within, (alike == 0) & within
    sum_p = tl.sum(_grouped(tl.where(positive, e_p, 0.0)), 2)
    e_p = _grouped(tl.where(positive, e_p, float("-inf")))
    e_n = _grouped(tl.where(negative, e_n, float("-inf")))
    top_p, top_n = tl.maximum(state[0], tl.max(e_p, 2)), tl.maximum(state[2], tl.max(e_n, 2))
    # One exponential a pair, which is of one kind.
    share = exp_or_0(tl.maximum(e_p - top_p[:, :, None], e_n - top_n[:, :, None]))
    share_p = tl.where(e_p > float("-inf"), share, 0.0)
    return (
        top_p,
        state[1] * exp_or_0(state[0] - top_p) + tl.sum(share_p, 2),
        top_n,
        state[3] * exp_or_0(state[2] - top_n) + tl.sum(share - share_p, 2),
        state[4] + sum_p,
    )


@triton.jit
def _visit_mined(exponents, own, d, alike, within, state):
    kept = within & tl.where(alike, d > coefficient(own, 0), d < coefficient(own, 1))
    return _visit_log_sums(exponents, own, d, alike, kept, state)


@triton.jit
def _log_sum(top, total):
    new = tl.max(top, 1)
    total = tl.sum(total * tl.exp(top - new[:, None]), 1)
    return tl.where(new > _LEAST, new, float("-inf")), total


@triton.jit
def _reduce_log_sums(state, labels):
    top_p, total_p = _log_sum(state[0], state[1])
    top_n, total_n = _log_sum(state[2], state[3])
    return top_p, total_p, top_n, total_n, tl.sum(state[4], 1)


@triton.jit
def _finish_log_sums(state):
    return state[0] + tl.log(state[1]), state[2] + tl.log(state[3]), state[4]


@triton.jit
def _begin_hardness(rows: tl.constexpr, columns: tl.constexpr):
    """Log-sums, and that of the weights of negatives."""
    least = tl.full((rows, columns // _GROUP), _LEAST, tl.float32)
    zeros = tl.zeros((rows, columns // _GROUP), tl.float32)
    return least, zeros, least, zeros, zeros, least, zeros


@triton.jit
def _visit_hardness(exponents, own, d, alike, within, state):
    ne = exponents.negative
    e = exponents.slope(ne, d) * (d - ne[1]) * coefficient(own, 0)
    e = _grouped(tl.where((alike == 0) & within, e, float("-inf")))
    top = tl.maximum(state[5], tl.max(e, 2))
    total = state[6] * exp_or_0(state[5] - top) + tl.sum(exp_or_0(e - top[:, :, None]), 2)
    sums = state[0], state[1], state[2], state[3], state[4]
    sums = _visit_log_sums(exponents, own, d, alike, within, sums)
    return sums[0], sums[1], sums[2], sums[3], sums[4], top, total


@triton.jit
def _reduce_hardness(state, labels):
    top_p, total_p = _log_sum(state[0], state[1])
    top_n, total_n = _log_sum(state[2], state[3])
    top, total = _log_sum(state[5], state[6])
    return top_p, total_p, top_n, total_n, tl.sum(state[4], 1), top, total


@triton.jit
def _empty_hardness(count: tl.constexpr):
    nothing, zeros = tl.full((count,), float("-inf"), tl.float32), tl.zeros((count,), tl.float32)
    return nothing, zeros, nothing, zeros, zeros, nothing, zeros


@triton.jit
def _merge_hardness(state, other):
    top_p, total_p = soft.merged_log_sum(state[0], state[1], other[0], other[1])
    top_n, total_n = soft.merged_log_sum(state[2], state[3], other[2], other[3])
    top, total = soft.merged_log_sum(state[5], state[6], other[5], other[6])
    return top_p, total_p, top_n, total_n, state[4] + other[4], top, total


@triton.jit
def _finish_hardness(state):
    pos_lse, neg_lse = state[0] + tl.log(state[1]), state[2] + tl.log(state[3])
    return pos_lse, neg_lse, state[4], state[5] + tl.log(state[6])


@triton.jit
def _empty_terms(count: tl.constexpr):
    """Sums of terms, how many are positive, sums of derivatives by neg_lse."""
    zeros = tl.zeros((count,), tl.float32)
    return zeros, tl.zeros((count,), tl.int32), zeros


@triton.jit
def _merge_terms(state, other):
    return state[0] + other[0], state[1] + other[1], state[2] + other[2]


@triton.jit
def _begin_terms(rows: tl.constexpr, columns: tl.constexpr):
    zeros = tl.zeros((rows, columns), tl.float32)
    return zeros, tl.zeros((rows, columns), tl.int32), zeros


@triton.jit
def _visit_nt_xent(exponents, own, d, alike, within, state):
    exponent = exponents.positive
    e = exponents.slope(exponent, d) * (d - exponent[1])
    value, _, by_neg_lse = nt_xent(e, coefficient(own, 0), 0.0)
    positive = alike & within
    return (
        tl.where(positive, state[0] + value, state[0]),
        tl.where(positive & (value > 0), state[1] + 1, state[1]),
        tl.where(positive, state[2] + by_neg_lse, state[2]),
    )


@triton.jit
def _reduce_terms(state, labels):
    return tl.sum(state[0], 1), tl.sum(state[1], 1), tl.sum(state[2], 1)


@triton.jit
def _empty_statistics(count: tl.constexpr):
    """Of extremes, and sums of the distances of positives and of negatives."""
    p, p_column, n, n_column, high, low = empty_extremes(count)
    zeros = tl.zeros((count,), tl.float32)
    return p, p_column, n, n_column, high, low, zeros, zeros


@triton.jit
def _merge_statistics(state, other):
    p, p_column, n, n_column, high, low = merge_extremes(state, other)
    return p, p_column, n, n_column, high, low, state[6] + other[6], state[7] + other[7]


@triton.jit
def _begin_statistics(rows: tl.constexpr, columns: tl.constexpr):
    p, p_column, n, n_column, tied = begin_extremes(rows, columns)
    zeros = tl.zeros((rows, columns // _GROUP), tl.float32)
    # Whether equal ones were met comes last, as the sweep reads it there.
    return p, p_column, n, n_column, zeros, zeros, tied


@triton.jit
def _visit_statistics(exponents, own, d, alike, within, state):
    before = (state[0], state[1], state[2], state[3], state[6])
    p, p_column, n, n_column, tied = visit_extremes(exponents, own, d, alike, within, before)
    positive = tl.sum(_grouped(tl.where(alike & within, d, 0.0)), 2)
    negative = tl.sum(_grouped(tl.where((alike == 0) & within, d, 0.0)), 2)
    return p, p_column, n, n_column, state[4] + positive, state[5] + negative, tied


@triton.jit
def _reduce_statistics(state, labels):
    extremes = (state[0], state[1], state[2], state[3], state[6])
    p, p_column, n, n_column, high, low = reduce_extremes(extremes, labels)
    return p, p_column, n, n_column, high, low, tl.sum(state[4], 1), tl.sum(state[5], 1)


@triton.jit
def _empty_of_mined(count: tl.constexpr):
    """Two distances, which one program finds."""
    zeros = tl.zeros((count,), tl.float32)
    return zeros, zeros


@triton.jit
def _merge_of_mined(state, other):
    return state[0] + other[0], state[1] + other[1]


_HINGE, _SOFT = hinge.POLICIES[False], soft.PLAIN
POLICIES = {
    "hinge": PanelPolicy(
        _begin_hinge, _visit_hinge, _reduce_hinge, _HINGE.empty, _HINGE.merge, _same, 6
    ),
    "squared_hinge": PanelPolicy(
        _begin_squared, _visit_squared, _reduce_squared, _HINGE.empty, _HINGE.merge, _same, 6
    ),
    "logistic": PanelPolicy(
        _begin_logistic,
        _visit_logistic,
        _reduce_logistic,
        hinge.LOGISTIC.empty,
        hinge.LOGISTIC.merge,
        _same,
        1,
    ),
    "log_sums": PanelPolicy(
        _begin_log_sums,
        _visit_log_sums,
        _reduce_log_sums,
        _SOFT.empty,
        _SOFT.merge,
        _finish_log_sums,
        5,
    ),
    "mined_log_sums": PanelPolicy(
        _begin_log_sums,
        _visit_mined,
        _reduce_log_sums,
        _SOFT.empty,
        _SOFT.merge,
        _finish_log_sums,
        5,
    ),
    "hardness_sums": PanelPolicy(
        _begin_hardness,
        _visit_hardness,
        _reduce_hardness,
        _empty_hardness,
        _merge_hardness,
        _finish_hardness,
        7,
    ),
    "nt_xent": PanelPolicy(
        _begin_terms,
        _visit_nt_xent,
        _reduce_terms,
        _empty_terms,
        _merge_terms,
        _same,
        3,
        "positives",
    ),
    "extremes": PanelPolicy(
        begin_extremes,
        visit_extremes,
        reduce_extremes,
        empty_extremes,
        merge_extremes,
        extremes_of_panels.finish_extremes,
        6,
        "extremes",
    ),
    "nearest": PanelPolicy(
        begin_extremes,
        extremes_of_panels.visit_nearest,
        reduce_extremes,
        empty_extremes,
        merge_extremes,
        extremes_of_panels.finish_nearest,
        6,
        "extremes",
    ),
    "nearest_positive": PanelPolicy(
        extremes_of_panels.begin_positive,
        extremes_of_panels.visit_positive,
        extremes_of_panels.reduce_of_positive,
        extremes_of_panels.empty_positive,
        extremes_of_panels.merge_positive,
        extremes_of_panels.finish_one,
        2,
        "positives",
    ),
    "nearest_beyond": PanelPolicy(
        extremes_of_panels.begin_beyond,
        extremes_of_panels.visit_beyond,
        extremes_of_panels.reduce_beyond,
        extremes_of_panels.empty_beyond,
        extremes_of_panels.merge_nearest,
        extremes_of_panels.finish_one,
        4,
        "extremes",
    ),
    # Not of a loss: `statistics_steps` has what it is for.
    "statistics": PanelPolicy(
        _begin_statistics,
        _visit_statistics,
        _reduce_statistics,
        _empty_statistics,
        _merge_statistics,
        None,
        8,
        "extremes",
    ),
    # No tiles are visited: `hard_swap_kernels` has the kernel.
    "of_mined": PanelPolicy(
        None, None, None, _empty_of_mined, _merge_of_mined, _same, 2, "of_mined"
    ),
}
