"""Losses in which the rows of a class act together: angular, SoftTriple."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from dmlap_kernels.backends.device.terms import (
    Call,
    Found,
    Group,
    PackedGradients,
    anchor_group,
    found,
)
from dmlap_kernels.problem import PairProblem, PairSpec


class Angular:
    """The loss ``angular``: a term for each positive pair."""

    def groups(self, spec: PairSpec) -> int:
        return 1

    def kept_rows(self, spec: PairSpec, problem: PairProblem) -> int:
        return 0

    def forward(self, call: Call) -> Found:
        total, nonzero = call.sweeps.angular_terms(call.sides, _tangent(call.spec))
        return found((Group(total, call.positives, nonzero.long()),), None)

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        return PackedGradients(
            *call.sweeps.angular_gradient(call.sides, _tangent(call.spec), weights[0])
        )


class SoftTriple:
    """The loss ``soft_triple``: a term for each anchor whose class has a centre."""

    # What the kernels need of each anchor again.
    _KEPT = 2

    def groups(self, spec: PairSpec) -> int:
        return 1

    def kept_rows(self, spec: PairSpec, problem: PairProblem) -> int:
        return self._KEPT

    def forward(self, call: Call) -> Found:
        terms, *kept = call.sweeps.soft_triple(call.sides, *call.spec.params).split((1, self._KEPT))
        return found((anchor_group(terms[0], call.positives > 0),), kept[0])

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        la, gamma, margin = call.spec.params
        return PackedGradients(
            *call.sweeps.soft_triple_gradient(call.sides, la, gamma, margin, kept, weights[0])
        )


def _tangent(spec: PairSpec) -> Any:
    (alpha,) = spec.params
    return alpha.deg2rad().tan() if isinstance(alpha, Tensor) else math.tan(math.radians(alpha))
