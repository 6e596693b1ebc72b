"""SoftTriple over a panel: the products of some anchors with the centres of all classes.

Lanes are anchors and classes, and go through the centres of their class: the k-th of each at a
time, wherever it stands among the caller's. Of the similarities s of an anchor to a class's centres
a lane makes their mean, weighted by the softmax of s / gamma. Similarities are the products; a
constant makes no difference.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.panel_kernels import row_stride
from dmlap_kernels.backends.triton.policies import sigmoid, softplus
from dmlap_kernels.backends.triton.row_kernels import group_weights

_SIZES = ["top", "anchors", "columns", "splits", "height"]
# In the place of -inf, so that it may be subtracted.
_LOWEST = tl.constexpr(-3.0e38)


@triton.jit(do_not_specialize=["columns"])
def classes_kernel(
    labels,  # (columns,) ascending
    begins,  # (columns + 1,) int32, first centres of the classes, and where the last one ends
    names,  # (columns,) int64, labels of the classes
    count,  # (1,) int32, how many classes there are
    columns,
    BLOCK: tl.constexpr,
):
    """Which of the sorted centres belong together; of one program."""
    number = 0
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        there = at < columns
        label = tl.load(labels + at, mask=there, other=0)
        before = tl.load(labels + at - 1, mask=there & (at > 0), other=0)
        new = there & ((at == 0) | (label != before))
        place = number + tl.cumsum(new.to(tl.int32), 0) - 1
        tl.store(begins + place, at, mask=new)
        tl.store(names + place, label, mask=new)
        number += tl.sum(new.to(tl.int32), 0)
    tl.store(begins + number, columns)
    tl.store(count, number)


@triton.jit
def _ends(begins, group, exists):
    begin = tl.load(begins + group, mask=exists, other=0)
    return begin, tl.load(begins + group + 1, mask=exists, other=0)


@triton.jit
def _similarities(at, order, begin, end, row_in, k):
    """Of anchors to the k-th centres of classes (BM, BN), where they are, and the mask of those
    that exist."""
    there = begin + k < end
    column = tl.load(order + begin + k, mask=there, other=0)
    where = at + column[None, :]
    s = tl.load(where, mask=there[None, :], other=0.0)
    return s, where, row_in[:, None] & there[None, :]


@triton.jit
def _scores(at, order, begin, end, row_in, sharpness, BM: tl.constexpr, BN: tl.constexpr):
    """Of anchors and classes (BM, BN) the mean similarity, the greatest s / gamma, and the sum of
    e^(s / gamma - greatest)."""
    greatest = tl.full((BM, BN), _LOWEST, tl.float32)
    total = tl.zeros((BM, BN), tl.float32)
    weighted = tl.zeros((BM, BN), tl.float32)
    for k in range(0, tl.max(end - begin, 0)):
        s, _, there = _similarities(at, order, begin, end, row_in, k)
        scaled = tl.where(there, sharpness * s, _LOWEST)
        higher = tl.maximum(greatest, scaled)
        before = tl.exp(greatest - higher)
        here = tl.where(there, tl.exp(scaled - higher), 0.0)
        total = total * before + here
        weighted = weighted * before + here * s
        greatest = higher
    total = tl.where(total > 0, total, 1.0)
    return weighted / total, greatest, total


@triton.jit
def _span(count, splits, BN: tl.constexpr):
    """Classes of a split, whole blocks."""
    return tl.cdiv(tl.cdiv(count, BN), splits) * BN


@triton.jit(do_not_specialize=_SIZES)
def centres_kernel(
    panel,
    labels,  # (anchors,) int64
    order,  # (columns,) int64, the centres class by class
    begins,
    names,
    count,
    partials,  # (4, splits, rows of the panel), see below
    top,
    anchors,
    columns,
    splits,
    la,
    sharpness,  # 1 / gamma
    margin,
    height,  # of panels, rows at most
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Of each anchor: the logit of its class, and how many there are; the greatest of the other
    logits, and the sum of e^(logit - greatest)."""
    number, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    local = number * BM + tl.arange(0, BM)
    row_in = (local < height) & (top + local < anchors)
    label = tl.load(labels + top + local, mask=row_in, other=0)
    # Rows that do not exist read the first one.
    at = panel + tl.where(row_in, local, 0)[:, None] * row_stride(columns)
    classes = tl.load(count)
    span = _span(classes, splits, BN)
    own_logit = tl.zeros((BM,), tl.float32)
    owned = tl.zeros((BM,), tl.float32)
    greatest = tl.full((BM,), _LOWEST, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    for c in range(split * span, tl.minimum((split + 1) * span, classes), BN):
        group = c + tl.arange(0, BN)
        exists = group < classes
        begin, end = _ends(begins, group, exists)
        name = tl.load(names + group, mask=exists, other=0)
        mean, _, _ = _scores(at, order, begin, end, row_in, sharpness, BM, BN)
        own = exists[None, :] & (label[:, None] == name[None, :])
        own_logit += tl.sum(tl.where(own, la * (mean - margin), 0.0), 1)
        owned += tl.sum(own.to(tl.float32), 1)
        others = exists[None, :] & (own == 0)
        logit = tl.where(others, la * mean, _LOWEST)
        higher = tl.maximum(greatest, tl.max(logit, 1))
        here = tl.where(others, tl.exp(logit - higher[:, None]), 0.0)
        total = total * tl.exp(greatest - higher) + tl.sum(here, 1)
        greatest = higher
    rows = tl.minimum(anchors - top, height)
    part = splits.to(tl.int64) * rows
    to = partials + split.to(tl.int64) * rows + local
    tl.store(to, own_logit, mask=row_in)
    tl.store(to + part, owned, mask=row_in)
    tl.store(to + 2 * part, greatest, mask=row_in)
    tl.store(to + 3 * part, total, mask=row_in)


@triton.jit(do_not_specialize=["top", "anchors", "splits", "height"])
def terms_kernel(
    partials,  # as `centres_kernel` left them
    table,  # (5, anchors): logarithm of the other classes' sum, own logit, and the group
    top,
    anchors,
    splits,
    height,
    BLOCK: tl.constexpr,
):
    """An anchor whose class has a centre has a term, 0 if there is no other class."""
    local = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rows = top + local
    mask = (local < height) & (rows < anchors)
    count = tl.minimum(anchors - top, height)
    part = splits.to(tl.int64) * count
    own_logit = tl.zeros((BLOCK,), tl.float32)
    owned = tl.zeros((BLOCK,), tl.float32)
    greatest = tl.full((BLOCK,), _LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(0, splits):
        at = partials + split * count.to(tl.int64) + local
        own_logit += tl.load(at, mask=mask, other=0.0)
        owned += tl.load(at + part, mask=mask, other=0.0)
        one = tl.load(at + 2 * part, mask=mask, other=_LOWEST)
        higher = tl.maximum(greatest, one)
        one = tl.load(at + 3 * part, mask=mask, other=0.0) * tl.exp(one - higher)
        total = total * tl.exp(greatest - higher) + one
        greatest = higher
    some = total > 0
    other = tl.where(some, greatest + tl.log(tl.where(some, total, 1.0)), float("-inf"))
    term = softplus(tl.where(some, other, 0.0) - own_logit)
    term = tl.where(some & (owned > 0), term, 0.0)
    to, step = table + rows, anchors.to(tl.int64)
    tl.store(to, other, mask=mask)
    tl.store(to + step, own_logit, mask=mask)
    tl.store(to + 2 * step, term, mask=mask)
    tl.store(to + 3 * step, (owned > 0).to(tl.float32), mask=mask)
    tl.store(to + 4 * step, (term > 0).to(tl.float32), mask=mask)


@triton.jit(do_not_specialize=[*_SIZES, "stride"])
def weights_of_centres_kernel(
    panel,
    labels,
    order,
    begins,
    names,
    count,
    table,  # as `terms_kernel` left it
    header,
    grad,  # (), or (anchors,)
    stride,  # of grad
    top,
    anchors,
    columns,
    splits,
    la,
    sharpness,
    height,
    reduction: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Products become weights of pairs, d loss / d distance, in place."""
    number, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    local = number * BM + tl.arange(0, BM)
    rows = top + local
    row_in = (local < height) & (rows < anchors)
    label = tl.load(labels + rows, mask=row_in, other=0)
    other = tl.load(table + rows, mask=row_in, other=0.0)
    step = anchors.to(tl.int64)
    own_logit = tl.load(table + step + rows, mask=row_in, other=0.0)
    counted = tl.load(table + 3 * step + rows, mask=row_in, other=0.0) > 0
    weights = group_weights(table, header, grad, stride, anchors, rows, row_in, 2, 1, reduction)
    counted = counted & (other > float("-inf"))
    weight = tl.where(counted, weights[0] * sigmoid(other - own_logit), 0.0)
    # Rows that do not exist read the first one.
    at = panel + tl.where(row_in, local, 0)[:, None] * row_stride(columns)
    classes = tl.load(count)
    span = _span(classes, splits, BN)
    for c in range(split * span, tl.minimum((split + 1) * span, classes), BN):
        group = c + tl.arange(0, BN)
        exists = group < classes
        begin, end = _ends(begins, group, exists)
        name = tl.load(names + group, mask=exists, other=0)
        mean, greatest, total = _scores(at, order, begin, end, row_in, sharpness, BM, BN)
        own = label[:, None] == name[None, :]
        share = tl.exp(tl.minimum(la * mean - other[:, None], 0.0))
        by_mean = la * weight[:, None] * tl.where(own, -1.0, share) / total
        for k in range(0, tl.max(end - begin, 0)):
            s, where, there = _similarities(at, order, begin, end, row_in, k)
            # Of the weighted mean by a similarity.
            slope = 1 + sharpness * (s - mean)
            slope *= tl.exp(tl.minimum(sharpness * s - greatest, 0.0))
            tl.store(where, -by_mean * slope, mask=there)
