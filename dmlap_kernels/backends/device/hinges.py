"""Hinges on single pairs: contrastive and margin."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels.backends.device.sweeps import HingeSums, Weigher
from dmlap_kernels.backends.device.terms import Call, Found, Group, PackedGradients, Statistics
from dmlap_kernels.problem import PairProblem, PairSpec


class Contrastive:
    """[d - pos_margin]+ and [neg_margin - d]+, squared or not: a group each."""

    def groups(self, spec: PairSpec) -> int:
        return 2

    def kept_rows(self, spec: PairSpec, problem: PairProblem) -> int:
        return 0

    def forward(self, call: Call) -> Found:
        squared = bool(call.spec.params[2])
        sums = call.sweeps.hinge_sums(call.sides, *self._bounds(call), squared)
        positives, negatives = call.sides.positives, call.sides.negatives
        groups = (
            Group(sums.positive, positives, sums.positive_active.long()),
            Group(sums.negative, negatives, sums.negative_active.long()),
        )
        return _found(groups, None, sums, positives + negatives, positives >= 0)

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        kind = "squared_hinge" if call.spec.params[2] else "hinge"
        coefficients = torch.cat((torch.stack(self._bounds(call)), weights))
        return PackedGradients(*call.sweeps.gradient(call.sides, Weigher(kind, coefficients)))

    def _bounds(self, call: Call) -> tuple[Tensor, Tensor]:
        pos_margin, neg_margin, _ = call.spec.params
        like = call.sides.x_norms
        # Sums, as a margin may be a tensor.
        nothing = torch.zeros_like(like)
        return nothing + pos_margin, nothing + neg_margin


class Margin:
    """[d - (beta - margin)]+ and [beta + margin - d]+ with a boundary beta of each anchor.

    The terms are those of the triplets: a positive counts once for each negative, and vice versa.
    Keeps the derivative of an anchor's total by its beta.
    """

    def groups(self, spec: PairSpec) -> int:
        return 1

    def kept_rows(self, spec: PairSpec, problem: PairProblem) -> int:
        return 1

    def forward(self, call: Call) -> Found:
        positives, negatives = call.sides.positives, call.sides.negatives
        sums = call.sweeps.hinge_sums(call.sides, *self._bounds(call), False)
        total = negatives * sums.positive + positives * sums.negative
        pulled, pushed = negatives * sums.positive_active, positives * sums.negative_active
        triplets = positives * negatives
        kept = (pushed - pulled).to(total.dtype)[None]
        group = Group(total, triplets, pulled + pushed)
        return _found((group,), kept, sums, positives + negatives, triplets > 0)

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        (weight,) = weights
        scales = weight * call.sides.negatives, weight * call.sides.positives
        weigher = Weigher("hinge", torch.stack((*self._bounds(call), *scales)))
        return PackedGradients(*call.sweeps.gradient(call.sides, weigher), weight * kept[0])

    def _bounds(self, call: Call) -> tuple[Tensor, Tensor]:
        (margin,), beta = call.spec.params, call.anchor_params
        assert beta is not None
        return beta - margin, beta + margin


def _found(
    groups: tuple[Group, ...],
    kept: Tensor | None,
    sums: HingeSums,
    pairs: Tensor,
    counted: Tensor,
) -> Found:
    """With the statistics of the plain hinges of the anchors that are counted, (B,) both."""

    def statistics() -> Statistics:
        active = sums.positive_active.long() + sums.negative_active
        hinges = sums.positive_hinge.double() + sums.negative_hinge
        found = (torch.where(counted, part, 0).sum() for part in (pairs, active, hinges))
        return Statistics(*found)

    return Found(groups, kept, statistics)
