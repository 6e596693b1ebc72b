"""The angular loss of a batch with itself, where all of its products are one panel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.triton import configurations
from dmlap_kernels.backends.triton.angular_kernels import (
    angular_kernel,
    angular_weights_kernel,
    runs_kernel,
)
from dmlap_kernels.backends.triton.kinds import HEADER, Kind, Panel
from dmlap_kernels.backends.triton.launching import Launch, Launcher
from dmlap_kernels.backends.triton.steps import Step, float_piece, plain
from dmlap_kernels.problem import Gradients, PairSpec


def rates_of(spec: PairSpec) -> tuple[float, float]:
    """The factors of s_an + s_pn and of s_ap in the terms."""
    square = math.tan(math.radians(float(spec.params[0]))) ** 2
    return 4 * square, 2 * (1 + square)


class AngularKind(Kind):
    """Its one sweep goes through the rows of each class."""

    def _stride(self) -> int:
        return self.columns

    def _partial_count(self, rows: int) -> int:
        return 0

    def _lay_out(self) -> None:
        super()._lay_out()
        # Where classes begin; of each row the number of its class.
        self.classes = (
            self.layout.add(self.anchors + 1, dtype=torch.int32),
            self.layout.add(self.anchors, dtype=torch.int32),
        )
        others = self.anchors, configurations.ROWS_REDUCED
        self.find_classes = Launch((1, 1, 1), others, {"num_warps": 8})

    def _panel(self, top: int) -> Panel:
        launch = configurations.panel_launch("angular")
        rates = rates_of(self.spec)
        grid, options = (self.anchors, 1, 1), launch.options
        self.sums = Launch(grid, (self.anchors, *rates, launch.BN), options)
        weights = self.anchors, *rates, self.spec.reduction, launch.BN
        return Panel(self.anchors, [], Launch(grid, weights, options))


class AngularStep(Step):
    """A `Step` whose backward half holds a second panel."""

    made = AngularKind
    kind: AngularKind
    # Rows class by class.
    order: Tensor

    def _pack(self, launch: Launcher, at: list[Any]) -> None:
        labels, self.order = self.labels.sort(stable=True)
        kind, pointer = self.kind, launch.pointer
        classes = [at[number] for number in kind.classes]
        rows = pointer(labels), pointer(self.order)
        launch("classes", runs_kernel, kind.find_classes, *rows, *classes)
        super()._pack(launch, at)

    def _classes(self, launch: Launcher, at: list[Any]) -> tuple[Any, ...]:
        begins, classes = self.kind.classes
        return launch.pointer(self.order), at[begins], at[classes]

    def _sweep(
        self,
        launch: Launcher,
        at: list[Any],
        panel: Panel,
        pairs: tuple[Any, ...],
        ends: tuple[Any, Any, Any],
    ) -> None:
        classes = self._classes(launch, at)
        launch("sums", angular_kernel, self.kind.sums, pairs[0], *classes, ends[0])

    def backward(self, saved: Tensor, grad: Tensor) -> Gradients:
        kind, wanted = self.kind, self.kind.wanted((True, False))
        grad, saved = plain(grad), plain(saved)
        compiled_for = grad.dtype, grad.data_ptr() % 16, saved.data_ptr() % 16
        launch = Launcher(kind.known.setdefault(("backward", *compiled_for), {}))
        at = launch.pieces(kind.layout, self.buffer)
        buffer = self.buffer.new_empty(wanted.layout.floats)
        to = launch.pieces(wanted.layout, buffer)
        panel = self.panel if self.kept else self._product(0)
        assert panel is not None
        weights = torch.empty_like(panel)
        pointer = launch.pointer
        launch(
            "weights", angular_weights_kernel, kind.panels[0].weights,
            pointer(panel), pointer(weights), *self._classes(launch, at), pointer(saved, HEADER),
            pointer(saved), pointer(grad), grad.stride(0) if grad.ndim else 0,
        )  # fmt: skip
        # Its products are gone.
        self.kept = False
        product = float_piece(wanted, buffer, wanted.products[0])
        rows = self._piece(kind.x.packed, (kind.anchors, kind.width), kind.width)
        torch.mm(weights, rows, out=product)
        product.addmm_(weights.T, rows)
        gx, _ = self._unpack(launch, at, to, wanted, pointer(saved))
        launch.done()
        return Gradients(gx, None, None)
