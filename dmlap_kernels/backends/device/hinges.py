"""Terms of single pairs: the hinges of contrastive and margin, and SigLIP's smooth ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
        only: dict[str, Any] = {} if call.counted else {"read": HingeSums._fields[:4]}
        sums = call.sweeps.hinge_sums(call.sides, *self._bounds(call), squared, **only)
        groups = (
            Group(sums.positive, call.positives, sums.positive_active),
            Group(sums.negative, call.negatives, sums.negative_active),
        )
        return _found(call, groups, None, sums)

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        kind = "squared_hinge" if call.spec.params[2] else "hinge"
        coefficients = call.rows(*self._bounds(call), *weights)
        return PackedGradients(*call.sweeps.gradient(call.sides, PairGradient(kind, coefficients)))

    def _bounds(self, call: Call) -> tuple[Any, Any]:
        if not call.for_kernels:
            return call.spec.params[:2]
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
        total = torch.addcmul(negatives * sums.positive, positives, sums.negative)
        pushed, pulled = positives * sums.negative_active, sums.positive_active
        kept = torch.addcmul(pushed, negatives, pulled, value=-1).to(total.dtype)[None]
        nonzero = torch.addcmul(pushed, negatives, pulled) if call.counted else None
        group = Group(total, positives * negatives, nonzero)
        return _found(call, (group,), kept, sums, lambda: group.number > 0)

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        (weight,) = weights
        scales = weight * call.negatives, weight * call.positives
        pair_gradient = PairGradient("hinge", call.rows(*self._bounds(call), *scales))
        return PackedGradients(*call.sweeps.gradient(call.sides, pair_gradient), weight * kept[0])

    def _bounds(self, call: Call) -> tuple[Tensor, Tensor]:
        (margin,), beta = call.spec.params, call.anchor_params
        assert beta is not None
        if "bounds" not in call.memo:
            call.memo["bounds"] = beta - margin, beta + margin
        return call.memo["bounds"]


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
    counted: Callable[[], Tensor] | None = None,
) -> Found:
    """With the statistics of the plain hinges of the anchors (B,) that are counted."""

    def statistics() -> Statistics:
        pairs = call.positives + call.negatives
        active = sums.positive_active.long() + sums.negative_active
        hinges = sums.positive_hinge.double() + sums.negative_hinge
        parts = [pairs, active, hinges]
        if counted is not None:
            some = counted()
            parts = [torch.where(some, part, 0) for part in parts]
        return Statistics(*parts)

    return Found(groups, kept, statistics)
