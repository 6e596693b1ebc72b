"""A loss by panels: a product of the vendor's library, one kernel over it for each sweep, and few
launches besides.

    forward     pack; for each panel a product, and for each sweep the sweep and its formula; reduce
                (with statistics also what `statistics_steps` adds)
    backward    for each panel the product unless it was kept, its weights, what near pairs add
                (of Euclidean distances), and a product for each side; unpack

The host asks for all of it in little time: what can be worked out once is in a `Kind`, what a half
needs for itself lies in one buffer, and kernels are launched by a `Launcher`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmlap_kernels.backends.triton.kinds import HEADER, Kind, Panel, Side, Wanted, kind_of
from dmlap_kernels.backends.triton.launching import Launch, Launcher
from dmlap_kernels.backends.triton.panel_kernels import sweep_kernel, weights_of_panel_kernel
from dmlap_kernels.backends.triton.panel_near import near_kernel
from dmlap_kernels.backends.triton.plans import Plan
from dmlap_kernels.backends.triton.row_kernels import (
    formula_kernel,
    pack_kernel,
    reduce_kernel,
    unpack_kernel,
)
from dmlap_kernels.problem import Gradients, PairProblem, PairSpec

if TYPE_CHECKING:
    from dmlap_kernels.backends.triton.statistics_steps import PanelStatistics


class Step:
    """The buffers and launches of one call of at least one anchor and one reference."""

    made: type[Kind] = Kind

    def __init__(self, plan: Plan, spec: PairSpec, problem: PairProblem) -> None:
        self.problem = problem
        self.x, self.labels = plain(problem.x), plain(problem.labels).contiguous()
        self.y, self.ref_labels = self.x, self.labels
        given = [self.x, self.labels]
        if problem.y is not None:
            assert problem.ref_labels is not None
            self.y, self.ref_labels = plain(problem.y), plain(problem.ref_labels).contiguous()
            given += self.y, self.ref_labels
        # Any tensor where there is none.
        self.itself, self.params = self.labels, None
        if problem.self_index is not None:
            self.itself = plain(problem.self_index).contiguous()
            given.append(self.itself)
        if problem.anchor_params is not None:
            self.params = plain(problem.anchor_params).contiguous()
            given.append(self.params)
        self.kind = kind_of(
            self.made, plan, spec, problem, (*given, *self._more_given()), self._more()
        )
        self.plan, self.spec = plan, spec
        self.buffer = self.x.new_empty(self.kind.layout.floats, dtype=torch.float32)
        self.panel: Tensor | None = None
        # What statistics a forward half fills meanwhile.
        self.told: PanelStatistics | None = None
        # Of a match, what kernels read of the pairs of the panel; and whether that is both ways.
        self.alike: Tensor | None = None
        self.both_ways = False
        # Whether the panel holds products.
        self.kept = False
        # Which gradients are wanted.
        self.wanted = (True, problem.y is not None)

    def _more_given(self) -> tuple[Tensor, ...]:
        """What else is read of the caller's."""
        return ()

    def _more(self) -> Any:
        """What else the sizes of the kind follow from."""
        return None

    def forward(self, told: PanelStatistics | None = None) -> tuple[Tensor, Tensor]:
        """The loss, and what is saved: the header, and the table. Fills the statistics ``told``."""
        kind, self.told = self.kind, told
        launch = Launcher(kind.known.setdefault(("forward", told is not None), {}))
        at = launch.pieces(kind.layout, self.buffer)
        self._pack(launch, at)
        saved = self.buffer.new_empty(kind.saved)
        loss = self.buffer.new_empty(kind.loss)
        table = launch.pointer(saved, HEADER)
        partials = at[kind.partials]
        params = self._params(launch, at)
        self._before_sweeps(launch, at)
        if told is not None:
            told.begin(launch)
        for top, panel in kind.panels.items():
            self._match(top, False)
            pairs = self._pairs(launch, at, self._product(top))
            # Some sweeps of losses leave something else in the place of products.
            if told is not None:
                told.sweep(launch, top, pairs)
            self._sweep(launch, at, panel, pairs, (table, params, partials))
            if told is not None:
                told.gather(launch, top, (table, params, partials))
        launch(
            "reduce", reduce_kernel, kind.reduce,
            table, at[kind.flags], launch.pointer(saved), launch.pointer(loss),
        )  # fmt: skip
        if told is not None:
            told.sum_up(launch)
        launch.done()
        self.told = None
        if not kind.one_panel:
            self.panel = self.alike = None
        return loss, saved

    def _before_sweeps(self, launch: Launcher, at: list[Any]) -> None:
        """What must be known of all panels before the sweeps of the first one."""

    def _sweep(
        self,
        launch: Launcher,
        at: list[Any],
        panel: Panel,
        pairs: tuple[Any, ...],
        ends: tuple[Any, Any, Any],
    ) -> None:
        """``ends`` are table, anchor_params and partials."""
        table, params, partials = ends
        for number, (sweep, formula) in enumerate(panel.sweeps):
            launch((number, "sweep"), sweep_kernel, sweep, *pairs, table, params, partials)
            launch((number, "formula"), formula_kernel, formula, partials, table, params)

    def pack(self) -> None:
        """What backward needs of a forward half that ran elsewhere."""
        launch = Launcher(self.kind.known.setdefault("pack", {}))
        self._pack(launch, launch.pieces(self.kind.layout, self.buffer))
        launch.done()

    def _pack(self, launch: Launcher, at: list[Any]) -> None:
        """Packs both sides; leaves what is to be added up to know of embeddings that are not
        finite."""
        kind = self.kind
        x, y = kind.x, kind.y
        launch(
            "pack", pack_kernel, kind.pack,
            launch.pointer(self.x), launch.pointer(self.y), at[x.packed], at[y.packed],
            at[x.parts], at[y.parts], at[x.norms], at[y.norms], at[x.lengths], at[y.lengths],
            at[kind.flags],
        )  # fmt: skip

    def _product(self, top: int) -> Tensor:
        """The panel from row ``top`` on, made unless it is at hand."""
        kind = self.kind
        if self.kept:
            assert self.panel is not None
            return self.panel
        if self.panel is None:
            if kind.one_panel:
                self.panel = self._piece(kind.panel, (kind.height, kind.columns), kind.stride)
            else:
                self.panel = self.buffer.new_empty((kind.height, kind.stride))[:, : kind.columns]
        rows = kind.panels[top].rows
        panel = self.panel if rows == kind.height else self.panel[:rows]
        self.kept = kind.one_panel
        return self._product_of(kind.x, kind.y, panel, top)

    def product_into(self, out: Tensor, top: int) -> Tensor:
        """The panel from row ``top`` on, in memory of the caller."""
        return self._product_of(self.kind.x, self.kind.y, out, top)

    def _match(self, top: int, both_ways: bool) -> None:
        """Fills the bytes of the pairs of the panel from row ``top`` on, unless they are at hand;
        if ``both_ways`` with what a batch with itself says of columns."""
        kind, match = self.kind, self.spec.match
        if match is None:
            return
        at = slice(top, top + kind.panels[top].rows)
        found = self.alike is not None and kind.one_panel
        if self.alike is None:
            # Before the tensors of a rule, which are freed again, so as not to lie among them.
            shape = kind.height, kind.stride
            self.alike = self.buffer.new_empty(shape, dtype=torch.uint8)
        pairs = self.alike[: at.stop - top, : kind.columns]
        if not found:
            match.block(at, pairs.view(torch.bool))
            self.both_ways = False
        if both_ways and not self.both_ways:
            if kind.one_panel:
                others = pairs.T.contiguous()
            else:
                others = match.transposed().block(at).view(torch.uint8)
            pairs.add_(others, alpha=2)
            self.both_ways = True

    def _product_of(self, x: Side, y: Side, out: Tensor, top: int = 0) -> Tensor:
        """Products of rows of ``x`` from ``top`` on with those of ``y``."""
        depth, width, (rows, columns) = self.kind.depth, self.kind.width, out.shape
        if self.kind.split:
            parts = self.buffer.view(torch.bfloat16)
            of_x = self._piece(x.parts, (rows, 6 * depth), 7 * depth, top, parts)
            of_y = self._piece(y.parts, (columns, 6 * depth), 7 * depth, 0, parts, depth)
            return _wide_product(of_x, of_y.T, out)
        # The features alone, without the ones.
        of_x = self._piece(x.packed, (rows, depth), width, top)
        of_y = self._piece(y.packed, (columns, depth), width)
        return torch.mm(of_x, of_y.T, out=out)

    def _piece(
        self,
        number: int,
        shape: tuple[int, int],
        stride: int,
        top: int = 0,
        buffer: Tensor | None = None,
        left: int = 0,
    ) -> Tensor:
        """Of the buffer (or this view of it), from row ``top`` and column ``left`` on."""
        buffer = self.buffer if buffer is None else buffer
        begin = self.kind.layout.pieces[number].begin // buffer.itemsize + top * stride + left
        return buffer.as_strided(shape, (stride, 1), begin)

    def _pairs(self, launch: Launcher, at: list[Any], panel: Tensor) -> tuple[Any, ...]:
        """What kernels read of pairs."""
        x, y = self.kind.x, self.kind.y
        return (
            launch.pointer(panel),
            at[x.packed],
            at[y.packed],
            at[x.norms],
            at[y.norms],
            launch.pointer(self.labels if self.alike is None else self.alike),
            launch.pointer(self.ref_labels),
            launch.pointer(self.itself),
        )

    def _params(self, launch: Launcher, at: list[Any]) -> Any:
        return at[self.kind.x.norms] if self.params is None else launch.pointer(self.params)

    def backward(self, saved: Tensor, grad: Tensor) -> Gradients:
        kind = self.kind
        for_x, for_y = self.wanted
        wanted = kind.wanted(self.wanted)
        grad, saved = plain(grad), plain(saved)
        compiled_for = grad.dtype, grad.data_ptr() % 16, saved.data_ptr() % 16
        launch = Launcher(kind.known.setdefault((self.wanted, *compiled_for), {}))
        at = launch.pieces(kind.layout, self.buffer)
        buffer = self.buffer.new_empty(wanted.layout.floats)
        to = launch.pieces(wanted.layout, buffer)
        table, header = launch.pointer(saved, HEADER), launch.pointer(saved)
        params, found = self._params(launch, at), None
        if kind.plan.anchor_params:
            assert self.params is not None
            found = self.params.new_empty(kind.anchors)
        ends = table, header, launch.pointer(grad), params
        at_params = params if found is None else launch.pointer(found)
        stride = grad.stride(0) if grad.ndim else 0
        products = [
            None if number < 0 else float_piece(wanted, buffer, number)
            for number in wanted.products
        ]
        nears = self._nears(at, to, wanted)
        self._before_weights(launch, at, (*ends, stride))
        for top, panel in kind.panels.items():
            # Of mined pairs there are the columns.
            self._match(top, kind.self_case and not kind.plan.kind.startswith("hard"))
            weights = self._product(top)
            pairs = self._pairs(launch, at, weights)
            left = at_params, to[wanted.marks], to[wanted.sums]
            self._weigh(launch, at, panel, pairs, (*ends, *left, stride))
            if top in wanted.near:
                ends_of_near = (*ends, to[wanted.marks], *nears, stride)
                self._add_near(launch, wanted.near[top], pairs, ends_of_near)
            self._multiply(weights, top, panel.rows, products)
        # Its products are gone.
        self.kept, self.alike = False, None
        if not kind.one_panel:
            self.panel = None
        gx = gy = None
        if for_x or for_y:
            gx, gy = self._unpack(launch, at, to, wanted, header)
        launch.done()
        return Gradients(gx, gy, found)

    def _before_weights(self, launch: Launcher, at: list[Any], ends: tuple[Any, ...]) -> None:
        """What must be known of all panels before the weights of the first one. ``ends`` are
        table, header, gradient at the loss, anchor_params, and the stride of the third."""

    def _weigh(
        self,
        launch: Launcher,
        at: list[Any],
        panel: Panel,
        pairs: tuple[Any, ...],
        ends: tuple[Any, ...],
    ) -> None:
        """Makes weights of products. ``ends`` are table, header, gradient at the loss,
        anchor_params, the gradient at them, marks of near pairs, sums of the weights of anchors,
        and the stride of the third."""
        launch("weights", weights_of_panel_kernel, panel.weights, *pairs, *ends)

    def _add_near(
        self, launch: Launcher, near: Launch, pairs: tuple[Any, ...], ends: tuple[Any, ...]
    ) -> None:
        """``ends`` are table, header, gradient at the loss, anchor_params, marks of near pairs,
        rows and marks of what they add, and the stride of the third."""
        launch("near", near_kernel, near, *pairs, *ends)

    def _nears(self, at: list[Any], to: list[Any], wanted: Wanted) -> list[Any]:
        """Rows and marks of what near pairs add; where there is none, pieces of the same dtypes."""
        none = at[self.kind.x.norms]
        rows = [none if number < 0 else to[number] for number in wanted.near_rows]
        return rows + [to[max(number, wanted.marks)] for number in wanted.near_marks]

    def _multiply(
        self, weights: Tensor, top: int, rows: int, products: list[Tensor | None]
    ) -> None:
        """Weights of pairs times the rows of the other side."""
        kind = self.kind
        weights = weights if len(weights) == rows else weights[:rows]
        width = kind.width
        at_x, at_y = products
        if at_x is not None:
            # Without the ones, where sums come with the weights: beside 128 columns these 16 would
            # take half as long again.
            kept = at_x.shape[1]
            other = self._piece(kind.y.packed, (kind.columns, kept), width)
            torch.mm(weights, other, out=at_x if kind.one_panel else at_x[top : top + rows])
        if at_y is not None:
            other = self._piece(kind.x.packed, (rows, width), width, top)
            if top:
                at_y.addmm_(weights.T, other)
            else:
                torch.mm(weights.T, other, out=at_y)

    def _unpack(
        self,
        launch: Launcher,
        at: list[Any],
        to: list[Any],
        wanted: Wanted,
        header: Any,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients at the caller's rows, of which at least one is wanted."""
        x, y = self.kind.x, self.kind.y
        gx, gy = (
            torch.empty_like(rows, memory_format=torch.contiguous_format) if one else None
            for rows, one in zip((self.x, self.y), self.wanted, strict=True)
        )
        some = [launch.pointer(one) for one in (gx, gy) if one is not None]
        products = [
            at[side.packed] if number < 0 else to[number]
            for side, number in zip((x, y), wanted.products, strict=True)
        ]
        launch(
            "unpack", unpack_kernel, wanted.unpack,
            some[0], some[-1], launch.pointer(self.x), launch.pointer(self.y),
            at[x.packed], at[y.packed], *products, *self._nears(at, to, wanted),
            at[x.lengths], at[y.lengths], header, to[wanted.sums],
        )  # fmt: skip
        return gx, gy


def _wide_product(x: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """Of bfloat16, in float32."""
    if x.is_cuda:
        return torch.mm(x, y, out_dtype=torch.float32, out=out)
    return torch.mm(x.float(), y.float(), out=out)  # of the interpreter


def float_piece(wanted: Wanted, buffer: Tensor, number: int) -> Tensor:
    piece = wanted.layout.pieces[number]
    return buffer.as_strided(piece.shape, (piece.shape[1], 1), piece.begin // 4)


def plain(tensor: Tensor) -> Tensor:
    """Without lazy signs, which kernels do not know of."""
    return tensor.resolve_neg() if tensor.is_neg() else tensor
