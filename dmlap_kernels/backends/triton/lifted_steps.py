"""The original form of the lifted structure loss, by panels.

Its terms need the log-sums of both ends of a pair: of more than one panel all are swept for these
first. So it is in backward with references, for what terms give the log-sums of references.
"""

from __future__ import annotations

from typing import Any

from dmlap_kernels.backends.triton import configurations
from dmlap_kernels.backends.triton.kinds import Panel, blocks_in
from dmlap_kernels.backends.triton.launching import Launch, Launcher
from dmlap_kernels.backends.triton.lifted_kernels import (
    by_ends_kernel,
    ends_kernel,
    lifted_terms_kernel,
    lifted_weights_kernel,
)
from dmlap_kernels.backends.triton.own_panel_steps import OwnPanelKind, OwnPanelStep


class LiftedKind(OwnPanelKind):
    tile = "lifted"

    def _lay_out(self) -> None:
        super()._lay_out()
        add, anchors, columns = self.layout.add, self.anchors, self.columns
        # Of anchors and references: log-sums, and the gradient at them.
        x = add(2, anchors), add(anchors)
        self.ends = x, x if self.self_case else (add(2, columns), add(columns))

    def _panel(self, top: int) -> Panel:
        """The sweeps for log-sums and for terms; that for the gradient at log-sums is apart."""
        rows = min(self.height, self.anchors - top)
        launch, across = map(configurations.panel_launch, (self.tile, "lifted_columns"))
        pos_margin, neg_margin = map(float, self.spec.params)
        blocks = blocks_in(rows, launch.BM)
        both = blocks + (0 if self.self_case else blocks_in(self.columns, across.BN))
        how, options = self._tiling(launch), launch.options
        hows, reduction = (how, self._tiling(across)), self.spec.reduction
        sizes = top, self.anchors, self.columns, self.width, rows
        ends = Launch((both, 1, 1), (*sizes, blocks, neg_margin, *hows), options)
        terms = Launch((blocks, 1, 1), (*sizes, pos_margin, how), options)
        by_ends = Launch((both, 1, 1), (*sizes, blocks, pos_margin, reduction, *hows), options)
        tiles = blocks * blocks_in(self.columns, launch.BN)
        margins = pos_margin, neg_margin
        weights = Launch((tiles, 1, 1), (*sizes, *margins, reduction, how), options)
        return Panel(rows, [(ends, terms), (by_ends, by_ends)], weights)


class LiftedStep(OwnPanelStep):
    made = LiftedKind
    kind: LiftedKind
    # Whether the buffer has log-sums.
    has_ends = False

    def _ends(self, at: list[Any]) -> tuple[Any, Any, Any, Any]:
        """Log-sums of both sides, gradients at them."""
        (of_x, by_x), (of_y, by_y) = self.kind.ends
        return at[of_x], at[of_y], at[by_x], at[by_y]

    def _before_sweeps(self, launch: Launcher, at: list[Any]) -> None:
        for top, panel in self.kind.panels.items():
            pairs = self._pairs(launch, at, self._product(top))
            (ends, _), _ = panel.sweeps
            launch("ends", ends_kernel, ends, *pairs, *self._ends(at)[:2])
        self.has_ends = True

    def _sweep(
        self,
        launch: Launcher,
        at: list[Any],
        panel: Panel,
        pairs: tuple[Any, ...],
        ends: tuple[Any, Any, Any],
    ) -> None:
        (_, terms), _ = panel.sweeps
        launch("terms", lifted_terms_kernel, terms, *pairs, *self._ends(at)[:2], ends[0])

    def _before_weights(self, launch: Launcher, at: list[Any], ends: tuple[Any, ...]) -> None:
        if not self.has_ends:
            self._before_sweeps(launch, at)
        if not self.kind.self_case:
            for top, panel in self.kind.panels.items():
                pairs = self._pairs(launch, at, self._product(top))
                self._find_gradient_at_ends(launch, at, panel, pairs, ends)

    def _find_gradient_at_ends(
        self,
        launch: Launcher,
        at: list[Any],
        panel: Panel,
        pairs: tuple[Any, ...],
        ends: tuple[Any, ...],
    ) -> None:
        table, header, grad, _, stride = ends
        _, (by_ends, _) = panel.sweeps
        launch(
            "by_ends", by_ends_kernel, by_ends,
            *pairs, *self._ends(at), table, header, grad, stride,
        )  # fmt: skip

    def _weigh(
        self,
        launch: Launcher,
        at: list[Any],
        panel: Panel,
        pairs: tuple[Any, ...],
        ends: tuple[Any, ...],
    ) -> None:
        table, header, grad, params, _, marks, _, stride = ends
        if self.kind.self_case:
            # Of both ends of a pair, so that those of the panel's rows are all that it needs.
            of_terms = table, header, grad, params, stride
            self._find_gradient_at_ends(launch, at, panel, pairs, of_terms)
        launch(
            "weights", lifted_weights_kernel, panel.weights,
            *pairs, *self._ends(at), table, header, grad, launch.pointer(self._room()), marks,
            stride,
        )  # fmt: skip
