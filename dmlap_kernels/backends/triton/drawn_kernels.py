"""Triplets of every positive pair and a negative drawn by its distance, over panels of distances
as `triplet_kernels` has them.

References count class by class, in the order that every backend draws by: the first one whose
running sum of weights exceeds a random share of the total is the negative. Running sums are kept
for groups of references; which one of a group it is, a draw finds out.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.draws import (
    Density,
    log_weight,
    mixed_words,
    squares_drawn,
    uniform,
)
from dmlap_kernels.backends.triton.panel_kernels import row_stride
from dmlap_kernels.backends.triton.positives import swap_share
from dmlap_kernels.backends.triton.run_kernels import own_of, weights_of
from dmlap_kernels.backends.triton.tile import ROWS_NAMED
from dmlap_kernels.backends.triton.triplet_kernels import (
    add_at,
    distance_at,
    partners,
    slope_of,
    term_of,
)


@triton.jit
def _squares(at, order, place, begin, end, own, columns, density, how: tl.constexpr):
    """Squares of the distances of references at these places of the order, and which of these may
    be drawn. The anchor's class is from ``begin`` to ``end``."""
    there = (place < columns) & ((place < begin) | (place >= end))
    column = tl.load(order + place, mask=there, other=0)
    d = distance_at(at + column, there, how)
    return squares_drawn(d, there & (column != own), density, how)


@triton.jit
def _shares(squared, possible, density, top):
    return tl.where(possible, tl.exp(log_weight(squared, possible, density) - top), 0.0)


@triton.jit
def _sums_of(columns, BN: tl.constexpr):
    """How many numbers `shares_kernel` keeps of an anchor."""
    return tl.cdiv(columns, BN).to(tl.int64) + 2


@triton.jit(do_not_specialize=["top", "columns"])
def shares_kernel(
    distances,  # of the panel
    # (rows of the panel, groups + 2) float64: running sums of weights at the ends of groups, the
    # log of the largest weight, that sums are relative to, and the last place with a weight
    sums,
    order, places, begins, ends,  # as `runs_kernel` has them
    itself, top, columns, low, high, closeness, farness,
    BM: tl.constexpr,  # groups at a time
    BN: tl.constexpr,  # references of a group
    how: tl.constexpr,
):  # fmt: skip
    """Grid: anchors of the panel. Of an anchor without a positive nothing is kept."""
    row = top + tl.program_id(0)
    at = distances + tl.program_id(0) * row_stride(columns)
    to = sums + tl.program_id(0) * _sums_of(columns, BN)
    begin, end = tl.load(begins + row), tl.load(ends + row)
    own = own_of(itself, row, True, how)
    count = end - begin
    place_of_own = tl.load(places + own, mask=own >= 0, other=-1)
    if (place_of_own >= begin) & (place_of_own < end):
        count -= 1
    if count > 0:
        density = Density(low, high, closeness, farness)
        groups = tl.cdiv(columns, BN)
        places_of_tile = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
        nearest = tl.full((BM, BN), float("inf"), tl.float64)
        farthest = tl.full((BM, BN), float("-inf"), tl.float64)
        for first in range(0, columns, BM * BN):
            place = first + places_of_tile
            squared, possible = _squares(at, order, place, begin, end, own, columns, density, how)
            nearest = tl.minimum(nearest, tl.where(possible, squared, float("inf")))
            farthest = tl.maximum(farthest, tl.where(possible, squared, float("-inf")))
        # Between two distances a weight is less than at one of them.
        near, far = tl.min(tl.min(nearest, 1), 0), tl.max(tl.max(farthest, 1), 0)
        some = near <= far
        largest = tl.maximum(log_weight(near, some, density), log_weight(far, some, density))
        largest = tl.where(some, largest, 0.0)
        before = tl.zeros((), tl.float64)
        last = tl.full((), -1, tl.int32)
        for first in range(0, groups, BM):
            group = first + tl.arange(0, BM)
            place = first * BN + places_of_tile
            squared, possible = _squares(at, order, place, begin, end, own, columns, density, how)
            share = _shares(squared, possible, density, largest)
            part = tl.sum(share, 1)
            tl.store(to + group, before + tl.cumsum(part, 0), mask=group < groups)
            before += tl.sum(part, 0)
            last = tl.maximum(last, tl.max(tl.max(tl.where(share > 0, place, -1), 1), 0))
        tl.store(to + groups, largest)
        tl.store(to + groups + 1, last.to(tl.float64))


@triton.jit
def _numbers(anchor, place, begin, own, places, seed, how: tl.constexpr):
    """Random numbers of anchors' positives at these places."""
    key, rank = anchor.to(tl.int64), (place - begin).to(tl.int64)
    if how.itself == ROWS_NAMED:
        key = tl.where(own >= 0, own.to(tl.int64), key)
    # Of a class the anchor is no positive.
    skipped = tl.load(places + own, mask=own >= 0, other=-1)
    rank -= ((skipped >= begin) & (skipped < place)).to(tl.int64)
    return uniform(mixed_words(key ^ seed), rank)


@triton.jit
def _drawn(
    at, sums, anchor, place, there, begin, end, own, order, places, columns, seed, density,
    BM: tl.constexpr, BN: tl.constexpr, how: tl.constexpr,
):  # fmt: skip
    """Columns (BM,) of the negatives of anchors' positives at these places, -1 for none. All but
    the order are of the anchors, one or (BM,)."""
    lanes = tl.zeros_like(place)
    at, sums = at + lanes.to(tl.int64), sums + lanes.to(tl.int64)
    begin, end, own = begin + lanes, end + lanes, own + lanes
    groups = tl.cdiv(columns, BN)
    target = tl.load(sums + groups - 1, mask=there, other=0.0)
    there &= target > 0
    target *= _numbers(anchor + lanes, place, begin, own, places, seed, how)
    group = lanes
    for first in range(0, groups, 4 * BN):
        line = first + tl.arange(0, 4 * BN)[None, :]
        inside = there[:, None] & (line < groups)
        running = tl.load(sums[:, None] + line, mask=inside, other=0.0)
        group += tl.sum((inside & (running <= target[:, None])).to(tl.int32), 1)
    before = tl.load(sums + group - 1, mask=there & (group > 0), other=0.0)
    top = tl.load(sums + groups, mask=there, other=0.0)
    some = group[:, None] * BN + tl.arange(0, BN)[None, :]
    squared, possible = _squares(
        at[:, None], order, some, begin[:, None], end[:, None], own[:, None], columns, density, how
    )
    share = _shares(squared, possible & there[:, None], density, top[:, None])
    exceeds = (share > 0) & (before[:, None] + tl.cumsum(share, 1) > target[:, None])
    found = tl.min(tl.where(exceeds, some, columns), 1)
    # Rounding may leave none of the group, and of all groups.
    last = tl.load(sums + groups + 1, mask=there, other=0.0).to(tl.int32)
    found = tl.where(found < columns, found, last)
    return tl.load(order + found, mask=there, other=-1)


@triton.jit
def _seed(high, low):
    """Of two halves: what the kernel is compiled for must not depend on the number."""
    return (high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)


@triton.jit
def _to_negative(
    d_an, among, positive, found, there, columns, third: tl.constexpr, how: tl.constexpr
):
    """The distance of a positive to its negative, that of the anchor where it does not count."""
    if third:
        return distance_at(among + positive * row_stride(columns) + found, there, how)
    else:
        return d_an


@triton.jit(do_not_specialize=["seed_high", "seed_low", "top", "anchors", "columns"])
def drawn_terms_kernel(
    distances,
    among,  # as `triplets_kernel` has it
    sums, order, places, begins, ends, itself, seed_high, seed_low,
    table,  # (3, anchors): of each anchor the sum of terms, how many there are and are positive
    statistics,  # as `triplets_kernel` has it
    top, anchors, columns, margin, low, high, closeness, farness,
    smooth: tl.constexpr, third: tl.constexpr, told: tl.constexpr,
    BM: tl.constexpr,  # positives at a time
    BN: tl.constexpr,  # as `shares_kernel` has it
    how: tl.constexpr,
):  # fmt: skip
    """Grid: anchors of the panel."""
    row = top + tl.program_id(0)
    at = distances + tl.program_id(0) * row_stride(columns)
    sums += tl.program_id(0) * _sums_of(columns, BN)
    begin, end = tl.load(begins + row), tl.load(ends + row)
    own, seed = own_of(itself, row, True, how), _seed(seed_high, seed_low)
    density = Density(low, high, closeness, farness)
    total = tl.zeros((), tl.float64)
    terms = tl.zeros((), tl.int32)
    nonzero = tl.zeros((), tl.int32)
    hinges = tl.zeros((), tl.float64)
    violated = tl.zeros((), tl.int32)
    for first in range(begin, end, BM):
        positive, there = partners(order, first, end, own, BM)
        found = _drawn(
            at, sums, row, first + tl.arange(0, BM), there, begin, end, own, order, places,
            columns, seed, density, BM, BN, how,
        )  # fmt: skip
        there &= found >= 0
        d_ap, d_an = distance_at(at + positive, there, how), distance_at(at + found, there, how)
        d_pn = _to_negative(d_an, among, positive, found, there, columns, third, how)
        excess = d_ap - tl.minimum(d_an, d_pn) + margin
        term = tl.where(there, term_of(excess, smooth), 0.0)
        total += tl.sum(term, 0).to(tl.float64)
        terms += tl.sum(there.to(tl.int32), 0)
        nonzero += tl.sum((term > 0).to(tl.int32), 0)
        if told and smooth:
            hinge = tl.where(there, tl.maximum(excess, 0.0), 0.0)
            hinges += tl.sum(hinge, 0).to(tl.float64)
            violated += tl.sum((hinge > 0).to(tl.int32), 0)
    tl.store(table + row, total.to(tl.float32))
    tl.store(table + anchors + row, terms.to(tl.float32))
    tl.store(table + 2 * anchors + row, nonzero.to(tl.float32))
    if told:
        if smooth == 0:
            hinges, violated = total, nonzero
        tl.store(statistics + row, terms.to(tl.float64))
        tl.store(statistics + anchors + row, violated.to(tl.float64))
        tl.store(statistics + 2 * anchors + row, hinges)


@triton.jit
def _clear(to, columns, WIDE: tl.constexpr):
    for c in range(0, columns, WIDE):
        column = c + tl.arange(0, WIDE)
        tl.store(to + column, tl.zeros((WIDE,), tl.float32), mask=column < columns)


@triton.jit
def _add_thirds(
    at, to, distances, sums, upstream, row, begin, end, order_x, begins, ends, itself, order,
    places, columns, margin, seed, density, smooth: tl.constexpr, reduction: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, how: tl.constexpr,
):  # fmt: skip
    """Adds d loss / d d of a reference, as a positive of its class's anchors, and the negatives
    that these draw with it. Its distances are ``at``, its anchors from ``begin`` to ``end``."""
    table, header, grad, grad_stride, anchors = upstream
    place = tl.load(places + row)
    for first in range(begin, end, BM):
        anchor, there = partners(order_x, first, end, -1, BM)
        own = own_of(itself, anchor, there, how).to(tl.int32)
        there &= own != row
        of_anchor = distances + anchor * row_stride(columns)
        found = _drawn(
            of_anchor, sums + anchor * _sums_of(columns, BN), anchor.to(tl.int32),
            place + tl.zeros((BM,), tl.int32), there,
            tl.load(begins + anchor, mask=there, other=0),
            tl.load(ends + anchor, mask=there, other=0), own, order, places, columns, seed,
            density, BM, BN, how,
        )  # fmt: skip
        there &= found >= 0
        d_ap = distance_at(of_anchor + row, there, how)
        d_an, d_pn = distance_at(of_anchor + found, there, how), distance_at(at + found, there, how)
        weight = weights_of(table, header, grad, grad_stride, anchors, anchor, there, reduction)
        slope = weight * slope_of(d_ap - tl.minimum(d_an, d_pn) + margin, smooth)
        add_at(to, found, -swap_share(d_pn, d_an, slope), there)


@triton.jit(do_not_specialize=["seed_high", "seed_low", "stride", "top", "anchors", "columns"])
def drawn_weights_kernel(
    distances, among,
    weights,  # (rows of the panel, columns): d loss / d d of the pairs of their anchors alone
    sums, order, places, begins, ends, itself, seed_high, seed_low, table, header,
    grad,  # (), or (anchors,)
    stride,  # of grad
    top, anchors, columns, margin, low, high, closeness, farness,
    smooth: tl.constexpr, third: tl.constexpr, reduction: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, how: tl.constexpr,
):  # fmt: skip
    """As `drawn_terms_kernel`. Of a batch with itself, rows are those of positives, too."""
    row = top + tl.program_id(0)
    own_row = tl.program_id(0) * row_stride(columns)
    at, to = distances + own_row, weights + own_row
    sums_of_row = sums + tl.program_id(0) * _sums_of(columns, BN)
    begin, end = tl.load(begins + row), tl.load(ends + row)
    own, seed = own_of(itself, row, True, how), _seed(seed_high, seed_low)
    density = Density(low, high, closeness, farness)
    weight = weights_of(table, header, grad, stride, anchors, row, row < anchors, reduction)
    _clear(to, columns, 8 * BN)
    for first in range(begin, end, BM):
        positive, there = partners(order, first, end, own, BM)
        found = _drawn(
            at, sums_of_row, row, first + tl.arange(0, BM), there, begin, end, own, order, places,
            columns, seed, density, BM, BN, how,
        )  # fmt: skip
        there &= found >= 0
        d_ap, d_an = distance_at(at + positive, there, how), distance_at(at + found, there, how)
        d_pn = _to_negative(d_an, among, positive, found, there, columns, third, how)
        slope = weight * slope_of(d_ap - tl.minimum(d_an, d_pn) + margin, smooth)
        by_an = slope
        if third:
            by_an = swap_share(d_an, d_pn, slope)
        add_at(to, found, -by_an, there)
        tl.store(to + positive, slope, mask=there)
    if third and how.self_case:
        tl.debug_barrier()
        upstream = (table, header, grad, stride, anchors)
        _add_thirds(
            at, to, distances, sums, upstream, row, begin, end, order, begins, ends, itself, order,
            places, columns, margin, seed, density, smooth, reduction, BM, BN, how,
        )  # fmt: skip


@triton.jit(do_not_specialize=["seed_high", "seed_low", "stride", "anchors", "columns"])
def drawn_thirds_kernel(
    distances,  # (anchors, columns)
    among,
    weights,  # (columns, columns): d loss / d d of pairs of references
    order_x, x_begins, x_ends,  # of anchors, and of each reference where its class is among them
    sums, order, places, begins, ends, itself, seed_high, seed_low, table, header, grad, stride,
    anchors, columns, margin, low, high, closeness, farness,
    smooth: tl.constexpr, reduction: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    how: tl.constexpr,
):  # fmt: skip
    """Grid: references, as positives."""
    row = tl.program_id(0)
    own_row = row * row_stride(columns)
    to, upstream = weights + own_row, (table, header, grad, stride, anchors)
    _clear(to, columns, 8 * BN)
    _add_thirds(
        among + own_row, to, distances, sums, upstream, row, tl.load(x_begins + row),
        tl.load(x_ends + row), order_x, begins, ends, itself, order, places, columns, margin,
        _seed(seed_high, seed_low), Density(low, high, closeness, farness), smooth, reduction, BM,
        BN, how,
    )  # fmt: skip
