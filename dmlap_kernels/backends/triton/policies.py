"""What sweeps are parameterised with: functions handed to the kernels as compile-time arguments.

A slope is the derivative of an exponent, whose value is slope(d) (d - zero); a term is that of one
positive pair; a weigher gives d loss / d d of a pair, as written at
`dmlap_kernels.backends.device.sweeps.Weigher`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dmlap_kernels.backends.device.sweeps import Exponent, Weigher

# rate, zero, side, pivot
Numbers = tuple[float, float, float, float]


def numbers_of(exponent: Exponent) -> Numbers:
    """As kernels take them: floats, so that no value is compiled in."""
    rate, zero, side, pivot = map(float, exponent)
    return rate, zero, side, pivot


def slope_of(*exponents: Exponent):
    """The policy that serves all of the exponents."""
    return clipped if any(exponent.side for exponent in exponents) else linear


@triton.jit
def linear(exponent, d):
    return exponent[0]


@triton.jit
def clipped(exponent, d):
    return exponent[0] * tl.maximum((d - exponent[3]) * exponent[2], 0.0)


@triton.jit
def log1p_exp(t):
    """log(1 + e^t), keeping the digits of small results."""
    x = tl.exp(-tl.abs(t))
    u = 1.0 + x
    # log(u) is off by what 1 + x lost of x, and so is u - 1.
    small = tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.maximum(t, 0.0) + small


@triton.jit
def sigmoid(t):
    x = tl.exp(-tl.abs(t))
    return tl.where(t > 0, 1.0, x) / (1.0 + x)


@triton.jit
def nt_xent(e, zn, zn_other):
    """log(1 + e^(e + zn)): value, and derivatives by e and by zn."""
    t = e + zn
    share = sigmoid(t)
    return log1p_exp(t), share, share


@triton.jit
def lifted(e, zn, zn_other):
    """[e + log(e^zn + e^zn')]+^2 / 2: value, and derivatives by e and by zn."""
    top = tl.maximum(zn, zn_other)
    some = top > float("-inf")
    top = tl.where(some, top, 0.0)
    own, other = tl.exp(zn - top), tl.exp(zn_other - top)
    both = tl.where(some, own + other, 1.0)
    hinge = tl.where(some, tl.maximum(e + top + tl.log(both), 0.0), 0.0)
    return 0.5 * hinge * hinge, hinge, hinge * own / both


@triton.jit
def coefficient(end, row):
    """Row ``row`` of an end's coefficients, in the shape of its index."""
    table, count, index = end
    return tl.load(table + row * count + index, mask=index < count, other=0.0)


@triton.jit
def weigh_hinge(slope, term, d, positive, negative, own, other, pe, ne):
    pull = tl.where(d > coefficient(own, 0), coefficient(own, 2), 0.0)
    push = tl.where(d < coefficient(own, 1), coefficient(own, 3), 0.0)
    return tl.where(positive, pull, 0.0) - tl.where(negative, push, 0.0)


@triton.jit
def weigh_squared_hinge(slope, term, d, positive, negative, own, other, pe, ne):
    pull = 2.0 * coefficient(own, 2) * tl.maximum(d - coefficient(own, 0), 0.0)
    push = 2.0 * coefficient(own, 3) * tl.maximum(coefficient(own, 1) - d, 0.0)
    return tl.where(positive, pull, 0.0) - tl.where(negative, push, 0.0)


@triton.jit
def weigh_exponential(slope, term, d, positive, negative, own, other, pe, ne):
    p, n = slope(pe, d), slope(ne, d)
    pull = tl.exp(p * (d - pe[1]) - coefficient(own, 0)) * coefficient(own, 2)
    push = tl.exp(n * (d - ne[1]) - coefficient(own, 1)) * coefficient(own, 3)
    pull = (pull + coefficient(own, 4)) * p
    return tl.where(positive, pull, 0.0) + tl.where(negative, push * n, 0.0)


@triton.jit
def weigh_mined(slope, term, d, positive, negative, own, other, pe, ne):
    kept_positive = positive & (d > coefficient(own, 5))
    kept_negative = negative & (d < coefficient(own, 6))
    return weigh_exponential(slope, term, d, kept_positive, kept_negative, own, other, pe, ne)


@triton.jit
def weigh_nt_xent(slope, term, d, positive, negative, own, other, pe, ne):
    return _weigh_pair_term(slope, term, d, positive, negative, own, 0.0, pe, ne)


@triton.jit
def weigh_lifted(slope, term, d, positive, negative, own, other, pe, ne):
    zn_other = coefficient(other, 0)
    return _weigh_pair_term(slope, term, d, positive, negative, own, zn_other, pe, ne)


@triton.jit
def _weigh_pair_term(slope, term, d, positive, negative, own, zn_other, pe, ne):
    p, n = slope(pe, d), slope(ne, d)
    zn = coefficient(own, 0)
    _, by_exponent, _ = term(p * (d - pe[1]), zn, zn_other)
    pull = coefficient(own, 1) * by_exponent * p
    push = tl.exp(n * (d - ne[1]) - zn) * coefficient(own, 2) * n
    return tl.where(positive, pull, 0.0) + tl.where(negative, push, 0.0)


TERMS = {"nt_xent": nt_xent, "lifted": lifted}
# By the kind of a `Weigher`; those of pair terms read the term.
WEIGHERS = {
    "hinge": weigh_hinge,
    "squared_hinge": weigh_squared_hinge,
    "exponential": weigh_exponential,
    "mined": weigh_mined,
    "nt_xent": weigh_nt_xent,
    "lifted": weigh_lifted,
}


def weighing(weigher: Weigher, of_rows: Tensor | None, of_columns: Tensor | None) -> tuple:
    """What `factors` is compiled with: weigh, slope, term, and which ends weigh."""
    slope = slope_of(weigher.positive, weigher.negative)
    ends = of_rows is not None, of_columns is not None
    return WEIGHERS[weigher.kind], slope, TERMS.get(weigher.kind), *ends
