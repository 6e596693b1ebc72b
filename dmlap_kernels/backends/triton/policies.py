"""What sweeps are parameterised with: functions handed to the kernels as compile-time arguments.

A slope is the derivative of an exponent, whose value is slope(d) (d - zero); a term is that of one
positive pair; a pair gradient gives d loss / d d of a pair, as written at
`dmlap_kernels.backends.device.sweeps.PairGradient`. pos_lse and neg_lse are the logarithms of an
anchor's sums over its positives and negatives, there pos_lse and neg_lse.

Functions are fields of tuples, which are ordinary arguments: Triton's cache knows of a change in
the body of such a function, but not of one in a dataclass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from dmlap_kernels.backends.device.sweeps import Exponent, PairGradient

# rate, zero, side, pivot
Numbers = tuple[float, float, float, float]


class Exponents(NamedTuple):
    """The exponents of positives and negatives as kernels read them, and the slope of both."""

    slope: Any
    positive: Numbers
    negative: Numbers

    @staticmethod
    def of(positive: Exponent, negative: Exponent) -> Exponents:
        slope = clipped if positive.side or negative.side else linear
        return Exponents(slope, _numbers(positive), _numbers(negative))


def _numbers(exponent: Exponent) -> Numbers:
    """Floats, so that no value is compiled in."""
    rate, zero, side, pivot = map(float, exponent)
    return rate, zero, side, pivot


@triton.jit
def linear(exponent, d):
    return exponent[0]


@triton.jit
def clipped(exponent, d):
    return exponent[0] * tl.maximum((d - exponent[3]) * exponent[2], 0.0)


@triton.jit
def softplus(t):
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
def nt_xent(e, neg_lse, other_neg_lse):
    """log(1 + e^(e + neg_lse)): value, and derivatives by e and by neg_lse."""
    t = e + neg_lse
    share = sigmoid(t)
    return softplus(t), share, share


@triton.jit
def lifted(e, neg_lse, other_neg_lse):
    """[e + log(e^neg_lse + e^other_neg_lse)]+^2 / 2: value, and derivatives by e and by neg_lse."""
    top = tl.maximum(neg_lse, other_neg_lse)
    some = top > float("-inf")
    top = tl.where(some, top, 0.0)
    own, other = tl.exp(neg_lse - top), tl.exp(other_neg_lse - top)
    both = tl.where(some, own + other, 1.0)
    hinge = tl.where(some, tl.maximum(e + top + tl.log(both), 0.0), 0.0)
    return 0.5 * hinge * hinge, hinge, hinge * own / both


TERMS = {"nt_xent": nt_xent, "lifted": lifted}


class KernelPairGradient(NamedTuple):
    """A `PairGradient` as kernels read it.

    ``formula`` gives the part of one end of a pair, d loss / d d of the positive and the negative
    pairs of a tile; ends ``own`` and ``other`` are as `coefficient` takes them.
    """

    formula: Any
    term: Any  # of the formulas that have one
    exponents: Exponents
    of_rows: Any  # (k, rows), coefficients; None where the rows' ends have no part
    of_columns: Any  # (k, columns) likewise

    @staticmethod
    def of(
        pair_gradient: PairGradient, of_rows: Tensor | None, of_columns: Tensor | None
    ) -> KernelPairGradient:
        exponents = Exponents.of(pair_gradient.positive, pair_gradient.negative)
        formula, term = PAIR_GRADIENTS[pair_gradient.kind], TERMS.get(pair_gradient.kind)
        return KernelPairGradient(formula, term, exponents, of_rows, of_columns)


@triton.jit
def coefficient(end, row):
    """Row ``row`` of an end's coefficients, in the shape of its index."""
    table, count, index = end
    return tl.load(table + row * count + index, mask=index < count, other=0.0)


@triton.jit
def hinge_gradient(gradient, d, positive, negative, own, other):
    pull = tl.where(d > coefficient(own, 0), coefficient(own, 2), 0.0)
    push = tl.where(d < coefficient(own, 1), coefficient(own, 3), 0.0)
    return tl.where(positive, pull, 0.0) - tl.where(negative, push, 0.0)


@triton.jit
def squared_hinge_gradient(gradient, d, positive, negative, own, other):
    pull = 2.0 * coefficient(own, 2) * tl.maximum(d - coefficient(own, 0), 0.0)
    push = 2.0 * coefficient(own, 3) * tl.maximum(coefficient(own, 1) - d, 0.0)
    return tl.where(positive, pull, 0.0) - tl.where(negative, push, 0.0)


@triton.jit
def logistic_gradient(gradient, d, positive, negative, own, other):
    pe, ne = gradient.exponents.positive, gradient.exponents.negative
    p, n = gradient.exponents.slope(pe, d), gradient.exponents.slope(ne, d)
    pull, push = p * sigmoid(p * (d - pe[1])), n * sigmoid(n * (d - ne[1]))
    return coefficient(own, 0) * (tl.where(positive, pull, 0.0) + tl.where(negative, push, 0.0))


@triton.jit
def exponential_gradient(gradient, d, positive, negative, own, other):
    pe, ne = gradient.exponents.positive, gradient.exponents.negative
    p, n = gradient.exponents.slope(pe, d), gradient.exponents.slope(ne, d)
    pull = tl.exp(p * (d - pe[1]) - coefficient(own, 0)) * coefficient(own, 2)
    push = tl.exp(n * (d - ne[1]) - coefficient(own, 1)) * coefficient(own, 3)
    pull = (pull + coefficient(own, 4)) * p
    return tl.where(positive, pull, 0.0) + tl.where(negative, push * n, 0.0)


@triton.jit
def mined_gradient(gradient, d, positive, negative, own, other):
    kept_positive = positive & (d > coefficient(own, 5))
    kept_negative = negative & (d < coefficient(own, 6))
    return exponential_gradient(gradient, d, kept_positive, kept_negative, own, other)


@triton.jit
def nt_xent_gradient(gradient, d, positive, negative, own, other):
    return _of_term(gradient, d, positive, negative, own, 0.0)


@triton.jit
def lifted_gradient(gradient, d, positive, negative, own, other):
    return _of_term(gradient, d, positive, negative, own, coefficient(other, 0))


@triton.jit
def _of_term(gradient, d, positive, negative, own, other_neg_lse):
    pe, ne = gradient.exponents.positive, gradient.exponents.negative
    p, n = gradient.exponents.slope(pe, d), gradient.exponents.slope(ne, d)
    neg_lse = coefficient(own, 0)
    _, by_exponent, _ = gradient.term(p * (d - pe[1]), neg_lse, other_neg_lse)
    pull = coefficient(own, 1) * by_exponent * p
    push = tl.exp(n * (d - ne[1]) - neg_lse) * coefficient(own, 2) * n
    return tl.where(positive, pull, 0.0) + tl.where(negative, push, 0.0)


# By the kind of a `PairGradient`.
PAIR_GRADIENTS = {
    "hinge": hinge_gradient,
    "squared_hinge": squared_hinge_gradient,
    "logistic": logistic_gradient,
    "exponential": exponential_gradient,
    "mined": mined_gradient,
    "nt_xent": nt_xent_gradient,
    "lifted": lifted_gradient,
}
