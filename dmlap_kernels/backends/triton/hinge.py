"""Sums over single pairs: hinges, [d - own 0]+ of positives and [own 1 - d]+ of negatives, and
log(1 + e^exponent)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import Exponent, HingeSums
from dmlap_kernels.backends.triton.forward import Policy, counts, forward
from dmlap_kernels.backends.triton.policies import Exponents, coefficient, softplus


@triton.jit
def _empty(count: tl.constexpr):
    """Sums of positives and of negatives, of their plain hinges, and how many are not 0."""
    zeros, none = tl.zeros((count,), tl.float32), tl.zeros((count,), tl.int32)
    return zeros, zeros, zeros, zeros, none, none


@triton.jit
def _merge(state, other):
    return (
        state[0] + other[0],
        state[1] + other[1],
        state[2] + other[2],
        state[3] + other[3],
        state[4] + other[4],
        state[5] + other[5],
    )


@triton.jit
def _sums(hinge, squared: tl.constexpr, axis: tl.constexpr):
    plain = tl.sum(hinge, axis)
    taken = tl.sum(hinge * hinge, axis) if squared else plain
    return taken, plain, tl.sum((hinge > 0).to(tl.int32), axis)


@triton.jit
def _visit(own, d, positive, negative, runs, squared: tl.constexpr, axis: tl.constexpr):
    hinge = tl.where(negative, tl.maximum(coefficient(own, 1) - d, 0.0), 0.0)
    push, push_hinge, pushed = _sums(hinge, squared, axis)
    pull, pull_hinge, pulled = tl.zeros_like(push), tl.zeros_like(push), tl.zeros_like(pushed)
    if runs:
        hinge = tl.where(positive, tl.maximum(d - coefficient(own, 0), 0.0), 0.0)
        pull, pull_hinge, pulled = _sums(hinge, squared, axis)
    return pull, push, pull_hinge, push_hinge, pulled, pushed


@triton.jit
def _visit_plain(exponents, own, d, positive, negative, runs, axis: tl.constexpr):
    return _visit(own, d, positive, negative, runs, False, axis)


@triton.jit
def _visit_squared(exponents, own, d, positive, negative, runs, axis: tl.constexpr):
    return _visit(own, d, positive, negative, runs, True, axis)


# Plain and squared.
POLICIES = Policy(_empty, _visit_plain, _merge), Policy(_empty, _visit_squared, _merge)
_NO_EXPONENTS = Exponents.of(Exponent(0.0), Exponent(0.0))


def hinge_sums(
    sides: Sides, positive_bound: Tensor, negative_bound: Tensor, squared: bool
) -> HingeSums:
    bounds = torch.stack((positive_bound, negative_bound))
    partials = forward("hinge_sums", sides, POLICIES[squared], 6, bounds, _NO_EXPONENTS)
    return HingeSums(*partials[:4].sum(1), *counts(partials[4:]))


@triton.jit
def _none(count: tl.constexpr):
    return (tl.zeros((count,), tl.float32),)


@triton.jit
def _add(state, other):
    return (state[0] + other[0],)


@triton.jit
def _visit_logistic(exponents, own, d, positive, negative, runs, axis: tl.constexpr):
    pe, ne = exponents.positive, exponents.negative
    e = exponents.slope(ne, d) * (d - ne[1])
    if runs:
        e = tl.where(positive, exponents.slope(pe, d) * (d - pe[1]), e)
    return (tl.sum(tl.where(positive | negative, softplus(e), 0.0), axis),)


LOGISTIC = Policy(_none, _visit_logistic, _add)


def logistic_sums(sides: Sides, positive: Exponent, negative: Exponent) -> Tensor:
    exponents = Exponents.of(positive, negative)
    return forward("hinge_sums", sides, LOGISTIC, 1, None, exponents)[0].sum(0)
