"""Losses of a positive pair against every negative: all triplets, with or without swap; angular."""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.policies import sigmoid, softplus
from dmlap_kernels.backends.triton.positives import (
    GROUP,
    add_sums,
    negatives_of,
    positive_at,
    positives_of,
)
from dmlap_kernels.backends.triton.tile import (
    columns_of,
    distances,
    rows_of,
    tile_among_columns,
)


@triton.jit(do_not_specialize_on_alignment=["weights"])
def window_sums(
    pairs,
    window,
    weights,  # (rows,), or None for sums
    sums,  # (size / GROUP, rows, 5)
    slopes,
    terms: tl.constexpr,
    how: tl.constexpr,
):
    """Grid: blocks of anchors, groups of positives.

    Forward: adds to sums as `mined_terms` does; the number of terms is left to the caller.
    Backward: `Slopes.by_ap` from weights of each anchor's terms, for angular also `Slopes.by_sum`.
    """
    anchors = tl.program_id(0).to(tl.int64) * how.BM + tl.arange(0, how.BM)
    anchor_in = anchors < rows_of(pairs)
    start, count, left_out = positives_of(pairs, anchors, anchor_in, how)
    lead = tl.program_id(1) * GROUP
    count = tl.minimum(count - window.base - lead, GROUP)
    most = tl.max(count, 0)
    if most > 0:
        own = tl.load(window.x_class + anchors, mask=anchor_in, other=-2)
        place = tl.arange(0, GROUP)
        of_positives = tl.zeros((how.BM, GROUP), tl.float32)
        total = tl.zeros((how.BM,), tl.float64)
        hinges = tl.zeros((how.BM,), tl.float64)
        nonzero = tl.zeros((how.BM,), tl.int32)
        violated = tl.zeros((how.BM,), tl.int32)
        for c in range(0, columns_of(pairs), how.BN):
            columns = c + tl.arange(0, how.BN).to(tl.int64)
            column_in = columns < columns_of(pairs)
            d = distances(pairs, anchors, columns, how)
            negative = negatives_of(pairs, window, own, anchors, anchor_in, columns, column_in, how)
            for k in range(0, most):
                there = k < count
                live = negative & there[:, None]
                d_pn = d
                if terms.third:
                    positives = positive_at(start, window.base + lead + k, left_out, how)
                    d_pn = tile_among_columns(pairs, positives, there, columns, column_in, how)
                if terms.kind == "angular":
                    power = tl.exp(window.spread * (1 - d)) * tl.exp(window.spread * (1 - d_pn))
                    value = tl.sum(tl.where(live, power, 0.0), 1)
                else:
                    at = anchors * window.size + lead + k
                    d_ap = tl.load(window.distances + at, mask=there, other=0.0)
                    excess = d_ap[:, None] - tl.minimum(d, d_pn) + window.margin
                    hinge = tl.where(live & (excess > 0), excess, 0.0)
                    if weights is not None:
                        value = tl.sum(_slopes(hinge, excess, live, terms), 1)
                    else:
                        term = tl.where(live, softplus(excess), 0.0) if terms.smooth else hinge
                        value = tl.zeros((how.BM,), tl.float32)
                        total += tl.sum(term, 1).to(tl.float64)
                        hinges += tl.sum(hinge, 1).to(tl.float64)
                        nonzero += tl.sum((term > 0).to(tl.int32), 1)
                        violated += tl.sum((hinge > 0).to(tl.int32), 1)
                of_positives += tl.where((place == k)[None, :], value[:, None], 0.0)
        at = anchors[:, None] * window.size + lead + place[None, :]
        there = place[None, :] < count[:, None]
        if weights is not None:
            upstream = tl.load(weights + anchors, mask=anchor_in, other=0.0)[:, None]
        if terms.kind == "angular":
            if weights is not None:
                _store_angular_slopes(window, slopes, at, there, upstream, of_positives)
            else:
                term = _angular_terms(window, at, there, of_positives)
                total += tl.sum(term, 1).to(tl.float64)
                nonzero += tl.sum((term > 0).to(tl.int32), 1)
                hinges, violated = total, nonzero
        elif weights is not None:
            tl.store(slopes.by_ap + at, upstream * of_positives, mask=there)
        if weights is None:
            to = sums + tl.program_id(1).to(tl.int64) * rows_of(pairs) * 5
            add_sums(to, anchors, anchor_in, total, nonzero, hinges, violated, 0)


@triton.jit
def _slopes(hinge, excess, live, terms: tl.constexpr):
    if terms.smooth:
        return tl.where(live, sigmoid(excess), 0.0)
    else:
        return (hinge > 0).to(tl.float32)


@triton.jit
def _angular_exponents(window, at, there, of_negatives):
    """log of the sum ``of_negatives`` of each positive times e^(-pull s_ap)."""
    s = 1 - tl.load(window.distances + at, mask=there, other=0.0)
    return tl.log(tl.where(of_negatives > 0, of_negatives, 1.0)) - window.pull * s


@triton.jit
def _angular_terms(window, at, there, of_negatives):
    z = _angular_exponents(window, at, there, of_negatives)
    return tl.where(there & (of_negatives > 0), softplus(z), 0.0)


@triton.jit
def _store_angular_slopes(window, slopes, at, there, upstream, of_negatives):
    some = of_negatives > 0
    z = _angular_exponents(window, at, there, of_negatives)
    slope = upstream * tl.where(some, sigmoid(z), 0.0)
    tl.store(slopes.by_ap + at, window.pull * slope, mask=there)
    tl.store(slopes.by_sum + at, slope / tl.where(some, of_negatives, 1.0), mask=there)
