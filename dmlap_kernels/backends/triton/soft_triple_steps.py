"""SoftTriple by panels, of distances that are products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.triton import configurations
from dmlap_kernels.backends.triton.centre_kernels import (
    centres_kernel,
    classes_kernel,
    terms_kernel,
    weights_of_centres_kernel,
)
from dmlap_kernels.backends.triton.kinds import Kind, Panel, blocks_in
from dmlap_kernels.backends.triton.launching import Launch, Launcher
from dmlap_kernels.backends.triton.steps import Step


class SoftTripleKind(Kind):
    """Its one sweep goes through the centres of each class; there are no near pairs."""

    def _lay_out(self) -> None:
        super()._lay_out()
        # Begins, names and number of the classes.
        layout, columns = self.layout, self.columns
        self.classes = (
            layout.add(columns + 1, dtype=torch.int32),
            layout.add(columns, dtype=torch.int64),
            layout.add(1, dtype=torch.int32),
        )
        rows = configurations.ROWS_REDUCED
        self.find_classes = Launch((1, 1, 1), (columns, rows), {"num_warps": 8})

    def _partial_count(self, rows: int) -> int:
        return 4 * self._cut("centres", rows)[1] * rows

    def _sweep(self, number: int, top: int, rows: int, prefix: int) -> Launch:
        la, gamma, margin = map(float, self.spec.params)
        launch, splits, _, blocks = self._cut("centres", rows)
        others = (
            top, self.anchors, self.columns, splits, la, 1 / gamma, margin, self.height,
            launch.BM, launch.BN,
        )  # fmt: skip
        return Launch((blocks * splits, 1, 1), others, launch.options)

    def _formula(self, number: int, top: int, prefix: int) -> Launch:
        rows, block = min(self.height, self.anchors - top), configurations.ROWS_OF_FORMULAS
        others = top, self.anchors, self._cut("centres", rows)[1], self.height, block
        return Launch((blocks_in(rows, block), 1, 1), others, {"num_warps": 4})

    def _weights(self, top: int, rows: int) -> Launch:
        la, gamma, _ = map(float, self.spec.params)
        launch, splits, _, blocks = self._cut("centres", rows)
        others = (
            top, self.anchors, self.columns, splits, la, 1 / gamma, self.height,
            self.spec.reduction, launch.BM, launch.BN,
        )  # fmt: skip
        return Launch((blocks * splits, 1, 1), others, launch.options)


class SoftTripleStep(Step):
    made = SoftTripleKind
    kind: SoftTripleKind
    # Which centre each of the sorted ones is.
    order: Tensor

    def _pack(self, launch: Launcher, at: list[Any]) -> None:
        labels, self.order = self.ref_labels.sort(stable=True)
        pieces = [at[number] for number in self.kind.classes]
        kind = self.kind
        launch("classes", classes_kernel, kind.find_classes, launch.pointer(labels), *pieces)
        super()._pack(launch, at)

    def _read(self, launch: Launcher, at: list[Any], pairs: tuple[Any, ...]) -> tuple[Any, ...]:
        """What kernels read of a panel: products, labels, and the centres class by class."""
        classes = [at[number] for number in self.kind.classes]
        return (pairs[0], launch.pointer(self.labels), launch.pointer(self.order), *classes)

    def _sweep(
        self,
        launch: Launcher,
        at: list[Any],
        panel: Panel,
        pairs: tuple[Any, ...],
        ends: tuple[Any, Any, Any],
    ) -> None:
        table, _, partials = ends
        ((sweep, terms),) = panel.sweeps
        launch("centres", centres_kernel, sweep, *self._read(launch, at, pairs), partials)
        launch("terms", terms_kernel, terms, partials, table)

    def _weigh(
        self,
        launch: Launcher,
        at: list[Any],
        panel: Panel,
        pairs: tuple[Any, ...],
        ends: tuple[Any, ...],
    ) -> None:
        table, header, grad, *_, stride = ends
        read = self._read(launch, at, pairs)
        launch(
            "weights", weights_of_centres_kernel, panel.weights, *read, table, header, grad, stride
        )
