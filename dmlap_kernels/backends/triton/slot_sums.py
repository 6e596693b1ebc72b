"""Losses of a positive pair against every negative: all triplets, with or without swap; angular.

Windows and their buffers are those of `slot_mining`; a program takes GROUP slots of a window.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.gathered import sigmoid, softplus, tile
from dmlap_kernels.backends.triton.slot_mining import (
    add_sums,
    negatives_of,
    positive_at,
    positives_of,
)
from dmlap_kernels.backends.triton.tile import SELF

# What a (positive pair, negative) adds. PLAIN and SWAPPED are triplets, of two or three distances.
MINED = tl.constexpr(0)
PLAIN = tl.constexpr(1)
SWAPPED = tl.constexpr(2)
ANGULAR = tl.constexpr(3)


@triton.jit(do_not_specialize=["anchors", "references"], do_not_specialize_on_alignment=["weights"])
def slot_sums(
    X, Y, x_norms, y_norms, x_class, y_class, first, last, itself, dp, weights, sums, by_ap, share,
    base, window, margin, spread, pull, anchors, references, width,
    KIND: tl.constexpr, SMOOTH: tl.constexpr, BACKWARD: tl.constexpr,
    ITSELF: tl.constexpr, DISTANCE: tl.constexpr, PRECISION: tl.constexpr, NEAR: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of anchors, groups of slots.

    Forward: adds to sums (W / GROUP, B, 5) as `mined_terms` does; the number of terms is left
    to the caller. Backward: by_ap (B, W), the derivatives of the loss at the distances of
    positive pairs from weights (B,) of each anchor's terms; for ANGULAR also share (B, W),
    those at the sums over negatives.
    """
    anchor = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    anchor_in = anchor < anchors
    start, count, left_out = positives_of(first, last, itself, anchor, anchor_in, ITSELF)
    lead = tl.program_id(1) * GROUP
    count = tl.minimum(count - base - lead, GROUP)
    slots = tl.max(count, 0)
    if slots > 0:
        own = tl.load(x_class + anchor, mask=anchor_in, other=-2)
        place = tl.arange(0, GROUP)
        of_slots = tl.zeros((ROWS, GROUP), tl.float32)
        total = tl.zeros((ROWS,), tl.float64)
        hinges = tl.zeros((ROWS,), tl.float64)
        nonzero = tl.zeros((ROWS,), tl.int32)
        violated = tl.zeros((ROWS,), tl.int32)
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
            for slot in range(0, slots):
                there = slot < count
                live = negative & there[:, None]
                nearest = d
                if KIND != PLAIN:
                    positive = positive_at(start, base + lead + slot, left_out, ITSELF)
                    d_pn = tile(
                        Y, y_norms, positive, there, Y, y_norms, column, column_in, width,
                        True, DISTANCE, PRECISION, NEAR, CHUNK,
                    )  # fmt: skip
                    nearest = tl.minimum(d, d_pn)
                if KIND == ANGULAR:
                    power = tl.exp(spread * (1 - d)) * tl.exp(spread * (1 - d_pn))
                    value = tl.sum(tl.where(live, power, 0.0), 1)
                else:
                    d_ap = tl.load(dp + anchor * window + lead + slot, mask=there, other=0.0)
                    excess = d_ap[:, None] - nearest + margin
                    hinge = tl.where(live & (excess > 0), excess, 0.0)
                    term = hinge
                    if SMOOTH:
                        term = tl.where(live, softplus(excess), 0.0)
                    if BACKWARD:
                        slope = (hinge > 0).to(tl.float32)
                        if SMOOTH:
                            slope = tl.where(live, sigmoid(excess), 0.0)
                        value = tl.sum(slope, 1)
                    else:
                        value = tl.zeros((ROWS,), tl.float32)
                        total += tl.sum(term, 1).to(tl.float64)
                        hinges += tl.sum(hinge, 1).to(tl.float64)
                        nonzero += tl.sum((term > 0).to(tl.int32), 1)
                        violated += tl.sum((hinge > 0).to(tl.int32), 1)
                of_slots += tl.where((place == slot)[None, :], value[:, None], 0.0)
        at_slot = anchor[:, None] * window + lead + place[None, :]
        there = place[None, :] < count[:, None]
        if BACKWARD:
            upstream = tl.load(weights + anchor, mask=anchor_in, other=0.0)[:, None]
        if KIND == ANGULAR:
            s = 1 - tl.load(dp + at_slot, mask=there, other=0.0)
            some = of_slots > 0
            z = tl.log(tl.where(some, of_slots, 1.0)) - pull * s
            if BACKWARD:
                slope = upstream * tl.where(some, sigmoid(z), 0.0)
                tl.store(by_ap + at_slot, pull * slope, mask=there)
                tl.store(share + at_slot, slope / tl.where(some, of_slots, 1.0), mask=there)
            else:
                term = tl.where(there & some, softplus(z), 0.0)
                total += tl.sum(term, 1).to(tl.float64)
                nonzero += tl.sum((term > 0).to(tl.int32), 1)
                hinges, violated = total, nonzero
        elif BACKWARD:
            tl.store(by_ap + at_slot, upstream * of_slots, mask=there)
        if not BACKWARD:
            to = sums + tl.program_id(1).to(tl.int64) * anchors * 5
            add_sums(to, anchor, anchor_in, total, nonzero, hinges, violated, 0)
