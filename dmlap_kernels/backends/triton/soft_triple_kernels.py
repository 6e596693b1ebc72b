"""SoftTriple: anchors against classes of several centres.

A tile is one of anchors and classes, and goes through the classes' centres: the k-th of each class
at a time. Of the similarities s of an anchor to a class's centres it makes their mean, weighted by
the softmax of s / gamma. Similarities are minus distances; a constant makes no difference.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import Both
from dmlap_kernels.backends.triton.configurations import launch_of
from dmlap_kernels.backends.triton.policies import sigmoid, softplus
from dmlap_kernels.backends.triton.tile import (
    APART,
    Pairs,
    Tiling,
    product,
    rows_of,
    tile,
)


class Classes(NamedTuple):
    """The classes of the centres, and the numbers of the loss."""

    begins: Any  # (columns + 1,), first centres of the classes, all beyond the last class N
    count: Any  # (1,)
    la: float
    sharpness: float  # 1 / gamma
    margin: float

    @staticmethod
    def of(sides: Sides, la: float, gamma: float, margin: float) -> Classes:
        new = sides.labels_y[1:] != sides.labels_y[:-1]
        number = torch.cat((new.new_zeros(1), new)).cumsum(0)
        each = torch.arange(sides.columns + 1, device=number.device)
        begins = torch.searchsorted(number, each)
        return Classes(begins, number[-1:] + 1, la, 1 / gamma, margin)


class Groups(NamedTuple):
    """The classes of a tile: whether there are such, first centres, and how many centres they have;
    none beyond the last class."""

    exists: Any
    begin: Any
    count: Any


@triton.jit
def _groups(classes, group, count):
    exists = group < count
    begin = tl.load(classes.begins + group, mask=exists, other=0)
    end = tl.load(classes.begins + group + 1, mask=exists, other=0)
    return Groups(exists, begin, end - begin)


@triton.jit
def _similarities(pairs, anchors, anchor_in, groups, k, how: tl.constexpr):
    """Similarities (BM, BN) of anchors to the k-th centres of classes."""
    d, _ = tile(pairs, anchors, anchor_in, groups.begin + k, k < groups.count, APART, how)
    return -d


@triton.jit
def _scores(pairs, anchors, anchor_in, groups, centres, sharpness, how: tl.constexpr):
    """Of anchors and classes (BM, BN) of at most so many centres the mean similarity, the greatest
    s / gamma, and the sum of e^(s / gamma - greatest)."""
    greatest = tl.full((how.BM, how.BN), -3.0e38, tl.float32)
    total = tl.zeros((how.BM, how.BN), tl.float32)
    weighted = tl.zeros((how.BM, how.BN), tl.float32)
    for k in range(0, centres):
        there = (k < groups.count)[None, :]
        s = _similarities(pairs, anchors, anchor_in, groups, k, how)
        scaled = tl.where(there, sharpness * s, -3.0e38)
        higher = tl.maximum(greatest, scaled)
        before = tl.exp(greatest - higher)
        here = tl.where(there, tl.exp(scaled - higher), 0.0)
        total = total * before + here
        weighted = weighted * before + here * s
        greatest = higher
    some = total > 0
    return weighted / tl.where(some, total, 1.0), greatest, tl.where(some, total, 1.0)


@triton.jit
def soft_triple_kernel(
    pairs,
    classes,
    found,  # (3, rows): terms, the logarithm of the other classes' sum, the own class's logit
    how: tl.constexpr,
):
    """Grid: blocks of anchors."""
    anchors = tl.program_id(0).to(tl.int64) * how.BM + tl.arange(0, how.BM)
    anchor_in = anchors < rows_of(pairs)
    start = tl.load(pairs.first + anchors, mask=anchor_in, other=0)
    counted = tl.load(pairs.last + anchors, mask=anchor_in, other=0) > start
    count = tl.load(classes.count)
    own_logit = tl.zeros((how.BM,), tl.float32)
    top = tl.full((how.BM,), -3.0e38, tl.float32)
    sums = tl.zeros((how.BM,), tl.float32)
    for at in range(0, count, how.BN):
        groups = _groups(classes, at + tl.arange(0, how.BN), count)
        most = tl.max(groups.count, 0)
        mean, _, _ = _scores(pairs, anchors, anchor_in, groups, most, classes.sharpness, how)
        exists = groups.exists[None, :]
        own = (start[:, None] == groups.begin[None, :]) & counted[:, None] & exists
        logit = classes.la * mean
        own_logit += tl.sum(tl.where(own, logit - classes.la * classes.margin, 0.0), 1)
        others = exists & (own == 0)
        logit = tl.where(others, logit, -3.0e38)
        higher = tl.maximum(top, tl.max(logit, 1))
        here = tl.where(others, tl.exp(logit - higher[:, None]), 0.0)
        sums = sums * tl.exp(top - higher) + tl.sum(here, 1)
        top = higher
    some = sums > 0
    other = tl.where(some, top + tl.log(tl.where(some, sums, 1.0)), float("-inf"))
    term = tl.where(some, softplus(tl.where(some, other, 0.0) - own_logit), 0.0)
    tl.store(found + anchors, term, mask=anchor_in)
    tl.store(found + rows_of(pairs) + anchors, other, mask=anchor_in)
    tl.store(found + 2 * rows_of(pairs) + anchors, own_logit, mask=anchor_in)


@triton.jit
def _by_logit(pairs, anchors, anchor_in, groups, kept, weights, logit):
    """d loss / d logit (BM, BN) of anchors and classes."""
    start = tl.load(pairs.first + anchors, mask=anchor_in, other=0)
    counted = tl.load(pairs.last + anchors, mask=anchor_in, other=0) > start
    other = tl.load(kept + anchors, mask=anchor_in, other=0.0)
    own_logit = tl.load(kept + rows_of(pairs) + anchors, mask=anchor_in, other=0.0)
    weight = tl.load(weights + anchors, mask=anchor_in, other=0.0)
    weight = tl.where(counted & (other > float("-inf")), weight * sigmoid(other - own_logit), 0.0)
    exists = groups.exists[None, :]
    own = (start[:, None] == groups.begin[None, :]) & exists
    share = tl.exp(tl.minimum(logit - other[:, None], 0.0))
    return tl.where(exists, weight[:, None] * tl.where(own, -1.0, share), 0.0)


@triton.jit
def _by_similarity(s, there, mean, greatest, total, by_logit, classes):
    """d loss / d similarity of anchors and the k-th centres of classes."""
    share = tl.exp(tl.minimum(classes.sharpness * s - greatest, 0.0)) / total
    slope = classes.la * share * (1 + classes.sharpness * (s - mean))
    return tl.where(there[None, :], by_logit * slope, 0.0)


@triton.jit(do_not_specialize_on_alignment=["weights"])
def anchors_gradient_kernel(
    pairs,
    classes,
    kept,  # (2, rows)
    weights,  # (rows,)
    gradient,  # (rows, features)
    how: tl.constexpr,
):
    """Grid: blocks of anchors, BD features each."""
    anchors = tl.program_id(0).to(tl.int64) * how.BM + tl.arange(0, how.BM)
    anchor_in = anchors < rows_of(pairs)
    feature = tl.program_id(1) * how.BD + tl.arange(0, how.BD)
    inside = feature < pairs.features
    count = tl.load(classes.count)
    acc = tl.zeros((how.BM, how.BD), tl.float32)
    for at in range(0, count, how.BN):
        groups = _groups(classes, at + tl.arange(0, how.BN), count)
        most = tl.max(groups.count, 0)
        mean, greatest, total = _scores(
            pairs, anchors, anchor_in, groups, most, classes.sharpness, how
        )
        by_logit = _by_logit(pairs, anchors, anchor_in, groups, kept, weights, classes.la * mean)
        for k in range(0, most):
            there = k < groups.count
            s = _similarities(pairs, anchors, anchor_in, groups, k, how)
            by_s = _by_similarity(s, there, mean, greatest, total, by_logit, classes)
            y = tl.load(
                pairs.y + (groups.begin + k)[:, None] * pairs.features + feature[None, :],
                mask=there[:, None] & inside[None, :],
                other=0.0,
            )
            acc = product(by_s, y, acc, how)
    to = gradient + anchors[:, None] * pairs.features + feature[None, :]
    tl.store(to, acc, mask=anchor_in[:, None] & inside[None, :])


@triton.jit(do_not_specialize_on_alignment=["weights"])
def centres_gradient_kernel(
    pairs,
    classes,
    kept,  # (2, rows)
    weights,  # (rows,)
    gradient,  # (columns, features)
    how: tl.constexpr,
):
    """Grid: blocks of classes, BD features each."""
    group = tl.program_id(0).to(tl.int64) * how.BN + tl.arange(0, how.BN)
    groups = _groups(classes, group, tl.load(classes.count))
    centres = tl.max(groups.count, 0)
    feature = tl.program_id(1) * how.BD + tl.arange(0, how.BD)
    inside = feature < pairs.features
    for k in range(0, centres):
        there = k < groups.count
        acc = tl.zeros((how.BN, how.BD), tl.float32)
        for at in range(0, rows_of(pairs), how.BM):
            anchors = at + tl.arange(0, how.BM).to(tl.int64)
            anchor_in = anchors < rows_of(pairs)
            mean, greatest, total = _scores(
                pairs, anchors, anchor_in, groups, centres, classes.sharpness, how
            )
            logit = classes.la * mean
            by_logit = _by_logit(pairs, anchors, anchor_in, groups, kept, weights, logit)
            s = _similarities(pairs, anchors, anchor_in, groups, k, how)
            by_s = _by_similarity(s, there, mean, greatest, total, by_logit, classes)
            x = tl.load(
                pairs.x + anchors[:, None] * pairs.features + feature[None, :],
                mask=anchor_in[:, None] & inside[None, :],
                other=0.0,
            )
            acc = product(tl.trans(by_s), x, acc, how)
        to = gradient + (groups.begin + k)[:, None] * pairs.features + feature[None, :]
        tl.store(to, acc, mask=there[:, None] & inside[None, :])


def soft_triple(sides: Sides, la: float, gamma: float, margin: float) -> Tensor:
    """`Sweeps.soft_triple`; keeps the logarithm of the other classes' sum and the own logit."""
    found = sides.x.new_zeros(3, sides.anchors)
    if sides.anchors and sides.columns:
        launch = launch_of("soft_triple", sides)
        soft_triple_kernel[(triton.cdiv(sides.anchors, launch.BM),)](
            Pairs.of(sides),
            Classes.of(sides, la, gamma, margin),
            found,
            Tiling.of(sides, launch, all_exist=True),
            **launch.options,
        )
    return found


def soft_triple_gradient(
    sides: Sides, la: float, gamma: float, margin: float, kept: Tensor, weight: Tensor
) -> Both:
    """`Sweeps.soft_triple_gradient`."""
    gx = torch.zeros_like(sides.x) if sides.x_grad else None
    gy = torch.zeros_like(sides.y) if sides.y_grad else None
    if sides.anchors and sides.columns:
        launch, features = launch_of("soft_triple", sides), sides.x.shape[1]
        chunks = triton.cdiv(features, launch.held(features))
        given = Pairs.of(sides), Classes.of(sides, la, gamma, margin), kept.contiguous()
        weights, how = weight.float().contiguous(), Tiling.of(sides, launch, all_exist=True)
        if gx is not None:
            anchors_gradient_kernel[(triton.cdiv(sides.anchors, launch.BM), chunks)](
                *given, weights, gx, how, **launch.options
            )
        if gy is not None:
            # There may be as many classes as centres; programs beyond the last class end at once.
            centres_gradient_kernel[(triton.cdiv(sides.columns, launch.BN), chunks)](
                *given, weights, gy, how, **launch.options
            )
    return gx, gy
