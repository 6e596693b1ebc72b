"""Triplets of every positive pair with mined negatives. The kernels do all of it."""

from __future__ import annotations

from torch import Tensor

from dmlap_kernels.backends.device.sweeps import Triplets
from dmlap_kernels.backends.device.terms import Call, Found, Group, PackedGradients, Statistics
from dmlap_kernels.problem import PairProblem, PairSpec


class Mined:
    """The losses ``triplet_semihard``, ``triplet_all`` and ``triplet_distance_weighted``."""

    def groups(self, spec: PairSpec) -> int:
        return 1

    def kept_rows(self, spec: PairSpec, problem: PairProblem) -> int:
        return 0

    def forward(self, call: Call) -> Found:
        sums = call.sweeps.triplet_sums(call.sides, triplets_of(call.spec))
        total, nonzero, hinges, violated, terms = sums.unbind(1)
        group = Group(total.to(call.sides.x.dtype), terms, nonzero)

        def statistics() -> Statistics:
            return Statistics(terms.long(), violated.long(), hinges)

        return Found((group,), None, statistics)

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        return PackedGradients(
            *call.sweeps.triplet_gradient(call.sides, triplets_of(call.spec), weights[0])
        )


def triplets_of(spec: PairSpec) -> Triplets:
    margin, smooth, swap, *draw = spec.params
    found = Triplets(spec.loss.removeprefix("triplet_"), margin, bool(smooth), bool(swap))
    if not draw:
        return found
    cutoff, beyond, seed = draw
    # A tensor stays one: to read it would wait for its device.
    whole = seed if isinstance(seed, Tensor) else int(seed)
    return found._replace(cutoff=cutoff, beyond=beyond, seed=whole)
