"""Negatives that count by their hardness (2010.04592, section 3).

The weight of a negative of exponent e is e^(hardness e), over the mean of the weights of its
anchor's n negatives. So the log-sum over them is log n + log sum e^((1 + hardness) e) -
log sum e^(hardness e): two log-sums, and the gradient is that of both.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import Both, Exponent, PairGradient
from dmlap_kernels.backends.device.terms import Call

# Of pairs that have no part: the exponential is 0, whatever log-sum is subtracted.
NOTHING = Exponent(1.0, 1e30)


class Hardness(NamedTuple):
    """Exponents (1 + hardness) e and hardness e."""

    weighted: Exponent
    weight: Exponent

    @staticmethod
    def of(rate: float, hardness: float) -> Hardness:
        """Of e(d) = rate d."""
        return Hardness(Exponent(rate * (1 + hardness)), Exponent(rate * hardness))

    @property
    def share(self) -> float:
        """The exponent of a weight over that of what is weighted, below 1."""
        return self.weight.rate / self.weighted.rate


def negative_lse(call: Call, sides: Sides, exponent: Exponent) -> Tensor:
    """(B,), over the negatives of each anchor alone."""
    return call.sweeps.log_sums(sides, exponent, exponent, read=("neg_lse",)).neg_lse


def log_mean_weight(call: Call, weight_lse: Tensor) -> Tensor:
    """(B,), of the log-sums of weights; 0 where there are no negatives."""
    negatives = call.negatives
    count = torch.zeros_like(weight_lse) + negatives.clamp(min=1)
    return torch.where(negatives > 0, weight_lse, 0) - count.log()


def gradient_of_negatives(
    call: Call, sides: Sides, lse: Tensor, by_lse: Tensor, exponent: Exponent
) -> Both:
    """Of log-sums (B,) over negatives, times ``by_lse``."""
    none = torch.zeros_like(lse)
    rows = call.rows(none, lse, none, by_lse, None)
    pair_gradient = PairGradient("exponential", rows, None, NOTHING, exponent)
    return call.sweeps.gradient(sides, pair_gradient)


def added(*gradients: Both) -> Both:
    """The sum of gradients of the same sides."""
    (x, y), *others = gradients
    for other_x, other_y in others:
        x = x if x is None or other_x is None else x + other_x
        y = y if y is None or other_y is None else y + other_y
    return x, y
