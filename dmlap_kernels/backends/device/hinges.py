"""Terms of single pairs: the hinges of contrastive and margin, and SigLIP's smooth ones."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels.backends.device.sweeps import Exponent, HingeSums, PairGradient
from dmlap_kernels.backends.device.terms import (
    Call,
    Family,
    Found,
    Group,
    PackedGradients,
    Statistics,
    filled,
    found,
)
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
        groups = (
            Group(sums.positive, call.positives, sums.positive_active),
            Group(sums.negative, call.negatives, sums.negative_active),
        )
        return _found(call, groups, None, sums)

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        kind = "squared_hinge" if call.spec.params[2] else "hinge"
        coefficients = torch.stack((*self._bounds(call), *weights))
        return PackedGradients(*call.sweeps.gradient(call.sides, PairGradient(kind, coefficients)))

    def _bounds(self, call: Call) -> tuple[Tensor, Tensor]:
        if "bounds" not in call.memo:
            like = call.sides.x_norms
            call.memo["bounds"] = tuple(filled(like, bound) for bound in call.spec.params[:2])
        return call.memo["bounds"]


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
        positives, negatives = call.positives, call.negatives
        sums = call.sweeps.hinge_sums(call.sides, *self._bounds(call), False)
        total = negatives * sums.positive + positives * sums.negative
        pulled, pushed = negatives * sums.positive_active, positives * sums.negative_active
        triplets = positives * negatives
        kept = (pushed - pulled).to(total.dtype)[None]
        group = Group(total, triplets, pulled + pushed)
        return _found(call, (group,), kept, sums, triplets > 0)

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        (weight,) = weights
        scales = weight * call.negatives, weight * call.positives
        pair_gradient = PairGradient("hinge", torch.stack((*self._bounds(call), *scales)))
        return PackedGradients(*call.sweeps.gradient(call.sides, pair_gradient), weight * kept[0])

    def _bounds(self, call: Call) -> tuple[Tensor, Tensor]:
        (margin,), beta = call.spec.params, call.anchor_params
        assert beta is not None
        return beta - margin, beta + margin


class SigLIP:
    """log(1 + e^(-z (scale s + bias))), z = 1 for positives and -1 for negatives: of a distance
    log(1 + e^(z scale (d - bound))). A term is the sum of an anchor."""

    def groups(self, spec: PairSpec) -> int:
        return 1

    def kept_rows(self, spec: PairSpec, problem: PairProblem) -> int:
        return 0

    def forward(self, call: Call) -> Found:
        total = call.sweeps.logistic_sums(call.sides, *self._exponents(call))
        return found((Group(total),), None)

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        pair_gradient = PairGradient("logistic", weights, None, *self._exponents(call))
        return PackedGradients(*call.sweeps.gradient(call.sides, pair_gradient))

    def _exponents(self, call: Call) -> tuple[Exponent, Exponent]:
        scale, bound = call.spec.params
        return Exponent(scale, bound), Exponent(-scale, bound)


FAMILIES: dict[str, Family] = {
    "contrastive": Contrastive(),
    "margin": Margin(),
    "siglip": SigLIP(),
}


def _found(
    call: Call,
    groups: tuple[Group, ...],
    kept: Tensor | None,
    sums: HingeSums,
    counted: Tensor | None = None,
) -> Found:
    """With the statistics of the plain hinges of the anchors (B,) that are counted."""

    def statistics() -> Statistics:
        pairs = call.positives + call.negatives
        active = sums.positive_active.long() + sums.negative_active
        hinges = sums.positive_hinge.double() + sums.negative_hinge
        parts = [pairs, active, hinges]
        if counted is not None:
            parts = [torch.where(counted, part, 0) for part in parts]
        return Statistics(*(part.sum() for part in parts))

    return Found(groups, kept, statistics)
