"""All triplets, or semi-hard ones, by panels of distances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlap_kernels.backends.triton import configurations
from dmlap_kernels.backends.triton.kinds import HEADER, Kind, Panel, Side, Wanted, blocks_in
from dmlap_kernels.backends.triton.launching import Launch, Launcher, Layout
from dmlap_kernels.backends.triton.run_kernels import runs_kernel
from dmlap_kernels.backends.triton.steps import Step, float_piece, plain
from dmlap_kernels.backends.triton.tile import SELF, Tiling, tiling
from dmlap_kernels.backends.triton.triplet_kernels import (
    coefficients_kernel,
    distances_kernel,
    third_weights_kernel,
    triplet_weights_kernel,
    triplets_kernel,
)
from dmlap_kernels.backends.triton.triplet_near import near_triplets_kernel
from dmlap_kernels.problem import Gradients


class References(NamedTuple):
    """Launches over pairs of two references."""

    distances: Launch
    weights: Launch
    coefficients: Launch
    near: Launch


class TripletKind(Kind):
    """With swap distances among references are a panel as well, that of the batch in the self case;
    all anchors are one panel then."""

    def __init__(self, *arguments: Any) -> None:
        # Of the backward half, by which gradients are wanted: weights of the panel, and which of
        # its rows have near pairs; the same of references where they count.
        self.pieces: dict[tuple[bool, bool], list[tuple[int, int]]] = {}
        super().__init__(*arguments)
        self.coefficients = {
            top: self._coefficients_of(top, self.anchors, self.height, self._tiling)
            for top in self.tops
        }
        self.references = self._references() if self.third_of_references else None

    @property
    def third(self) -> bool:
        return bool(self.spec.params[2])

    @property
    def third_of_references(self) -> bool:
        return self.third and not self.self_case

    def _which(self) -> tuple[bool, bool, bool]:
        return self.spec.loss == "triplet_all", bool(self.spec.params[1]), self.third

    def _partial_count(self, rows: int) -> int:
        return 0

    def _lay_out(self) -> None:
        super()._lay_out()
        self.runs = self._runs(self.columns, self.anchors)
        if self.third_of_references:
            self.runs_of_anchors = self._runs(self.anchors, self.columns)
            self.among = self.layout.add(self.columns, self.stride)

    def _runs(self, count: int, others: int) -> tuple[tuple[int, int, int], Launch]:
        """Places of ``count`` rows in the order of their labels, and where there the classes of the
        ``others`` begin and end; the launch."""
        block, sizes = configurations.ROWS_OF_FORMULAS, (count, others, others)
        places, begins, ends = (self.layout.add(size, dtype=torch.int32) for size in sizes)
        arguments = count, others, count.bit_length(), block
        launch = Launch((blocks_in(max(count, others), block), 1, 1), arguments, {"num_warps": 4})
        return (places, begins, ends), launch

    def _panel(self, top: int) -> Panel:
        rows = min(self.height, self.anchors - top)
        launch = configurations.panel_launch("triplets")
        kind = top, self.anchors, self.columns, float(self.spec.params[0]), *self._which()
        blocks = launch.BM, launch.BN, self._tiling(launch)
        weights = Launch((rows, 1, 1), (*kind, self.spec.reduction, *blocks), launch.options)
        # Without statistics, and with them.
        sweeps = [
            (self._distances(top), Launch((rows, 1, 1), (*kind, told, *blocks), launch.options))
            for told in (False, True)
        ]
        return Panel(rows, sweeps, weights)

    def _distances(self, top: int) -> Launch:
        rows = min(self.height, self.anchors - top)
        launch, splits, span, blocks = self._cut("triplet_pairs", rows)
        sizes = top, self.anchors, self.columns, self.width, span, splits, self.height
        return Launch((blocks * splits, 1, 1), (*sizes, self._tiling(launch)), launch.options)

    def _coefficients_of(
        self, top: int, anchors: int, height: int, tiled: Callable[[Any], Tiling]
    ) -> Launch:
        launch, splits, span, blocks = self._cut("triplet_pairs", min(height, anchors - top))
        others = top, anchors, self.columns, span, splits, height, tiled(launch)
        return Launch((blocks * splits, 1, 1), others, launch.options)

    def _near(self, top: int, which: tuple[bool, bool], chunks: int) -> Launch:
        launch = configurations.panel_launch("panel_near")
        rows = min(self.height, self.anchors - top)
        _, splits, span, _ = self._cut("triplet_pairs", rows)
        blocks = 0 if self.self_case or not which[0] else blocks_in(rows, launch.BM)
        others = blocks_in(self.columns, launch.BM) if self.self_case or which[1] else 0
        arguments = (
            top, top, self.anchors, self.columns, self.width, span, splits, blocks, self.height,
            self._tiling(launch),
        )  # fmt: skip
        return Launch((blocks + others, chunks, 1), arguments, launch.options)

    def _references(self) -> References:
        count, pairs = self.columns, configurations.panel_launch("triplet_pairs")
        _, splits, span, blocks = self._cut("triplet_pairs", count)
        sizes = 0, count, count, self.width, span, splits, count
        grid = blocks * splits, 1, 1
        distances = Launch(grid, (*sizes, self._among(pairs)), pairs.options)
        near = configurations.panel_launch("panel_near")
        chunks = blocks_in(self.width, near.held(self.width))
        # Added to what pairs of anchors brought.
        added = 1, 0, count, count, self.width, span, splits, 0, count, self._among(near)
        return References(
            distances,
            self._weights_of_references(),
            self._coefficients_of(0, count, count, self._among),
            Launch((blocks_in(count, near.BM), chunks, 1), added, near.options),
        )

    def _weights_of_references(self) -> Launch:
        launch = configurations.panel_launch("triplets")
        every, smooth, _ = self._which()
        others = (
            self.anchors, self.columns, float(self.spec.params[0]), every, smooth,
            self.spec.reduction, launch.BM, launch.BN, self._tiling(launch),
        )  # fmt: skip
        return Launch((self.columns, 1, 1), others, launch.options)

    def _among(self, launch: configurations.Launch) -> Tiling:
        """Of pairs of two references."""
        return tiling(self.spec.distance, self.precision, True, SELF.value, launch, self.width)

    def _backward(self, which: tuple[bool, bool]) -> Wanted:
        wanted = super()._backward(which)
        pieces = self.pieces[which] = []
        pieces.append(self._pieces_of(wanted.layout, self.height, self._panel_rows()))
        if self.third_of_references:
            pieces.append(self._pieces_of(wanted.layout, self.columns, {self.columns}))
        return wanted

    def _pieces_of(self, layout: Layout, height: int, panels: set[int]) -> tuple[int, int]:
        marks = max(self._cut("triplet_pairs", rows)[1] * rows for rows in panels)
        return layout.add(height, self.stride), layout.add(marks, dtype=torch.int32)


class TripletStep(Step):
    """A `Step` whose panels become those of distances. Its backward half holds a second panel."""

    made = TripletKind
    kind: TripletKind
    # Of a panel's terms, of its weights, and of those of pairs of two references.
    kernels: tuple[Any, Any, Any] = triplets_kernel, triplet_weights_kernel, third_weights_kernel
    # References, and with swap also anchors, class by class.
    orders: list[Tensor]
    # Distances among references, while they are that.
    among: Tensor | None = None

    def _pack(self, launch: Launcher, at: list[Any]) -> None:
        kind, point, self.orders = self.kind, launch.pointer, []
        calls = [("runs", self.ref_labels, self.labels, kind.runs)]
        if kind.third_of_references:
            calls.append(("anchors", self.labels, self.ref_labels, kind.runs_of_anchors))
        for place, of, others, ((places, begins, ends), how) in calls:
            labels, order = of.sort(stable=True)
            self.orders.append(order)
            launch(
                place, runs_kernel, how,
                point(labels), point(order), at[places], point(others), at[begins], at[ends],
            )  # fmt: skip
        super()._pack(launch, at)

    def _measure(
        self, launch: Launcher, at: list[Any], panel: Panel, pairs: tuple[Any, ...]
    ) -> None:
        """Makes distances of products."""
        distances, _ = panel.sweeps[0]
        launch("distances", distances_kernel, distances, *pairs[:5], pairs[-1])

    def _measured_among(self, launch: Launcher, at: list[Any], panel: Tensor) -> Tensor:
        """The panel of pairs among references: that of the batch in the self case."""
        kind = self.kind
        if kind.references is None:
            return panel
        if self.among is None:
            shape = kind.columns, kind.columns
            self.among = self._piece(kind.among, shape, kind.stride)
            y = kind.y
            self._product_of(y, y, self.among)
            pointers = [launch.pointer(self.among), *[at[y.packed]] * 2, *[at[y.norms]] * 2]
            launch(
                "among", distances_kernel, kind.references.distances,
                *pointers, launch.pointer(self.ref_labels),
            )  # fmt: skip
        return self.among

    def _classes(self, launch: Launcher, at: list[Any]) -> tuple[Any, ...]:
        """What kernels read of classes."""
        rows = self.labels, self.ref_labels, self.itself
        return (*self._runs(launch, at), *map(launch.pointer, rows))

    def _runs(self, launch: Launcher, at: list[Any]) -> tuple[Any, ...]:
        """The order of references, places in it, and where there the classes of anchors are."""
        runs, _ = self.kind.runs
        return (launch.pointer(self.orders[0]), *[at[number] for number in runs])

    def _classes_of_references(self, launch: Launcher, at: list[Any]) -> tuple[Any, ...]:
        """What the kernel of pairs of two references reads of classes, after those of anchors."""
        order, places, *_ = self._runs(launch, at)
        return (order, places, *map(launch.pointer, (self.ref_labels, self.itself)))

    def _sweep(
        self,
        launch: Launcher,
        at: list[Any],
        panel: Panel,
        pairs: tuple[Any, ...],
        ends: tuple[Any, Any, Any],
    ) -> None:
        assert self.panel is not None
        self._measure(launch, at, panel, pairs)
        among = launch.pointer(self._measured_among(launch, at, self.panel))
        _, sums = panel.sweeps[self.told is not None]
        classes = self._classes(launch, at)
        statistics = ends[0] if self.told is None else self.told.terms
        launch("sums", self.kernels[0], sums, pairs[0], among, *classes, ends[0], statistics)

    def backward(self, saved: Tensor, grad: Tensor) -> Gradients:
        kind, wanted = self.kind, self.kind.wanted(self.wanted)
        grad, saved = plain(grad), plain(saved)
        compiled_for = grad.dtype, grad.data_ptr() % 16, saved.data_ptr() % 16
        # Distances are made again where they were not kept.
        half = self.wanted, self.kept, *compiled_for
        launch = Launcher(kind.known.setdefault(half, {}))
        at = launch.pieces(kind.layout, self.buffer)
        buffer = self.buffer.new_empty(wanted.layout.floats)
        to = launch.pieces(wanted.layout, buffer)
        ends = (
            launch.pointer(saved, HEADER), launch.pointer(saved), launch.pointer(grad),
            grad.stride(0) if grad.ndim else 0,
        )  # fmt: skip
        products = [
            None if number < 0 else float_piece(wanted, buffer, number)
            for number in wanted.products
        ]
        (number, marks), *of_references = kind.pieces[self.wanted]
        weights = float_piece(wanted, buffer, number)[:, : kind.columns]
        nears = self._nears(at, to, wanted)
        sides = at[kind.x.packed], at[kind.y.packed]
        for top, panel in kind.panels.items():
            kept, distances = self.kept, self.panel if self.kept else self._product(top)
            assert distances is not None
            if not kept:
                self._measure(launch, at, panel, self._pairs(launch, at, distances))
            among = self._measured_among(launch, at, distances)
            classes, point = self._classes(launch, at), launch.pointer
            launch(
                "weights", self.kernels[1], panel.weights,
                point(distances), point(among), to[number], *classes, *ends,
            )  # fmt: skip
            if of_references and self.wanted[1]:
                self._weigh_references(launch, at, to, (distances, among), ends)
            if kind.ones:
                read = point(distances), to[number], to[marks]
                launch("coefficients", coefficients_kernel, kind.coefficients[top], *read)
                if any(self.wanted):
                    launch(
                        "near", near_triplets_kernel, wanted.near[top], *read[::2], *sides, *nears
                    )
            self._multiply(weights, top, panel.rows, products)
        if of_references and self.wanted[1]:
            self._add_references(launch, to, (buffer, wanted), sides, nears)
        # Distances are gone.
        self.kept, self.among = False, None
        if not kind.one_panel:
            self.panel = None
        gx = gy = None
        if any(self.wanted):
            gx, gy = self._unpack(launch, at, to, wanted, ends[1])
        launch.done()
        return Gradients(gx, gy, None)

    def _nears(self, at: list[Any], to: list[Any], wanted: Wanted) -> list[Any]:
        found = super()._nears(at, to, wanted)
        # Of a batch with itself references are anchors.
        return [found[0], found[0], found[2], found[2]] if self.kind.self_case else found

    def _multiply(
        self, weights: Tensor, top: int, rows: int, products: list[Tensor | None]
    ) -> None:
        if not self.kind.self_case:
            super()._multiply(weights, top, rows, products)
            return
        kind, weights, (product, _) = self.kind, weights[:rows], products
        assert product is not None
        some, every = self._packed(kind.x, rows, top), self._packed(kind.x, kind.anchors)
        if top:
            product.addmm_(weights.T, some)
        else:
            torch.mm(weights.T, some, out=product)
        product[top : top + rows].addmm_(weights, every)

    def _packed(self, side: Side, rows: int, top: int = 0) -> Tensor:
        return self._piece(side.packed, (rows, self.kind.width), self.kind.width, top)

    def _weigh_references(
        self,
        launch: Launcher,
        at: list[Any],
        to: list[Any],
        panels: tuple[Tensor, Tensor],
        ends: tuple[Any, ...],
    ) -> None:
        """Weights of pairs of two references."""
        kind, point = self.kind, launch.pointer
        assert kind.references is not None
        number, _ = kind.pieces[self.wanted][1]
        (_, begins, ends_of), _ = kind.runs_of_anchors
        launch(
            "references", self.kernels[2], kind.references.weights,
            *map(point, panels), to[number], point(self.orders[1]), at[begins], at[ends_of],
            *self._classes_of_references(launch, at), *ends,
        )  # fmt: skip

    def _add_references(
        self,
        launch: Launcher,
        to: list[Any],
        memory: tuple[Tensor, Wanted],
        sides: tuple[Any, Any],
        nears: list[Any],
    ) -> None:
        """Adds what pairs of two references bring."""
        kind, (buffer, wanted) = self.kind, memory
        assert kind.references is not None and self.among is not None
        number, marks = kind.pieces[self.wanted][1]
        if kind.ones:
            near, how = launch.pointer(self.among), kind.references
            read = near, to[number], to[marks]
            launch("among coefficients", coefficients_kernel, how.coefficients, *read)
            at_y = sides[1], sides[1], nears[1], nears[1], nears[3], nears[3]
            launch("among near", near_triplets_kernel, how.near, near, to[marks], *at_y)
        weights = float_piece(wanted, buffer, number)[:, : kind.columns]
        product = float_piece(wanted, buffer, wanted.products[1])
        rows = self._packed(kind.y, kind.columns)
        product.addmm_(weights, rows).addmm_(weights.T, rows)
