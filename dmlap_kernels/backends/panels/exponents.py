"""Exponents of distances, and what is made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels.backends.device.sweeps import Exponent

# In the place of -inf, so that it may be subtracted.
LOWEST = -1e30


def exponent_of(exponent: Exponent, d: Tensor) -> Tensor:
    """e(d), a tensor of its own."""
    zero = exponent.zero
    e = d if isinstance(zero, float) and zero == 0 else d - zero
    return e * slope_of(exponent, d)


def slope_of(exponent: Exponent, d: Tensor) -> Tensor | float:
    """e(d) / (d - zero), a constant in the derivative."""
    rate, _, side, pivot = exponent
    if not side:
        return rate
    with torch.no_grad():
        bracket = (d - pivot if side > 0 else pivot - d).relu_()
    return bracket * rate if torch.is_grad_enabled() else bracket.mul_(rate)


def log_sum(e: Tensor) -> Tensor:
    """log of the sum of e^e along the rows (b,); -inf, without gradient, where all are -inf."""
    if not (torch.is_grad_enabled() and e.requires_grad):
        return e.logsumexp(1)
    top = e.detach().amax(1, keepdim=True).clamp(min=LOWEST)
    total = (e - top).exp().sum(1)
    some = total > 0
    return torch.where(some, torch.where(some, total, 1).log() + top.squeeze(1), -torch.inf)


def lifted(e: Tensor, own: Tensor, other: Tensor, left_out: Tensor) -> tuple[Tensor, ...]:
    """[e + log(e^neg_lse + e^neg_lse')]+^2 / 2 of pairs: value, derivatives by e and by neg_lse.

    0 where both log-sums are -inf, and for pairs that are left out.
    """
    neither = (own == -torch.inf) & (other == -torch.inf)
    both = torch.logaddexp(torch.where(neither, 0, own), other)
    hinge = (e + both).masked_fill(left_out | neither, 0).relu()
    share = (own - both.detach()).exp().masked_fill(neither, 0)
    return hinge.square() / 2, hinge, hinge.detach() * share.detach()
