"""The negative of each positive pair: semi-hard, or drawn by distance."""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.coefficients import coefficient_of
from dmlap_kernels.backends.triton.draws import (
    log_weight,
    mixed_words,
    squares_drawn,
    uniform,
)
from dmlap_kernels.backends.triton.keys import ordered
from dmlap_kernels.backends.triton.policies import sigmoid, softplus
from dmlap_kernels.backends.triton.positives import (
    GROUP,
    LOW,
    NEVER,
    NOTHING,
    add_sums,
    negatives_of,
    positive_at,
    positives_of,
    swap_share,
)
from dmlap_kernels.backends.triton.tile import (
    among_columns,
    columns_of,
    distances,
    listed,
    rows_of,
)


@triton.jit
def positive_distances(pairs, window, mined: tl.constexpr, how: tl.constexpr):
    """Fills `Window.distances`, and if mined clears `Window.negatives`. Grid: blocks of anchors,
    groups of positives."""
    anchors = tl.program_id(0).to(tl.int64) * how.BM + tl.arange(0, how.BM)
    start, count, left_out = positives_of(pairs, anchors, anchors < rows_of(pairs), how)
    lead = tl.program_id(1) * GROUP
    count = tl.minimum(count - window.base, window.size)
    for k in range(lead, tl.minimum(lead + GROUP, tl.max(count, 0))):
        there = k < count
        columns = positive_at(start, window.base + k, left_out, how)
        d = listed(pairs, anchors, columns, there, how)
        at = anchors * window.size + k
        tl.store(window.distances + at, d, mask=there)
        if mined:
            tl.store(window.negatives + at, tl.full((how.BM,), NOTHING, tl.int64), mask=there)


@triton.jit
def semihard(pairs, window, span, how: tl.constexpr):
    """Keys of the nearest negative beyond each positive, and of each anchor's farthest negative.

    `Window.negatives` takes the least of (distance, column), `Window.fallback` the greatest, ties
    to the lower column in both. Integers alone meet in memory, so their order there is of no
    account. Grid: blocks of anchors, groups of `span` columns.
    """
    anchors = tl.program_id(0).to(tl.int64) * how.BM + tl.arange(0, how.BM)
    anchor_in = anchors < rows_of(pairs)
    _, count, _ = positives_of(pairs, anchors, anchor_in, how)
    count = tl.minimum(count - window.base, window.size)
    most = tl.max(count, 0)
    if most > 0:
        own = tl.load(window.x_class + anchors, mask=anchor_in, other=-2)
        far = tl.full((how.BM,), NEVER, tl.int64)
        begin = tl.program_id(1) * span
        for c in range(begin, tl.minimum(begin + span, columns_of(pairs)), how.BN):
            columns = c + tl.arange(0, how.BN).to(tl.int64)
            column_in = columns < columns_of(pairs)
            d = distances(pairs, anchors, columns, how)
            negative = negatives_of(pairs, window, own, anchors, anchor_in, columns, column_in, how)
            key = ordered(d) << 32
            greatest = tl.where(negative, key | (-columns + LOW)[None, :], NEVER)
            far = tl.maximum(far, tl.max(greatest, 1))
            key = tl.where(negative, key | columns[None, :], NOTHING)
            for k in range(0, most):
                there = k < count
                at = anchors * window.size + k
                inner = tl.load(window.distances + at, mask=there, other=0.0)
                beyond = tl.min(tl.where(d > inner[:, None], key, NOTHING), 1)
                tl.atomic_min(window.negatives + at, beyond, mask=there & (beyond < NOTHING))
        tl.atomic_max(window.fallback + anchors, far, mask=anchor_in)


@triton.jit
def _log_weights(pairs, window, own, anchors, anchor_in, columns, density, how: tl.constexpr):
    """log of one over the density of a tile's distances, float64; -inf where it is 0."""
    column_in = columns < columns_of(pairs)
    d = distances(pairs, anchors, columns, how)
    negative = negatives_of(pairs, window, own, anchors, anchor_in, columns, column_in, how)
    squared, possible = squares_drawn(d, negative, density, how)
    return log_weight(squared, possible, density)


@triton.jit(do_not_specialize=["seed"])
def draw(pairs, window, order, seed, density, how: tl.constexpr):
    """Draws `Window.negatives`, and keeps each anchor's last possible one in `Window.fallback`, for
    a number that rounding puts at the total. ``order`` (rows,) are numbers of the anchors. Grid:
    blocks of anchors.
    """
    anchors = tl.program_id(0).to(tl.int64) * how.BM + tl.arange(0, how.BM)
    anchor_in = anchors < rows_of(pairs)
    _, count, _ = positives_of(pairs, anchors, anchor_in, how)
    count = tl.minimum(count - window.base, window.size)
    most = tl.max(count, 0)
    if most > 0:
        own = tl.load(window.x_class + anchors, mask=anchor_in, other=-2)
        numbers = mixed_words(tl.load(order + anchors, mask=anchor_in, other=0) ^ seed)
        top = tl.full((how.BM,), float("-inf"), tl.float64)
        total = tl.zeros((how.BM,), tl.float64)
        for c in range(0, columns_of(pairs), how.BN):
            columns = c + tl.arange(0, how.BN).to(tl.int64)
            weight = _log_weights(pairs, window, own, anchors, anchor_in, columns, density, how)
            higher = tl.maximum(top, tl.max(weight, 1))
            origin = tl.where(higher > float("-inf"), higher, 0.0)
            total = total * tl.exp(top - origin) + tl.sum(tl.exp(weight - origin[:, None]), 1)
            top = higher
        origin = tl.where(top > float("-inf"), top, 0.0)
        running = tl.zeros((how.BM,), tl.float64)
        final = tl.full((how.BM,), -1, tl.int64)
        for c in range(0, columns_of(pairs), how.BN):
            columns = c + tl.arange(0, how.BN).to(tl.int64)
            weight = _log_weights(pairs, window, own, anchors, anchor_in, columns, density, how)
            share = tl.exp(weight - origin[:, None])
            sums = running[:, None] + tl.cumsum(share, 1)
            running += tl.sum(share, 1)
            possible = tl.where(share > 0, columns[None, :], -1)
            final = tl.maximum(final, tl.max(possible, 1))
            for k in range(0, most):
                there = k < count
                number = uniform(numbers, window.base + k)
                passed = (share > 0) & (sums > (number * total)[:, None])
                found = tl.min(tl.where(passed, columns[None, :], NOTHING), 1)
                at = anchors * window.size + k
                tl.atomic_min(window.negatives + at, found, mask=there & (found < NOTHING))
        last = tl.where(final < 0, NEVER, -final + LOW)
        tl.store(window.fallback + anchors, last, mask=anchor_in)


@triton.jit(do_not_specialize_on_alignment=["weights"])
def mined_terms(
    pairs,
    window,
    weights,  # (rows,), or None for sums
    sums,  # (rows, 5)
    slopes,
    terms: tl.constexpr,
    how: tl.constexpr,
):
    """Terms of the mined triplets. Grid: blocks of anchors.

    Forward: adds to sums the terms, and how many are positive, the hinges, and how many are
    positive, and the number of triplets. Backward: from weights of each anchor's terms the slopes.
    """
    anchors = tl.program_id(0).to(tl.int64) * how.BM + tl.arange(0, how.BM)
    anchor_in = anchors < rows_of(pairs)
    start, count, left_out = positives_of(pairs, anchors, anchor_in, how)
    count = tl.minimum(count - window.base, window.size)
    most = tl.max(count, 0)
    if most > 0:
        spare = tl.load(window.fallback + anchors, mask=anchor_in, other=NEVER)
        exists = spare > NEVER
        spare = -(spare & LOW) + LOW
        if weights is not None:
            upstream = tl.load(weights + anchors, mask=anchor_in, other=0.0)
        total = tl.zeros((how.BM,), tl.float64)
        hinges = tl.zeros((how.BM,), tl.float64)
        nonzero = tl.zeros((how.BM,), tl.int32)
        violated = tl.zeros((how.BM,), tl.int32)
        for k in range(0, most):
            at = anchors * window.size + k
            there = (k < count) & exists
            key = tl.load(window.negatives + at, mask=there, other=0)
            negatives = tl.where(key < NOTHING, key & LOW, spare)
            d_ap = tl.load(window.distances + at, mask=there, other=0.0)
            d_an = listed(pairs, anchors, negatives, there, how)
            d_pn = d_an
            if terms.third:
                positives = positive_at(start, window.base + k, left_out, how)
                d_pn = listed(among_columns(pairs), positives, negatives, there, how)
            excess = d_ap - tl.minimum(d_an, d_pn) + window.margin
            if weights is not None:
                slope = tl.where(excess > 0, upstream, 0.0)
                if terms.smooth:
                    slope = upstream * sigmoid(excess)
                _store_slopes(slopes, at, there, d_ap, d_an, d_pn, slope, terms, how)
                tl.store(slopes.negatives + at, negatives.to(tl.int32), mask=there)
                # An anchor without a negative has positives, but no triplets.
                empty = (k < count) & (exists == 0)
                tl.store(slopes.by_ap + at, tl.zeros((how.BM,), tl.float32), mask=empty)
                tl.store(slopes.negatives + at, tl.full((how.BM,), -1, tl.int32), mask=empty)
            else:
                hinge = tl.where(there & (excess > 0), excess, 0.0)
                term = hinge
                if terms.smooth:
                    term = tl.where(there, softplus(excess), 0.0)
                total += term.to(tl.float64)
                hinges += hinge.to(tl.float64)
                nonzero += (term > 0).to(tl.int32)
                violated += (hinge > 0).to(tl.int32)
        if weights is None:
            triplets = tl.where(exists, tl.maximum(count, 0), 0)
            add_sums(sums, anchors, anchor_in, total, nonzero, hinges, violated, triplets)


@triton.jit
def _store_slopes(
    slopes, at, there, d_ap, d_an, d_pn, slope, terms: tl.constexpr, how: tl.constexpr
):
    tl.store(slopes.by_ap + at, coefficient_of(slope, d_ap, how), mask=there)
    by_an = slope
    if terms.third:
        by_an = swap_share(d_an, d_pn, slope)
        tl.store(slopes.by_pn + at, coefficient_of(slope - by_an, d_pn, how), mask=there)
    tl.store(slopes.by_an + at, coefficient_of(by_an, d_an, how), mask=there)
