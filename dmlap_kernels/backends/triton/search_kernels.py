"""Searches over all products of two sides, as one panel: nearest rows, and hard classes.

Products are the library's; kernels make distances of them, those of near pairs from differences,
and choose in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.keys import ordered
from dmlap_kernels.backends.triton.panel_kernels import row_stride
from dmlap_kernels.backends.triton.tile import APART, Pairs, apart, of_products

_NOTHING = tl.constexpr(2**63 - 1)
_LOW = tl.constexpr(0xFFFFFFFF)


@triton.jit
def _distances(keys):
    """Of numbers whose upper half `ordered` made."""
    bits = (keys >> 32).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["count", "columns", "k"])
def nearest_of_panel_kernel(
    panel,
    x,  # packed rows (count, features), as is y
    y,
    x_norms,
    y_norms,
    distances,  # (count, k)
    indices,  # (count, k) int64
    count,
    columns,
    features,
    k,  # at most how.BN
    how: tl.constexpr,
):
    """Grid: blocks of rows. A neighbour is a number as in `nearest`: ties to the lower column."""
    pairs = Pairs(
        x, y, x_norms, y_norms, x_norms, x_norms, x_norms, count * 16, columns * 16, features
    )
    rows = tl.program_id(0) * how.BM + tl.arange(0, how.BM)
    row_in = rows < count
    place = tl.minimum(rows, count - 1)
    at = panel + place.to(tl.int64)[:, None] * row_stride(columns)
    best = tl.full((how.BM, how.BN), _NOTHING, tl.int64)
    for c in range(0, columns, how.BN):
        column = c + tl.arange(0, how.BN)
        column_in = column < columns
        there = row_in[:, None] & column_in[None, :]
        if how.itself != APART:
            there = there & apart(pairs, rows, row_in, column, column_in, how.itself)
        dots = tl.load(at + column[None, :], mask=column_in[None, :], other=0.0)
        d, _ = of_products(pairs, dots, rows, row_in, column, column_in, how.itself, how)
        keys = tl.where(there, (ordered(d) << 32) | column.to(tl.int64)[None, :], _NOTHING)
        beaten = tl.min(keys, 1) < tl.max(best, 1)
        if tl.max(beaten.to(tl.int32), 0) > 0:
            # Of an ascending and a descending list the lesser of each place are the least of both.
            best = tl.sort(tl.minimum(best, tl.sort(keys, descending=True)))
    lanes = tl.arange(0, how.BN)
    to = rows.to(tl.int64)[:, None] * k + lanes[None, :]
    mask = row_in[:, None] & (lanes < k)[None, :]
    tl.store(distances + to, _distances(best), mask=mask)
    tl.store(indices + to, best & _LOW, mask=mask)


@triton.jit
def _of_row(
    panel, x, norms, row, column, there, count, features, distance: tl.constexpr,
    recompute: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Distances (BN,) of a row to the rows ``column``, wherever these lie."""
    dots = tl.load(panel + row * row_stride(count) + column, mask=there, other=0.0)
    if distance == "cosine":
        q = 1.0 - dots
    else:
        total = tl.load(norms + row) + tl.load(norms + column, mask=there, other=0.0)
        q = tl.maximum(total - 2.0 * dots, 0.0, propagate_nan=tl.PropagateNan.ALL)
        near = there & (q < recompute * total)
        if tl.max(near.to(tl.int32), 0) > 0:
            exact = tl.zeros((BN,), tl.float32)
            for feature in range(0, features):
                mine = tl.load(x + row * features + feature)
                theirs = tl.load(x + column * features + feature, mask=near, other=0.0)
                exact += (mine - theirs) * (mine - theirs)
            q = tl.where(near, exact, q)
        if distance == "euclidean":
            q = tl.sqrt(q)
    return q


@triton.jit(do_not_specialize=["count", "k"])
def hard_classes_kernel(
    panel,
    x,  # packed rows (count, features)
    norms,
    labels,  # (count,) ascending
    order,  # (count,) int64, which row each is
    begins,  # (count + 1,) int32, where classes begin, and where the last one ends
    classes,  # (count,) int32, of each row the number of its class
    names,  # (count + 1,) int64: labels of classes, and at the end how many there are
    neighbors,  # (count, k) int64, as the others for each class
    scores,
    distances,
    count,
    features,
    k,
    margin,
    distance: tl.constexpr,
    recompute: tl.constexpr,
    BN: tl.constexpr,  # at least as many as there are classes
):
    """Grid: as many programs as rows. One takes a class, if there are so many, against all."""
    own = tl.program_id(0)
    number = tl.load(classes + tl.load(order + count - 1)) + 1
    if own == 0:
        tl.store(names + count, number.to(tl.int64))
    if own < number:
        lanes = tl.arange(0, BN)
        other = (lanes < number) & (lanes != own)
        begin = tl.load(begins + lanes, mask=other, other=0)
        size = tl.load(begins + lanes + 1, mask=other, other=0) - begin
        own_begin = tl.load(begins + own)
        own_size = tl.load(begins + own + 1) - own_begin
        total = tl.zeros((BN,), tl.float32)
        least = tl.full((BN,), float("inf"), tl.float32)
        for a in range(0, own_size):
            row = tl.load(order + own_begin + a)
            for b in range(0, tl.max(size, 0)):
                there = b < size
                column = tl.load(order + begin + b, mask=there, other=0)
                d = _of_row(
                    panel, x, norms, row, column, there, count, features, distance, recompute, BN
                )
                violation = margin - d
                total += tl.where(there & (violation > 0), violation, 0.0)
                least = tl.where(there & (d < least), d, least)
        score = total / tl.maximum(own_size * size, 1).to(tl.float32)
        # Of equal scores the nearest, of these the first.
        key = (ordered(least) << 32) | lanes.to(tl.int64)
        left = other
        tl.store(names + own, tl.load(labels + own_begin))
        to = own.to(tl.int64) * k
        for place in range(0, k):
            highest = tl.max(tl.where(left, score, -1.0), 0)
            chosen = tl.min(tl.where(left & (score == highest), key, _NOTHING), 0)
            which = chosen & _LOW
            tl.store(neighbors + to + place, tl.load(labels + tl.load(begins + which)))
            tl.store(scores + to + place, highest)
            tl.store(distances + to + place, _distances(chosen))
            left = left & (lanes != which)
