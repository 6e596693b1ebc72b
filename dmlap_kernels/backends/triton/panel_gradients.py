"""d loss / d d of the pairs of a panel, as `policies.PAIR_GRADIENTS` has them, in few instructions.

Of a pair one kind is computed, positive where ``alike``; pairs that are none are masked by who
calls. Results agree with those of `policies` but for rounding.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.panel_policies import exp_or_0, reciprocal
from dmlap_kernels.backends.triton.policies import coefficient, lifted_gradient, logistic_gradient


@triton.jit
def _hinge(gradient, d, alike, own, other):
    push = tl.where((alike == 0) & (d < coefficient(own, 1)), -coefficient(own, 3), 0.0)
    return tl.where(alike & (d > coefficient(own, 0)), coefficient(own, 2), push)


@triton.jit
def _squared_hinge(gradient, d, alike, own, other):
    hinge = tl.where(alike, d - coefficient(own, 0), coefficient(own, 1) - d)
    slope = tl.where(alike, 2.0 * coefficient(own, 2), -2.0 * coefficient(own, 3))
    return tl.maximum(hinge, 0.0) * slope


@triton.jit
def _exponential(gradient, d, alike, own, other):
    pe, ne = gradient.exponents.positive, gradient.exponents.negative
    p, n = gradient.exponents.slope(pe, d), gradient.exponents.slope(ne, d)
    e_p, e_n = p * (d - pe[1]) - coefficient(own, 0), n * (d - ne[1]) - coefficient(own, 1)
    # One exponential a pair.
    share = exp_or_0(tl.where(alike, e_p, e_n))
    v = share * tl.where(alike, coefficient(own, 2) * p, coefficient(own, 3) * n)
    return tl.where(alike, v + coefficient(own, 4) * p, v)


@triton.jit
def _hardness(gradient, d, alike, own, other):
    """`_exponential`, but for negatives, whose weights have a log-sum of their own."""
    pe, ne = gradient.exponents.positive, gradient.exponents.negative
    p, n = gradient.exponents.slope(pe, d), gradient.exponents.slope(ne, d)
    e_n, ratio = n * (d - ne[1]), coefficient(own, 6)
    e_p = p * (d - pe[1]) - coefficient(own, 0)
    share = exp_or_0(tl.where(alike, e_p, e_n - coefficient(own, 1)))
    of_weight = exp_or_0(ratio * e_n - coefficient(own, 5))
    pull = (share * coefficient(own, 2) + coefficient(own, 4)) * p
    return tl.where(alike, pull, (share - ratio * of_weight) * (coefficient(own, 3) * n))


@triton.jit
def _mined(gradient, d, alike, own, other):
    kept = tl.where(alike, d > coefficient(own, 5), d < coefficient(own, 6))
    return tl.where(kept, _exponential(gradient, d, alike, own, other), 0.0)


@triton.jit
def _nt_xent(gradient, d, alike, own, other):
    pe, ne = gradient.exponents.positive, gradient.exponents.negative
    p, n = gradient.exponents.slope(pe, d), gradient.exponents.slope(ne, d)
    neg_lse = coefficient(own, 0)
    t = p * (d - pe[1]) + neg_lse
    share = exp_or_0(tl.where(alike, -tl.abs(t), n * (d - ne[1]) - neg_lse))
    pull = tl.where(t > 0, 1.0, share) * reciprocal(1.0 + share) * (coefficient(own, 1) * p)
    return tl.where(alike, pull, share * (coefficient(own, 2) * n))


@triton.jit
def _nt_xent_hardness(gradient, d, alike, own, other):
    """`_nt_xent`, but for negatives, likewise. Where e^-t is infinite the sigmoid is 0."""
    pe, ne = gradient.exponents.positive, gradient.exponents.negative
    p, n = gradient.exponents.slope(pe, d), gradient.exponents.slope(ne, d)
    e_n, ratio = n * (d - ne[1]), coefficient(own, 5)
    t = p * (d - pe[1]) + coefficient(own, 0)
    share = exp_or_0(tl.where(alike, -t, e_n - coefficient(own, 2)))
    of_weight = exp_or_0(ratio * e_n - coefficient(own, 3))
    pull = reciprocal(1.0 + share) * (coefficient(own, 1) * p)
    return tl.where(alike, pull, (share - ratio * of_weight) * (coefficient(own, 4) * n))


@triton.jit
def _lifted(gradient, d, alike, own, other):
    return lifted_gradient(gradient, d, alike, alike == 0, own, other)


@triton.jit
def _logistic(gradient, d, alike, own, other):
    return logistic_gradient(gradient, d, alike, alike == 0, own, other)


@triton.jit
def _hard(gradient, d, alike, own, other):
    """The columns say which pairs these are."""
    at, slope = other[1], coefficient(own, 2)
    push = tl.where(at == coefficient(own, 1).to(tl.int32), -slope, 0.0)
    return tl.where(at == coefficient(own, 0).to(tl.int32), slope, push)


@triton.jit
def _hard_swap(gradient, d, alike, own, other):
    """The same, where negatives may be nearer to the positive."""
    at = other[1]
    push = tl.where(at == coefficient(own, 1).to(tl.int32), -coefficient(own, 3), 0.0)
    return tl.where(at == coefficient(own, 0).to(tl.int32), coefficient(own, 2), push)


PANEL_GRADIENTS = {
    "hinge": _hinge,
    "squared_hinge": _squared_hinge,
    "logistic": _logistic,
    "exponential": _exponential,
    "hardness": _hardness,
    "mined": _mined,
    "nt_xent": _nt_xent,
    "nt_xent_hardness": _nt_xent_hardness,
    "lifted": _lifted,
    "hard": _hard,
    "hard_swap": _hard_swap,
}
