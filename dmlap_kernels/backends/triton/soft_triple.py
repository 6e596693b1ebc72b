"""SoftTriple: anchors against classes of several centres.

A tile is one of anchors and classes, and goes through the classes' centres: the k-th of each class
at a time. Of the similarities s of an anchor to a class's centres it makes their mean, weighted by
the softmax of s / gamma. Similarities are minus distances; a constant makes no difference.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import Both
from dmlap_kernels.backends.triton.configurations import Launch
from dmlap_kernels.backends.triton.gathered import matmul, sigmoid, softplus, tile
from dmlap_kernels.backends.triton.tile import INTERPRETED, NEAR

# Rows are anchors, columns classes; then features of a product. Not measured.
LAUNCH = Launch(16, 16, 32, 4, 1) if INTERPRETED else Launch(16, 32, 32, 4, 1)
_WIDE = 32 if INTERPRETED else 64


@triton.jit
def _classes(begins, group, groups):
    """First centre of each class and how many it has; none beyond the last class."""
    begin = tl.load(begins + group, mask=group < groups, other=0)
    return begin, tl.load(begins + group + 1, mask=group < groups, other=0) - begin


@triton.jit
def _scores(
    X, Y, norms_x, norms_y, anchor, anchor_in, begin, count, centres, width, sharpness,
    DISTANCE: tl.constexpr, PRECISION: tl.constexpr, NEAR: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Of anchors and classes (ROWS, COLUMNS) the mean similarity, the greatest s / gamma, and the
    sum of e^(s / gamma - greatest)."""
    greatest = tl.full((anchor.shape[0], begin.shape[0]), -3.0e38, tl.float32)
    total = tl.zeros((anchor.shape[0], begin.shape[0]), tl.float32)
    weighted = tl.zeros((anchor.shape[0], begin.shape[0]), tl.float32)
    for k in range(0, centres):
        there = k < count
        s = -tile(
            X, norms_x, anchor, anchor_in, Y, norms_y, begin + k, there, width,
            False, DISTANCE, PRECISION, NEAR, CHUNK,
        )  # fmt: skip
        scaled = tl.where(there[None, :], sharpness * s, -3.0e38)
        higher = tl.maximum(greatest, scaled)
        before = tl.exp(greatest - higher)
        here = tl.where(there[None, :], tl.exp(scaled - higher), 0.0)
        total = total * before + here
        weighted = weighted * before + here * s
        greatest = higher
    some = total > 0
    return weighted / tl.where(some, total, 1.0), greatest, tl.where(some, total, 1.0)


@triton.jit(do_not_specialize=["anchors"])
def soft_triple_kernel(
    X, Y, norms_x, norms_y, first, last, begins, classes, found,
    anchors, width, la, sharpness, margin,
    DISTANCE: tl.constexpr, PRECISION: tl.constexpr, NEAR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """found (3, anchors): terms, the logarithm of the other classes' sum, the own class's logit.
    Grid: blocks of anchors."""
    anchor = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    anchor_in = anchor < anchors
    start = tl.load(first + anchor, mask=anchor_in, other=0)
    counted = tl.load(last + anchor, mask=anchor_in, other=0) > start
    groups = tl.load(classes)
    own_logit = tl.zeros((ROWS,), tl.float32)
    top = tl.full((ROWS,), -3.0e38, tl.float32)
    sums = tl.zeros((ROWS,), tl.float32)
    for at in range(0, groups, COLUMNS):
        group = at + tl.arange(0, COLUMNS)
        begin, count = _classes(begins, group, groups)
        mean, _, _ = _scores(
            X, Y, norms_x, norms_y, anchor, anchor_in, begin, count, tl.max(count, 0), width,
            sharpness, DISTANCE, PRECISION, NEAR, CHUNK,
        )  # fmt: skip
        exists = (group < groups)[None, :]
        own = (start[:, None] == begin[None, :]) & counted[:, None] & exists
        logit = la * mean
        own_logit += tl.sum(tl.where(own, logit - la * margin, 0.0), 1)
        others = exists & (own == 0)
        logit = tl.where(others, logit, -3.0e38)
        higher = tl.maximum(top, tl.max(logit, 1))
        here = tl.where(others, tl.exp(logit - higher[:, None]), 0.0)
        sums = sums * tl.exp(top - higher) + tl.sum(here, 1)
        top = higher
    some = sums > 0
    other = tl.where(some, top + tl.log(tl.where(some, sums, 1.0)), float("-inf"))
    term = tl.where(some, softplus(tl.where(some, other, 0.0) - own_logit), 0.0)
    tl.store(found + anchor, term, mask=anchor_in)
    tl.store(found + anchors + anchor, other, mask=anchor_in)
    tl.store(found + 2 * anchors + anchor, own_logit, mask=anchor_in)


@triton.jit
def _by_logit(
    mean, anchor, anchor_in, begin, group, groups, first, last, kept, weights, anchors, la
):  # fmt: skip
    """d loss / d logit (ROWS, COLUMNS) of anchors and classes."""
    start = tl.load(first + anchor, mask=anchor_in, other=0)
    counted = tl.load(last + anchor, mask=anchor_in, other=0) > start
    other = tl.load(kept + anchor, mask=anchor_in, other=0.0)
    own_logit = tl.load(kept + anchors + anchor, mask=anchor_in, other=0.0)
    weight = tl.load(weights + anchor, mask=anchor_in, other=0.0)
    weight = tl.where(counted & (other > float("-inf")), weight * sigmoid(other - own_logit), 0.0)
    exists = (group < groups)[None, :]
    own = (start[:, None] == begin[None, :]) & exists
    share = tl.exp(tl.minimum(la * mean - other[:, None], 0.0))
    return tl.where(exists, weight[:, None] * tl.where(own, -1.0, share), 0.0)


@triton.jit
def _pair_weights(
    s, there, mean, greatest, total, by_logit, la, sharpness
):  # fmt: skip
    """d loss / d similarity of anchors and the k-th centres of classes."""
    share = tl.exp(tl.minimum(sharpness * s - greatest, 0.0)) / total
    slope = la * share * (1 + sharpness * (s - mean))
    return tl.where(there[None, :], by_logit * slope, 0.0)


@triton.jit(do_not_specialize=["anchors"], do_not_specialize_on_alignment=["weights"])
def anchors_gradient_kernel(
    X, Y, norms_x, norms_y, first, last, begins, classes, kept, weights, gradient,
    anchors, width, la, sharpness,
    DISTANCE: tl.constexpr, PRECISION: tl.constexpr, NEAR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """gradient (anchors, width). Grid: blocks of anchors, WIDE features each."""
    anchor = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    anchor_in = anchor < anchors
    at_feature = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    feature_in = at_feature < width
    groups = tl.load(classes)
    acc = tl.zeros((ROWS, WIDE), tl.float32)
    for at in range(0, groups, COLUMNS):
        group = at + tl.arange(0, COLUMNS)
        begin, count = _classes(begins, group, groups)
        mean, greatest, total = _scores(
            X, Y, norms_x, norms_y, anchor, anchor_in, begin, count, tl.max(count, 0), width,
            sharpness, DISTANCE, PRECISION, NEAR, CHUNK,
        )  # fmt: skip
        by_logit = _by_logit(
            mean, anchor, anchor_in, begin, group, groups, first, last, kept, weights, anchors,
            la,
        )  # fmt: skip
        for k in range(0, tl.max(count, 0)):
            there = k < count
            s = -tile(
                X, norms_x, anchor, anchor_in, Y, norms_y, begin + k, there, width,
                False, DISTANCE, PRECISION, NEAR, CHUNK,
            )  # fmt: skip
            weight = _pair_weights(s, there, mean, greatest, total, by_logit, la, sharpness)
            y = tl.load(
                Y + (begin + k)[:, None] * width + at_feature[None, :],
                mask=there[:, None] & feature_in[None, :],
                other=0.0,
            )
            acc = matmul(weight, y, acc, PRECISION)
    to = gradient + anchor[:, None] * width + at_feature[None, :]
    tl.store(to, acc, mask=anchor_in[:, None] & feature_in[None, :])


@triton.jit(do_not_specialize=["anchors"], do_not_specialize_on_alignment=["weights"])
def centres_gradient_kernel(
    X, Y, norms_x, norms_y, first, last, begins, classes, kept, weights, gradient,
    anchors, width, la, sharpness,
    DISTANCE: tl.constexpr, PRECISION: tl.constexpr, NEAR: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """gradient (centres, width). Grid: blocks of classes, WIDE features each."""
    groups = tl.load(classes)
    group = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    begin, count = _classes(begins, group, groups)
    centres = tl.max(count, 0)
    at_feature = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    feature_in = at_feature < width
    for k in range(0, centres):
        there = k < count
        acc = tl.zeros((COLUMNS, WIDE), tl.float32)
        for at in range(0, anchors, ROWS):
            anchor = at + tl.arange(0, ROWS).to(tl.int64)
            anchor_in = anchor < anchors
            mean, greatest, total = _scores(
                X, Y, norms_x, norms_y, anchor, anchor_in, begin, count, centres, width,
                sharpness, DISTANCE, PRECISION, NEAR, CHUNK,
            )  # fmt: skip
            by_logit = _by_logit(
                mean, anchor, anchor_in, begin, group, groups, first, last, kept, weights, anchors,
                la,
            )  # fmt: skip
            s = -tile(
                X, norms_x, anchor, anchor_in, Y, norms_y, begin + k, there, width,
                False, DISTANCE, PRECISION, NEAR, CHUNK,
            )  # fmt: skip
            weight = _pair_weights(s, there, mean, greatest, total, by_logit, la, sharpness)
            x = tl.load(
                X + anchor[:, None] * width + at_feature[None, :],
                mask=anchor_in[:, None] & feature_in[None, :],
                other=0.0,
            )
            acc = matmul(tl.trans(weight), x, acc, PRECISION)
        to = gradient + (begin + k)[:, None] * width + at_feature[None, :]
        tl.store(to, acc, mask=there[:, None] & feature_in[None, :])


def soft_triple(sides: Sides, la: float, gamma: float, margin: float) -> Tensor:
    """`Sweeps.soft_triple`; keeps the logarithm of the other classes' sum and the own logit."""
    found = sides.x.new_zeros(3, sides.anchors)
    if sides.anchors and sides.columns:
        soft_triple_kernel[(triton.cdiv(sides.anchors, LAUNCH.BM),)](
            *_pointers(sides),
            found,
            sides.anchors,
            sides.x.shape[1],
            la,
            1 / gamma,
            margin,
            **_options(sides),
        )
    return found


def soft_triple_gradient(
    sides: Sides, la: float, gamma: float, margin: float, kept: Tensor, weight: Tensor
) -> Both:
    """`Sweeps.soft_triple_gradient`."""
    gx = torch.zeros_like(sides.x) if sides.x_grad else None
    gy = torch.zeros_like(sides.y) if sides.y_grad else None
    if sides.anchors and sides.columns:
        chunks = triton.cdiv(sides.x.shape[1], _WIDE)
        given = *_pointers(sides), kept.contiguous(), weight.float().contiguous()
        numbers = sides.anchors, sides.x.shape[1], la, 1 / gamma
        if gx is not None:
            anchors_gradient_kernel[(triton.cdiv(sides.anchors, LAUNCH.BM), chunks)](
                *given, gx, *numbers, WIDE=_WIDE, **_options(sides)
            )
        if gy is not None:
            # There may be as many classes as centres; programs beyond the last class end at once.
            centres_gradient_kernel[(triton.cdiv(sides.columns, LAUNCH.BN), chunks)](
                *given, gy, *numbers, WIDE=_WIDE, **_options(sides)
            )
    return gx, gy


def _pointers(sides: Sides) -> tuple[Tensor, ...]:
    """Among them the first centres (N + 1,) of the classes, all beyond the last one N, and how many
    classes there are (1,)."""
    new = sides.labels_y[1:] != sides.labels_y[:-1]
    number = torch.cat((new.new_zeros(1), new)).cumsum(0)
    each = torch.arange(sides.columns + 1, device=number.device)
    begins = torch.searchsorted(number, each)
    return (
        sides.x, sides.y, sides.x_norms, sides.y_norms, sides.first, sides.last,
        begins, number[-1:] + 1,
    )  # fmt: skip


def _options(sides: Sides) -> dict[str, Any]:
    return {
        "DISTANCE": sides.distance,
        "PRECISION": sides.precision,
        "NEAR": NEAR[sides.precision],
        "ROWS": LAUNCH.BM,
        "COLUMNS": LAUNCH.BN,
        "CHUNK": LAUNCH.BK,
        **LAUNCH.options,
    }
