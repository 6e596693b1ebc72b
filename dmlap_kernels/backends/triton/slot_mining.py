"""The negative of each positive pair: semi-hard, or drawn by distance.

A window is W positives of every anchor, from `base` on; kernels have W as `window`. Buffers (B, W)
hold what belongs to a positive; entries of an anchor with fewer positives are neither written nor
read.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.gathered import (
    listed,
    ordered,
    sigmoid,
    softplus,
    tile,
)
from dmlap_kernels.backends.triton.tile import APART, ROWS_NAMED, SELF

NOTHING = tl.constexpr(2**63 - 1)  # in `best`
NEVER = tl.constexpr(-(2**63))  # in `fallback`
_LOW = tl.constexpr(0x7FFFFFFF)


@triton.jit
def own_column(itself, anchor, anchor_in, ITSELF: tl.constexpr):
    """The column that is the anchor itself, -1 for none; meaningless where ITSELF is APART."""
    if ITSELF == ROWS_NAMED:
        return tl.load(itself + anchor, mask=anchor_in, other=-1).to(tl.int64)
    else:
        return anchor


@triton.jit
def positives_of(first, last, itself, anchor, anchor_in, ITSELF: tl.constexpr):
    """First column of each anchor's class, how many positives are in it, and the column in it that
    is left out (one beyond all columns for none)."""
    start = tl.load(first + anchor, mask=anchor_in, other=0)
    stop = tl.load(last + anchor, mask=anchor_in, other=0)
    count = stop - start
    left_out = own_column(itself, anchor, anchor_in, ITSELF)
    if ITSELF == SELF:
        count = tl.maximum(count - 1, 0)
    elif ITSELF == ROWS_NAMED:
        within = (left_out >= start) & (left_out < stop)
        count -= within.to(tl.int32)
        left_out = tl.where(within, left_out, NOTHING)
    return start.to(tl.int64), count, left_out


@triton.jit
def positive_at(start, slot, left_out, ITSELF: tl.constexpr):
    """Column of the positive in a slot."""
    column = start + slot
    if ITSELF != APART:
        column += (column >= left_out).to(tl.int64)
    return column


@triton.jit
def negatives_of(own, other, column, column_in, itself, anchor, anchor_in, ITSELF: tl.constexpr):
    """Mask (ROWS, COLUMNS) of the columns that are of other classes ``other`` than the anchors'."""
    negative = (own[:, None] != other[None, :]) & column_in[None, :]
    if ITSELF == ROWS_NAMED:
        named = own_column(itself, anchor, anchor_in, ITSELF)
        negative = negative & (named[:, None] != column[None, :])
    return negative


@triton.jit(do_not_specialize=["anchors"])
def positive_distances(
    X, Y, first, last, itself, dp, best, base, window, anchors, width,
    MINED: tl.constexpr, ITSELF: tl.constexpr, DISTANCE: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """dp (B, W); with MINED clears `best` (B, W). Grid: blocks of anchors, groups of slots."""
    anchor = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start, count, left_out = positives_of(first, last, itself, anchor, anchor < anchors, ITSELF)
    lead = tl.program_id(1) * GROUP
    count = tl.minimum(count - base, window)
    for slot in range(lead, tl.minimum(lead + GROUP, tl.max(count, 0))):
        there = slot < count
        column = positive_at(start, base + slot, left_out, ITSELF)
        d = listed(X, anchor, Y, column, there, width, DISTANCE, CHUNK)
        at = anchor * window + slot
        tl.store(dp + at, d, mask=there)
        if MINED:
            tl.store(best + at, tl.full((ROWS,), NOTHING, tl.int64), mask=there)


@triton.jit(do_not_specialize=["anchors", "references"])
def semihard(
    X, Y, x_norms, y_norms, x_class, y_class, first, last, itself, dp, best, fallback,
    base, window, anchors, references, width, split,
    ITSELF: tl.constexpr, DISTANCE: tl.constexpr, PRECISION: tl.constexpr, NEAR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Keys of the nearest negative beyond each positive, and of each anchor's farthest negative.

    best (B, W) takes the least of (distance, column), fallback (B,) the greatest, ties to the
    lower column in both. Integers alone meet in memory, so their order there is of no account.
    Grid: blocks of anchors, groups of `split` columns.
    """
    anchor = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    anchor_in = anchor < anchors
    _, count, _ = positives_of(first, last, itself, anchor, anchor_in, ITSELF)
    count = tl.minimum(count - base, window)
    slots = tl.max(count, 0)
    if slots > 0:
        own = tl.load(x_class + anchor, mask=anchor_in, other=-2)
        far = tl.full((ROWS,), NEVER, tl.int64)
        begin = tl.program_id(1) * split
        for at in range(begin, tl.minimum(begin + split, references), COLUMNS):
            column = at + tl.arange(0, COLUMNS).to(tl.int64)
            column_in = column < references
            d = tile(
                X, x_norms, anchor, anchor_in, Y, y_norms, column, column_in, width,
                ITSELF == SELF, DISTANCE, PRECISION, NEAR, CHUNK,
            )  # fmt: skip
            other = tl.load(y_class + column, mask=column_in, other=-1)
            negative = negatives_of(
                own, other, column, column_in, itself, anchor, anchor_in, ITSELF
            )  # fmt: skip
            key = ordered(d) << 32
            greatest = tl.where(negative, key | (-column + _LOW)[None, :], NEVER)
            far = tl.maximum(far, tl.max(greatest, 1))
            key = tl.where(negative, key | column[None, :], NOTHING)
            for slot in range(0, slots):
                there = slot < count
                inner = tl.load(dp + anchor * window + slot, mask=there, other=0.0)
                beyond = tl.min(tl.where(d > inner[:, None], key, NOTHING), 1)
                tl.atomic_min(
                    best + anchor * window + slot, beyond, mask=there & (beyond < NOTHING)
                )
        tl.atomic_max(fallback + anchor, far, mask=anchor_in)


def mixed(seed: int) -> int:
    """`_mixed` of a number on the host, as int64."""
    mask = (1 << 64) - 1
    z = (seed + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    z ^= z >> 31
    return z - (1 << 64) if z >> 63 else z


@triton.jit
def _mixed(z):
    """The finaliser of splitmix64; int64 that wraps around stands for uint64."""
    z = z - 7046029254386353131
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


@triton.jit
def _log_weight(d, possible, low, high, closeness, farness, DISTANCE: tl.constexpr):
    """log of one over the density of distances between unit rows, float64; -inf where it is 0."""
    squared = d.to(tl.float64)
    if DISTANCE == "euclidean":
        squared = squared * squared
    elif DISTANCE == "cosine":
        squared = tl.maximum(2 * squared, 0.0)
    clipped = tl.where(squared > low, squared, low)
    rest = 1 - clipped / 4
    possible = possible & (squared < high) & (rest > 0) & (clipped > 0)
    weight = closeness * tl.log(tl.where(possible, clipped, 1.0))
    weight += farness * tl.log(tl.where(possible, rest, 1.0))
    return tl.where(possible, weight, float("-inf"))


@triton.jit(do_not_specialize=["anchors", "references", "seed"])
def draw(
    X, Y, x_norms, y_norms, x_class, y_class, first, last, itself, order, best, fallback,
    base, window, anchors, references, width, seed, low, high, closeness, farness,
    ITSELF: tl.constexpr, DISTANCE: tl.constexpr, PRECISION: tl.constexpr, NEAR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Draws the columns `best` (B, W), and keeps each anchor's last possible one in `fallback`,
    for a number that rounding puts at the total. Formats as in `semihard`. Grid: blocks of anchors.
    """
    anchor = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    anchor_in = anchor < anchors
    _, count, _ = positives_of(first, last, itself, anchor, anchor_in, ITSELF)
    count = tl.minimum(count - base, window)
    slots = tl.max(count, 0)
    if slots > 0:
        own = tl.load(x_class + anchor, mask=anchor_in, other=-2)
        numbers = _mixed(tl.load(order + anchor, mask=anchor_in, other=0) ^ seed)
        top = tl.full((ROWS,), float("-inf"), tl.float64)
        total = tl.zeros((ROWS,), tl.float64)
        for at in range(0, references, COLUMNS):
            column = at + tl.arange(0, COLUMNS).to(tl.int64)
            column_in = column < references
            d = tile(
                X, x_norms, anchor, anchor_in, Y, y_norms, column, column_in, width,
                ITSELF == SELF, DISTANCE, PRECISION, NEAR, CHUNK,
            )  # fmt: skip
            other = tl.load(y_class + column, mask=column_in, other=-1)
            negative = negatives_of(
                own, other, column, column_in, itself, anchor, anchor_in, ITSELF
            )  # fmt: skip
            weight = _log_weight(d, negative, low, high, closeness, farness, DISTANCE)
            higher = tl.maximum(top, tl.max(weight, 1))
            origin = tl.where(higher > float("-inf"), higher, 0.0)
            total = total * tl.exp(top - origin) + tl.sum(tl.exp(weight - origin[:, None]), 1)
            top = higher
        origin = tl.where(top > float("-inf"), top, 0.0)
        running = tl.zeros((ROWS,), tl.float64)
        final = tl.full((ROWS,), -1, tl.int64)
        for at in range(0, references, COLUMNS):
            column = at + tl.arange(0, COLUMNS).to(tl.int64)
            column_in = column < references
            d = tile(
                X, x_norms, anchor, anchor_in, Y, y_norms, column, column_in, width,
                ITSELF == SELF, DISTANCE, PRECISION, NEAR, CHUNK,
            )  # fmt: skip
            other = tl.load(y_class + column, mask=column_in, other=-1)
            negative = negatives_of(
                own, other, column, column_in, itself, anchor, anchor_in, ITSELF
            )  # fmt: skip
            weight = _log_weight(d, negative, low, high, closeness, farness, DISTANCE)
            share = tl.exp(weight - origin[:, None])
            sums = running[:, None] + tl.cumsum(share, 1)
            running += tl.sum(share, 1)
            possible = tl.where(share > 0, column[None, :], -1)
            final = tl.maximum(final, tl.max(possible, 1))
            for slot in range(0, slots):
                there = slot < count
                word = _mixed(numbers ^ (base + slot))
                number = ((word >> 11) & 0x1FFFFFFFFFFFFF).to(tl.float64) * 1.1102230246251565e-16
                passed = (share > 0) & (sums > (number * total)[:, None])
                found = tl.min(tl.where(passed, column[None, :], NOTHING), 1)
                tl.atomic_min(best + anchor * window + slot, found, mask=there & (found < NOTHING))
        tl.store(fallback + anchor, tl.where(final < 0, NEVER, -final + _LOW), mask=anchor_in)


@triton.jit
def swap_share(d, other, slope):
    """The part of a slope by the lesser of two distances that is the first one's: half of it where
    they are equal, as of `torch.minimum`."""
    return tl.where(d < other, slope, tl.where(d == other, 0.5 * slope, 0.0))


@triton.jit
def factor(by_distance, d, DISTANCE: tl.constexpr):
    """What x - y (of products: -y) counts with in the gradient at x; nothing at distance 0."""
    if DISTANCE == "euclidean":
        return tl.where(d > 0, by_distance / tl.where(d > 0, d, 1.0), 0.0)
    elif DISTANCE == "sqeuclidean":
        return 2 * by_distance
    else:
        return by_distance


@triton.jit(do_not_specialize=["anchors"], do_not_specialize_on_alignment=["weights"])
def mined_terms(
    X, Y, first, last, itself, dp, best, fallback, weights, sums, by_ap, by_an, by_pn, mined,
    base, window, margin, anchors, width,
    SMOOTH: tl.constexpr, SWAP: tl.constexpr, BACKWARD: tl.constexpr,
    ITSELF: tl.constexpr, DISTANCE: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Terms of the mined triplets. Grid: blocks of anchors.

    Forward: adds to sums (B, 5) the terms, and how many are positive, the hinges, and how many are
    positive, and the number of triplets. Backward: from weights (B,) of each anchor's terms the
    factors (see `factor`) by_ap, by_an, by_pn (B, W) of the three distances of a triplet, and its
    negative, mined (B, W).
    """
    anchor = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    anchor_in = anchor < anchors
    start, count, left_out = positives_of(first, last, itself, anchor, anchor_in, ITSELF)
    count = tl.minimum(count - base, window)
    slots = tl.max(count, 0)
    if slots > 0:
        spare = tl.load(fallback + anchor, mask=anchor_in, other=NEVER)
        exists = spare > NEVER
        spare = -(spare & _LOW) + _LOW
        if BACKWARD:
            upstream = tl.load(weights + anchor, mask=anchor_in, other=0.0)
        total = tl.zeros((ROWS,), tl.float64)
        hinges = tl.zeros((ROWS,), tl.float64)
        nonzero = tl.zeros((ROWS,), tl.int32)
        violated = tl.zeros((ROWS,), tl.int32)
        for slot in range(0, slots):
            at = anchor * window + slot
            there = (slot < count) & exists
            key = tl.load(best + at, mask=there, other=0)
            negative = tl.where(key < NOTHING, key & _LOW, spare)
            positive = positive_at(start, base + slot, left_out, ITSELF)
            d_ap = tl.load(dp + at, mask=there, other=0.0)
            d_an = listed(X, anchor, Y, negative, there, width, DISTANCE, CHUNK)
            nearest = d_an
            if SWAP:
                d_pn = listed(Y, positive, Y, negative, there, width, DISTANCE, CHUNK)
                nearest = tl.minimum(d_an, d_pn)
            excess = d_ap - nearest + margin
            if BACKWARD:
                slope = tl.where(excess > 0, upstream, 0.0)
                if SMOOTH:
                    slope = upstream * sigmoid(excess)
                tl.store(by_ap + at, factor(slope, d_ap, DISTANCE), mask=there)
                tl.store(mined + at, negative.to(tl.int32), mask=there)
                of_an = slope
                if SWAP:
                    of_an = swap_share(d_an, d_pn, slope)
                    tl.store(by_pn + at, factor(slope - of_an, d_pn, DISTANCE), mask=there)
                tl.store(by_an + at, factor(of_an, d_an, DISTANCE), mask=there)
                # An anchor without a negative has slots, but nothing in them.
                empty = (slot < count) & (exists == 0)
                tl.store(by_ap + at, tl.zeros((ROWS,), tl.float32), mask=empty)
                tl.store(mined + at, tl.full((ROWS,), -1, tl.int32), mask=empty)
            else:
                hinge = tl.where(there & (excess > 0), excess, 0.0)
                term = hinge
                if SMOOTH:
                    term = tl.where(there, softplus(excess), 0.0)
                total += term.to(tl.float64)
                hinges += hinge.to(tl.float64)
                nonzero += (term > 0).to(tl.int32)
                violated += (hinge > 0).to(tl.int32)
        if not BACKWARD:
            triplets = tl.where(exists, tl.maximum(count, 0), 0)
            add_sums(sums, anchor, anchor_in, total, nonzero, hinges, violated, triplets)


@triton.jit
def add_sums(sums, anchor, anchor_in, total, nonzero, hinges, violated, terms):
    """Adds five numbers to each row of sums (B, 5) float64, which no other program writes."""
    at = sums + anchor * 5
    tl.store(at, tl.load(at, mask=anchor_in) + total, mask=anchor_in)
    tl.store(at + 1, tl.load(at + 1, mask=anchor_in) + nonzero, mask=anchor_in)
    tl.store(at + 2, tl.load(at + 2, mask=anchor_in) + hinges, mask=anchor_in)
    tl.store(at + 3, tl.load(at + 3, mask=anchor_in) + violated, mask=anchor_in)
    tl.store(at + 4, tl.load(at + 4, mask=anchor_in) + terms, mask=anchor_in)
