"""Triplets with negatives drawn by their distance, by panels of distances.

Backward draws again by the same numbers. The seed, of which there is a new one at every call, is
an argument of launches, and no part of what a kind is found by.
"""

from __future__ import annotations

from typing import Any

import torch

from dmlap_kernels.backends.triton import configurations
from dmlap_kernels.backends.triton.drawn_kernels import (
    drawn_terms_kernel,
    drawn_thirds_kernel,
    drawn_weights_kernel,
    shares_kernel,
)
from dmlap_kernels.backends.triton.draws import Density, mixed
from dmlap_kernels.backends.triton.kinds import Panel, blocks_in
from dmlap_kernels.backends.triton.launching import Launch, Launcher
from dmlap_kernels.backends.triton.plans import Plan
from dmlap_kernels.backends.triton.triplet_steps import TripletKind, TripletStep
from dmlap_kernels.problem import PairProblem, PairSpec


class DrawnKind(TripletKind):
    def _lay_out(self) -> None:
        super()._lay_out()
        groups = blocks_in(self.columns, configurations.panel_launch("shares").BN)
        self.sums = self.layout.add(self.height, groups + 2, dtype=torch.float64)

    def _panel(self, top: int) -> Panel:
        rows = min(self.height, self.anchors - top)
        launch, drawn = (configurations.panel_launch(name) for name in ("shares", "drawn"))
        _, smooth, third = self._which()
        blocks = launch.BM, launch.BN, self._tiling(launch)
        shares = Launch(
            (rows, 1, 1), (top, self.columns, *self._density(), *blocks), launch.options
        )
        numbers = top, self.anchors, self.columns, *self._numbers()
        blocks = drawn.BM, drawn.BN, self._tiling(drawn)
        # Without statistics, and with them.
        terms = [
            Launch((rows, 1, 1), (*numbers, smooth, third, told, *blocks), drawn.options)
            for told in (False, True)
        ]
        which = smooth, third, self.spec.reduction
        weights = Launch((rows, 1, 1), (*numbers, *which, *blocks), drawn.options)
        sweeps = [(self._distances(top), one) for one in terms]
        return Panel(rows, sweeps, weights, shares)

    def _weights_of_references(self) -> Launch:
        launch = configurations.panel_launch("drawn")
        others = (
            self.anchors, self.columns, *self._numbers(), self._which()[1], self.spec.reduction,
            launch.BM, launch.BN, self._tiling(launch),
        )  # fmt: skip
        return Launch((self.columns, 1, 1), others, launch.options)

    def _numbers(self) -> tuple[float, ...]:
        return float(self.spec.params[0]), *self._density()

    def _density(self) -> Density:
        cutoff, beyond = map(float, self.spec.params[3:5])
        return Density.of(cutoff, beyond, self.features)


class DrawnStep(TripletStep):
    made = DrawnKind
    kind: DrawnKind
    kernels = drawn_terms_kernel, drawn_weights_kernel, drawn_thirds_kernel

    def __init__(self, plan: Plan, spec: PairSpec, problem: PairProblem) -> None:
        *params, seed = spec.params
        word = mixed(int(seed))
        # Whole numbers of 32 bits, so that Triton takes all seeds for the same kind of argument.
        low = word & 0xFFFFFFFF
        self.seed = word >> 32, low - ((low & 0x80000000) << 1)
        super().__init__(plan, spec._replace(params=(*params, 0.0)), problem)

    def _measure(
        self, launch: Launcher, at: list[Any], panel: Panel, pairs: tuple[Any, ...]
    ) -> None:
        super()._measure(launch, at, panel, pairs)
        assert panel.besides is not None
        sums, itself = at[self.kind.sums], launch.pointer(self.itself)
        classes = *self._runs(launch, at), itself
        launch("shares", shares_kernel, panel.besides, pairs[0], sums, *classes)

    def _classes(self, launch: Launcher, at: list[Any]) -> tuple[Any, ...]:
        itself = launch.pointer(self.itself)
        return (at[self.kind.sums], *self._runs(launch, at), itself, *self.seed)

    def _classes_of_references(self, launch: Launcher, at: list[Any]) -> tuple[Any, ...]:
        return self._classes(launch, at)
