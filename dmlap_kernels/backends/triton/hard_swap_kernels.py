"""Hardest triplets with swap: what pairs of a mined positive and a mined negative add.

An anchor has one such pair, so that programs go over anchors, and not over pairs of references.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.coefficients import coefficient_of
from dmlap_kernels.backends.triton.panel_kernels import values_of
from dmlap_kernels.backends.triton.row_kernels import loaded


@triton.jit
def _distance(total, how: tl.constexpr):
    """Of sums of squares, or of products."""
    if how.distance == "cosine":
        return 1.0 - total
    elif how.distance == "dot":
        return -total
    elif how.distance == "euclidean":
        return tl.sqrt(total)
    else:
        return total


@triton.jit
def _rows(base, rows, there, feature, inside, features):
    at = base + rows.to(tl.int64)[:, None] * features + feature[None, :]
    return tl.load(at, mask=there[:, None] & inside[None, :], other=0.0)


@triton.jit(do_not_specialize=["top", "anchors", "height"])
def of_mined_kernel(
    x, y,  # packed rows
    table, anchor_params,
    partials,  # (4, rows of the panel): distances of the negative to the anchor and the positive
    top, anchors, width,
    depth,  # features, without those for sums
    number0, number1, number2, number3, number4, number5,
    own_formula: tl.constexpr,  # gives the mined columns, -1 for none
    prefix: tl.constexpr, height, how: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of anchors of the panel. Both distances are found alike, so that equal ones
    are."""
    local = tl.program_id(0) * how.BM + tl.arange(0, how.BM)
    count = tl.minimum(anchors - top, height)
    row_in = local < count
    rows = top + local
    values = loaded(table, anchors, rows, row_in, prefix)
    param = tl.load(anchor_params + rows, mask=row_in, other=0.0)
    numbers = (number0, number1, number2, number3, number4, number5)
    mined = own_formula((), (), (), values, param, numbers)
    positive, negative = mined[0].to(tl.int32), mined[1].to(tl.int32)
    there = row_in & (positive >= 0) & (negative >= 0)
    an = tl.zeros((how.BM,), tl.float32)
    pn = tl.zeros((how.BM,), tl.float32)
    for k in range(0, depth, how.BK):
        feature = k + tl.arange(0, how.BK)
        inside = feature < depth
        a = _rows(x, rows, there, feature, inside, width)
        p = _rows(y, positive, there, feature, inside, width)
        n = _rows(y, negative, there, feature, inside, width)
        if how.norms:
            an += tl.sum((a - n) * (a - n), 1)
            pn += tl.sum((p - n) * (p - n), 1)
        else:
            an += tl.sum(a * n, 1)
            pn += tl.sum(p * n, 1)
    tl.store(partials + local, _distance(an, how), mask=row_in)
    tl.store(partials + count + local, _distance(pn, how), mask=row_in)


@triton.jit(do_not_specialize=["stride", "anchors", "columns"])
def swapped_kernel(
    y,  # packed rows
    product,  # (columns, width): less the gradient at y, but for what near pairs add
    table, header, grad, anchor_params,
    stride,  # of grad
    anchors, columns, width, depth,
    number0, number1, number2, number3, number4, number5,
    formula: tl.constexpr, prefix: tl.constexpr, groups: tl.constexpr, reduction: tl.constexpr,
    how: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of references, chunks of features."""
    rows = tl.program_id(0) * how.BM + tl.arange(0, how.BM)
    feature = tl.program_id(1) * how.BD + tl.arange(0, how.BD)
    inside = feature < depth
    numbers = (number0, number1, number2, number3, number4, number5)
    ends = (table, header, grad, stride, anchor_params, numbers, anchors)
    total = tl.zeros((how.BM, how.BD), tl.float32)
    for start in range(0, anchors, how.BN):
        anchor = start + tl.arange(0, how.BN)
        own = values_of(ends, anchor, anchor < anchors, formula, prefix, groups, reduction)
        positive, negative = own[0].to(tl.int32), own[1].to(tl.int32)
        v = -coefficient_of(own[4], own[5], how)
        live = (anchor < anchors) & (v != 0)
        # Of either row of the pair the weight, where it is in this block.
        is_positive = (rows[:, None] == positive[None, :]) & live[None, :]
        is_negative = (rows[:, None] == negative[None, :]) & live[None, :]
        of_pairs = tl.max((is_positive | is_negative).to(tl.int32), 0)
        if tl.max(of_pairs, 0) > 0:
            for j in range(0, how.BN):
                here = (tl.arange(0, how.BN) == j) & (of_pairs > 0)
                if tl.max(here.to(tl.int32), 0) > 0:
                    p = tl.max(tl.where(here, positive, -1), 0)
                    n = tl.max(tl.where(here, negative, -1), 0)
                    weight = tl.sum(tl.where(here, v, 0.0), 0)
                    at_p = y + p.to(tl.int64) * width + feature
                    at_n = y + n.to(tl.int64) * width + feature
                    of_p = tl.load(at_p, mask=inside, other=0.0)
                    of_n = tl.load(at_n, mask=inside, other=0.0)
                    if how.norms:
                        difference = weight * (of_p - of_n)[None, :]
                        total += tl.where((rows == p)[:, None], difference, 0.0)
                        total -= tl.where((rows == n)[:, None], difference, 0.0)
                    else:
                        total -= tl.where((rows == p)[:, None], weight * of_n[None, :], 0.0)
                        total -= tl.where((rows == n)[:, None], weight * of_p[None, :], 0.0)
    at = product + rows.to(tl.int64)[:, None] * width + feature[None, :]
    mask = (rows < columns)[:, None] & inside[None, :]
    tl.store(at, tl.load(at, mask=mask, other=0.0) - total, mask=mask)
