"""Exponents of distances, and what is made of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.device.sweeps import Exponent

# In the place of -inf, so that it may be subtracted.
LOWEST = -1e30


def exponent_of(
    exponent: Exponent, d: Tensor, plus: Tensor | None = None, bracket: Tensor | None = None
) -> Tensor:
    """e(d), a tensor of its own; plus numbers (b, 1) or (N,). The bracket is made unless given."""
    if bracket is None:
        bracket = bracket_of(exponent, d)
    if bracket is not None:
        line = _line(exponent, d)
        return line * bracket if plus is None else torch.addcmul(plus, line, bracket)
    if plus is None:
        return _line(exponent, d)
    if not _is_number(exponent.rate):
        return _line(exponent, d) + plus
    # In one operation.
    return torch.add(_minus_zero(exponent, plus), d, alpha=exponent.rate)


def bracket_of(exponent: Exponent, d: Tensor) -> Tensor | None:
    """[side (d - pivot)]+, a constant in the derivative; None without a side."""
    if not exponent.side:
        return None
    with torch.no_grad():
        return (d - exponent.pivot if exponent.side > 0 else exponent.pivot - d).relu_()


def _line(exponent: Exponent, d: Tensor) -> Tensor:
    """rate (d - zero)."""
    rate, zero = exponent.rate, exponent.zero
    if not (_is_number(rate) and _is_number(zero)):
        return (d - zero) * rate
    return d * rate if zero == 0 else torch.rsub(d, -rate * zero, alpha=-rate)


def _minus_zero(exponent: Exponent, plus: Tensor) -> Tensor:
    """plus - rate zero."""
    zero = exponent.zero
    return plus if _is_number(zero) and zero == 0 else plus - exponent.rate * zero


def _is_number(value: Any) -> bool:
    return not isinstance(value, Tensor)


def log_sum(e: Tensor) -> Tensor:
    """log of the sum of e^e along the rows (b,); -inf, without gradient, where all are -inf."""
    if not (torch.is_grad_enabled() and e.requires_grad):
        return e.logsumexp(1)
    top = e.detach().amax(1, keepdim=True).clamp(min=LOWEST)
    total = (e - top).exp().sum(1)
    some = total > 0
    return torch.where(some, torch.where(some, total, 1).log() + top.squeeze(1), -torch.inf)


def lifted(e: Tensor, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """[e + log(e^neg_lse + e^neg_lse')]+ of pairs, the derivative of its [...]^2 / 2 by e, and the
    logarithm. 0 where both log-sums are -inf."""
    both = torch.logaddexp(own.clamp(min=LOWEST), other.clamp(min=LOWEST))
    return (e + both).relu(), both


def lifted_by_neg_lse(hinge: Tensor, own: Tensor, both: Tensor) -> Tensor:
    """The derivative of hinge^2 / 2 by neg_lse, where all three are as in `lifted`."""
    return (own - both).exp().mul_(hinge)
