"""NT-Xent and SupCon whose negatives count by their hardness, out of panels: as
`dmlap_kernels.backends.device` has them, but with all log-sums of one sweep, and one weight of a
pair.

Weights of pairs are of kinds that there are for panels alone, beside those of `PairGradient`. With
e_n the exponent of a negative, r e_n that of its weight, and q = by_neg_lse (e^(e_n - neg_lse) -
r e^(r e_n - weight_lse)), where r is the same for all anchors:

``hardness``; rows pos_lse, neg_lse, by_pos_lse, by_neg_lse, by_exponent, weight_lse, r:
    of positives as ``exponential``, of negatives q slope_n
``nt_xent_hardness``, terms log(1 + e^(e_p + against)); rows against, weight, neg_lse, weight_lse,
by_neg_lse, r:
    of positives as ``nt_xent``, of negatives q slope_n
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.device.hardness import Hardness
from dmlap_kernels.backends.device.log_sums import LogSumLoss, Policy, Sums, sup_con_hardness
from dmlap_kernels.backends.device.pair_terms import NTXentHardness
from dmlap_kernels.backends.device.sweeps import Both, Exponent, PairGradient
from dmlap_kernels.backends.device.terms import Call, Found, PackedGradients


class SupConHardnessOfPanels(LogSumLoss):
    """The loss ``sup_con_hardness``. Keeps log-sums, and the derivatives of a term by them."""

    def __init__(self) -> None:
        super().__init__(sup_con_hardness, by_hardness=True)

    def forward(self, call: Call) -> Found:
        found = super().forward(call)
        leaves, totals = call.memo["graph"]
        by_sums = torch.autograd.grad(totals, leaves, (torch.ones_like(totals[0]),))
        sweeps: Any = call.sweeps
        pos_lse, neg_lse, _, weight_lse = leaves
        # By the log-sum of weights it is that by the other one, but for the sign.
        call.memo["kept"] = pos_lse, neg_lse, weight_lse, *map(sweeps.hold, by_sums[:3])
        return found

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        policy = sup_con_hardness(*call.spec.params)
        assert policy.hardness is not None
        (weight,) = weights
        pos_lse, neg_lse, weight_lse, *by_sums = call.memo["kept"]
        slopes = [weight * slope for slope in by_sums]
        rows = _rows(call, pos_lse, neg_lse, *slopes, weight_lse, policy.hardness.share)
        ends = policy.positive, policy.negative
        pair_gradient = PairGradient("hardness", rows, None, *ends)
        return PackedGradients(*call.sweeps.gradient(call.sides, pair_gradient))

    def _log_sums(self, call: Call, policy: Policy, bounds: tuple[Tensor, ...]) -> Sums:
        assert policy.hardness is not None
        return _log_sums(call, policy.positive, policy.hardness)


class NTXentHardnessOfPanels(NTXentHardness):
    """The loss ``nt_xent_hardness``."""

    def _log_sums(
        self, call: Call, positive: Exponent, by_hardness: Hardness
    ) -> tuple[Tensor, Tensor]:
        _, weighted_lse, _, weight_lse = _log_sums(call, positive, by_hardness)
        return weighted_lse, weight_lse

    def _neg_lse(self, call: Call, weighted_lse: Tensor, weight_lse: Tensor) -> Tensor:
        """Made once, in the forward half."""
        if "neg_lse" not in call.memo:
            sweeps: Any = call.sweeps
            neg_lse = super()._neg_lse(call, weighted_lse, weight_lse)
            call.memo["neg_lse"] = sweeps.hold(neg_lse)
        return call.memo["neg_lse"]

    def _gradient(
        self, call: Call, lses: tuple[Tensor, Tensor, Tensor], weight: Tensor, push: Tensor
    ) -> Both:
        positive, by_hardness = self._exponents(call)
        against, weighted_lse, weight_lse = lses
        rows = _rows(call, against, weight, weighted_lse, weight_lse, push, by_hardness.share)
        ends = positive, by_hardness.weighted
        return call.sweeps.gradient(call.sides, PairGradient("nt_xent_hardness", rows, None, *ends))


def _log_sums(call: Call, positive: Exponent, by_hardness: Hardness) -> Sums:
    # A sweep that there is for panels alone.
    sweeps: Any = call.sweeps
    return tuple(sweeps.hardness_sums((positive, by_hardness.weighted), by_hardness.share))


def _rows(call: Call, *rows: Any) -> Tensor:
    """A number is that of all anchors."""
    return call.rows(*rows)
