"""The angular loss against references, where their products are one panel each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.triton import configurations
from dmlap_kernels.backends.triton.angular_reference_kernels import (
    angular_anchor_weights_kernel,
    angular_reference_kernel,
    angular_reference_weights_kernel,
)
from dmlap_kernels.backends.triton.angular_steps import rates_of
from dmlap_kernels.backends.triton.class_bounds import bounds_kernel
from dmlap_kernels.backends.triton.kinds import HEADER, Kind, Panel, blocks_in
from dmlap_kernels.backends.triton.launching import Launch, Launcher
from dmlap_kernels.backends.triton.steps import Step, float_piece, plain
from dmlap_kernels.backends.triton.tile import ROWS_NAMED
from dmlap_kernels.problem import Gradients


class AngularReferenceKind(Kind):
    """Its one sweep goes through the references of each label."""

    def _stride(self) -> int:
        return self.columns

    def _partial_count(self, rows: int) -> int:
        return 0

    def _lay_out(self) -> None:
        super()._lay_out()
        add, anchors, columns = self.layout.add, self.anchors, self.columns
        self.bounds = tuple(
            add(count, dtype=torch.int32) for count in (anchors, anchors, columns, columns)
        )
        # Products among references.
        self.among = add(columns, columns)
        block = configurations.ROWS_OF_FORMULAS
        blocks = blocks_in(anchors, block)
        grid = (blocks + blocks_in(columns, block), 1, 1)
        self.find_bounds = Launch(grid, (anchors, columns, blocks, block), {"num_warps": 4})

    def _panel(self, top: int) -> Panel:
        launch = configurations.panel_launch("angular")
        sizes = self.anchors, self.columns, *rates_of(self.spec)
        named = self.named == ROWS_NAMED.value
        grid, options = (self.anchors, 1, 1), launch.options
        self.sums = Launch(grid, (*sizes, named, launch.BN), options)
        others = *sizes[1:], named, launch.BN
        self.among_weights = Launch((self.columns, 1, 1), others, options)
        weights = *sizes, named, self.spec.reduction, launch.BN
        return Panel(self.anchors, [], Launch(grid, weights, options))


class AngularReferenceStep(Step):
    """A `Step` with a second panel, of the products among references."""

    made = AngularReferenceKind
    kind: AngularReferenceKind
    # Anchors and references label by label.
    orders: tuple[Tensor, Tensor]
    among: Tensor

    def _pack(self, launch: Launcher, at: list[Any]) -> None:
        (sorted_x, order_x), (sorted_y, order_y) = (
            labels.sort(stable=True) for labels in (self.labels, self.ref_labels)
        )
        self.orders = order_x, order_y
        kind, pointer = self.kind, launch.pointer
        launch(
            "bounds", bounds_kernel, kind.find_bounds,
            pointer(self.labels), pointer(self.ref_labels), pointer(sorted_x), pointer(sorted_y),
            *(at[number] for number in kind.bounds),
        )  # fmt: skip
        super()._pack(launch, at)

    def _product(self, top: int) -> Tensor:
        kind = self.kind
        self.among = self._piece(kind.among, (kind.columns, kind.columns), kind.columns)
        self._product_of(kind.y, kind.y, self.among)
        return super()._product(top)

    def _labels(self, launch: Launcher) -> tuple[Any, ...]:
        """Labels of references, the anchors among them, and both orders."""
        pointer = launch.pointer
        orders = map(pointer, self.orders)
        return (pointer(self.ref_labels), pointer(self.itself), *orders)

    def _sweep(
        self,
        launch: Launcher,
        at: list[Any],
        panel: Panel,
        pairs: tuple[Any, ...],
        ends: tuple[Any, Any, Any],
    ) -> None:
        kind = self.kind
        bounds = (at[number] for number in kind.bounds[:2])
        launch(
            "sums", angular_reference_kernel, kind.sums,
            pairs[0], at[kind.among], launch.pointer(self.labels), *self._labels(launch), *bounds,
            ends[0],
        )  # fmt: skip

    def backward(self, saved: Tensor, grad: Tensor) -> Gradients:
        kind, wanted = self.kind, self.kind.wanted(self.wanted)
        grad, saved = plain(grad), plain(saved)
        compiled_for = grad.dtype, grad.data_ptr() % 16, saved.data_ptr() % 16
        launch = Launcher(kind.known.setdefault((self.wanted, *compiled_for), {}))
        at = launch.pieces(kind.layout, self.buffer)
        buffer = self.buffer.new_empty(wanted.layout.floats)
        to = launch.pieces(wanted.layout, buffer)
        panel = self.panel if self.kept else self._product(0)
        assert panel is not None
        weights = torch.empty_like(panel)
        pointer, bounds = launch.pointer, [at[number] for number in kind.bounds]
        read = pointer(panel), pointer(weights), at[kind.among]
        launch(
            "weights", angular_anchor_weights_kernel, kind.panels[0].weights,
            *read, pointer(self.labels), *self._labels(launch), *bounds[:2],
            pointer(saved, HEADER), pointer(saved), pointer(grad),
            grad.stride(0) if grad.ndim else 0,
        )  # fmt: skip
        if self.wanted[1]:
            launch(
                "among", angular_reference_weights_kernel, kind.among_weights,
                *read, *self._labels(launch), *bounds[2:],
            )  # fmt: skip
        # Their products are gone.
        self.kept = False
        self._multiply_both(weights, wanted, buffer)
        gx = gy = None
        if any(self.wanted):
            gx, gy = self._unpack(launch, at, to, wanted, pointer(saved))
        launch.done()
        return Gradients(gx, gy, None)

    def _multiply_both(self, weights: Tensor, wanted: Any, buffer: Tensor) -> None:
        """Weights of pairs times rows."""
        kind, (for_x, for_y) = self.kind, wanted.products
        y = self._piece(kind.y.packed, (kind.columns, kind.width), kind.width)
        if for_x >= 0:
            torch.mm(weights, y, out=float_piece(wanted, buffer, for_x))
        if for_y >= 0:
            x = self._piece(kind.x.packed, (kind.anchors, kind.width), kind.width)
            found = float_piece(wanted, buffer, for_y)
            torch.mm(weights.T, x, out=found)
            found.addmm_(self.among, y).addmm_(self.among.T, y)
