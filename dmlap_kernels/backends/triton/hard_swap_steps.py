"""One mined triplet an anchor with swap: negatives may be nearer to positives than to anchors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dmlap_kernels.backends.triton import configurations
from dmlap_kernels.backends.triton.formulas import function
from dmlap_kernels.backends.triton.hard_swap_kernels import of_mined_kernel, swapped_kernel
from dmlap_kernels.backends.triton.kinds import Kind, Panel, Wanted, blocks_in
from dmlap_kernels.backends.triton.launching import Launch, Launcher
from dmlap_kernels.backends.triton.row_kernels import formula_kernel
from dmlap_kernels.backends.triton.steps import Step


class HardSwapKind(Kind):
    """Its last sweep goes over anchors, and a launch of its own over pairs of references."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        plan, launch = self.plan, configurations.panel_launch("swapped")
        others = (
            self.anchors, self.columns, self.width, self.depth, *self.numbers,
            function(plan.gradient), plan.prefix, plan.groups, self.spec.reduction,
            self._tiling(launch),
        )  # fmt: skip
        chunks = blocks_in(self.depth, launch.held(self.width))
        self.swapped = Launch(
            (blocks_in(self.columns, launch.BM), chunks, 1), others, launch.options
        )

    def _sweep(self, number: int, top: int, rows: int, prefix: int) -> Launch:
        own = self.plan.own[number]
        if own is None or self.plan.sweeps[number].policy != "of_mined":
            return super()._sweep(number, top, rows, prefix)
        launch, _, _, blocks = self._cut("panel_of_mined", rows)
        others = (
            top, self.anchors, self.width, self.depth, *self.numbers, function(own), prefix,
            self.height, self._tiling(launch),
        )  # fmt: skip
        return Launch((blocks, 1, 1), others, launch.options)


class HardSwapStep(Step):
    made = HardSwapKind
    kind: HardSwapKind
    # Table, header, gradient at the loss, anchor_params; the stride of the third.
    ends: tuple[Any, ...]

    def _sweep(
        self,
        launch: Launcher,
        at: list[Any],
        panel: Panel,
        pairs: tuple[Any, ...],
        ends: tuple[Any, Any, Any],
    ) -> None:
        *mining, (measure, of_pairs) = panel.sweeps
        super()._sweep(launch, at, panel._replace(sweeps=mining), pairs, ends)
        table, params, partials = ends
        launch("pairs", of_mined_kernel, measure, *pairs[1:3], *ends)
        launch("formula of pairs", formula_kernel, of_pairs, partials, table, params)

    def _weigh(
        self,
        launch: Launcher,
        at: list[Any],
        panel: Panel,
        pairs: tuple[Any, ...],
        ends: tuple[Any, ...],
    ) -> None:
        super()._weigh(launch, at, panel, pairs, ends)
        self.ends = (*ends[:4], ends[-1])

    def _unpack(
        self, launch: Launcher, at: list[Any], to: list[Any], wanted: Wanted, header: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        # Of a batch with itself references are anchors.
        number = wanted.products[0 if self.kind.self_case else 1]
        if number >= 0:
            y = at[self.kind.y.packed]
            launch("swapped", swapped_kernel, self.kind.swapped, y, to[number], *self.ends)
        return super()._unpack(launch, at, to, wanted, header)
