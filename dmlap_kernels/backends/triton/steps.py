"""A loss by panels: a product of the vendor's library, one kernel over it for each sweep, and few
launches besides.

    forward     pack; for each panel a product, and for each sweep the sweep and its formula; reduce
    backward    for each panel the product unless it was kept, its weights, what near pairs add
                (of Euclidean distances), and a product for each side; unpack
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlap_kernels.backends.device.packing import TILE_WIDTH
from dmlap_kernels.backends.precision import matmul_precision
from dmlap_kernels.backends.triton import configurations
from dmlap_kernels.backends.triton.formulas import function
from dmlap_kernels.backends.triton.panel_gradients import PANEL_GRADIENTS
from dmlap_kernels.backends.triton.panel_kernels import sweep_kernel, weights_of_panel_kernel
from dmlap_kernels.backends.triton.panel_near import near_kernel
from dmlap_kernels.backends.triton.panel_policies import POLICIES
from dmlap_kernels.backends.triton.plans import Plan
from dmlap_kernels.backends.triton.policies import TERMS, clipped, linear
from dmlap_kernels.backends.triton.row_kernels import (
    formula_kernel,
    pack_kernel,
    reduce_kernel,
    unpack_kernel,
)
from dmlap_kernels.backends.triton.tile import APART, ROWS_NAMED, SELF, Tiling, tiling
from dmlap_kernels.problem import Gradients, PairProblem, PairSpec

# Floats before the table in what is saved, so that the table is aligned.
HEADER = 16


class Rows(NamedTuple):
    """A side as kernels read it: the caller's rows, packed ones (rows, width), norms, lengths."""

    raw: Tensor
    packed: Tensor
    norms: Tensor
    lengths: Tensor
    labels: Tensor

    @staticmethod
    def of(raw: Tensor, labels: Tensor, width: int) -> Rows:
        count = raw.shape[0]
        packed = raw.new_empty((count, width), dtype=torch.float32)
        lengths = raw.new_empty((count,), dtype=torch.float64)
        return Rows(raw, packed, packed.new_empty(count), lengths, labels)


class Step:
    """The buffers and launches of one call of at least one anchor and one reference."""

    def __init__(self, plan: Plan, spec: PairSpec, problem: PairProblem) -> None:
        self.plan, self.spec, self.problem = plan, spec, problem
        self.self_case = problem.y is None
        self.ones = spec.distance in ("euclidean", "sqeuclidean")
        features = problem.x.shape[1]
        self.depth = -(-features // TILE_WIDTH) * TILE_WIDTH
        self.width = self.depth + (TILE_WIDTH if self.ones else 0)
        self.x = Rows.of(_plain(problem.x), _plain(problem.labels).contiguous(), self.width)
        self.y = self.x
        if problem.y is not None:
            assert problem.ref_labels is not None
            self.y = Rows.of(_plain(problem.y), _plain(problem.ref_labels).contiguous(), self.width)
        self.anchors, self.columns = len(self.x.raw), len(self.y.raw)
        self.itself, self.named = self.x.labels, SELF.value if self.self_case else APART.value
        if problem.self_index is not None:
            self.itself, self.named = _plain(problem.self_index).contiguous(), ROWS_NAMED.value
        params = problem.anchor_params
        self.params = self.x.norms if params is None else _plain(params).contiguous()
        self.numbers, *self.exponents = plan.numbers(spec.params)
        self.height = configurations.panel_height(self.columns)
        self.panel: Tensor | None = None
        # Which gradients are wanted.
        self.wanted = (True, not self.self_case)

    def forward(self) -> tuple[Tensor, Tensor]:
        """The loss, and what is saved: the header, and the table."""
        plan = self.plan
        flags = self.pack()
        saved = self.x.norms.new_empty(HEADER + plan.rows * self.anchors)
        table = saved[HEADER:]
        for top in range(0, self.anchors, self.height):
            panel = self.product(top)
            prefix = 0
            for number in range(len(plan.sweeps)):
                self._sweep(number, panel, table, top, prefix)
                prefix += len(plan.stored[number])
        loss = saved.new_empty((self.anchors,) if self.spec.reduction == "none" else ())
        reduce_kernel[(1,)](
            table,
            flags,
            saved,
            loss,
            self.anchors,
            flags.shape[0],
            plan.prefix,
            plan.groups,
            self.spec.reduction,
            configurations.ROWS_REDUCED,
            num_warps=8,
        )
        return loss, saved

    def forget(self) -> None:
        """A panel stays for the backward half if it is the only one."""
        if self.panel is not None and self.panel.shape[0] < self.anchors:
            self.panel = None

    def pack(self) -> Tensor:
        """Packs both sides; what is to be added up to know of embeddings that are not finite."""
        launch = configurations.row_launch()
        blocks = blocks_in(self.anchors, launch.BM)
        others = 0 if self.self_case else blocks_in(self.columns, launch.BM)
        flags = self.x.norms.new_empty(blocks + others)
        x, y = self.x, self.y
        pack_kernel[(blocks + others,)](
            x.raw,
            y.raw,
            x.packed,
            y.packed,
            x.norms,
            y.norms,
            x.lengths,
            y.lengths,
            flags,
            self.anchors,
            self.columns,
            x.raw.shape[1],
            self.width,
            *x.raw.stride(),
            *y.raw.stride(),
            blocks,
            self.spec.unit_rows,
            self.ones,
            launch.BM,
            launch.BK,
            num_warps=launch.warps,
        )
        return flags

    def product(self, top: int) -> Tensor:
        """The panel from row ``top`` on, in the buffer of all of them."""
        if self.panel is None:
            rows = min(self.height, self.anchors)
            # Rows lie as `panel_kernels.row_stride` has them.
            stride = -(-self.columns // 16) * 16
            self.panel = self.x.norms.new_empty((rows, stride))[:, : self.columns]
        rows = min(self.height, self.anchors - top)
        panel = self.panel[:rows]
        x, y = self.x.packed[top : top + rows, : self.depth], self.y.packed[:, : self.depth]
        return torch.mm(x, y.T, out=panel)

    def _sweep(self, number: int, panel: Tensor, table: Tensor, top: int, prefix: int) -> None:
        plan, sweep = self.plan, self.plan.sweeps[number]
        policy = POLICIES[sweep.policy]
        rows = panel.shape[0]
        launch, blocks, splits, span = self._cut(f"panel_{policy.kind}", rows)
        partials = panel.new_empty((policy.size + 2, splits, rows))
        own = plan.own[number]
        sweep_kernel[(blocks * splits,)](
            *self.pairs(panel),
            table,
            self.params,
            partials,
            top,
            self.anchors,
            self.columns,
            self.width,
            span,
            splits,
            *self.exponents[number],
            *self.numbers,
            None if own is None else function(own),
            clipped if plan.clipped[number] else linear,
            policy.begin,
            policy.visit,
            policy.reduce,
            policy.empty,
            policy.merge,
            policy.size,
            policy.kind,
            prefix,
            self.height,
            self.tiling(launch),
            **launch.options,
        )
        block = configurations.ROWS_OF_FORMULAS
        formula_kernel[(blocks_in(rows, block),)](
            partials,
            table,
            self.params,
            top,
            self.anchors,
            splits,
            *self.numbers,
            function(plan.formulas[number]),
            policy.empty,
            policy.merge,
            policy.finish,
            policy.size,
            prefix,
            plan.outputs(number),
            self.height,
            block,
            num_warps=4,
        )

    def backward(self, saved: Tensor, grad: Tensor) -> Gradients:
        plan, problem = self.plan, self.problem
        table = saved[HEADER:]
        grad = _plain(grad)
        stride = grad.stride(0) if grad.ndim else 0
        for_x, for_y = self.wanted
        at_params = None
        if plan.anchor_params:
            at_params = self.params.new_empty(self.anchors)
        products = [
            rows.packed.new_empty(rows.packed.shape) if wanted else rows.packed
            for rows, wanted in zip((self.x, self.y), self.wanted, strict=True)
        ]
        near = _Near(self) if self.ones and (for_x or for_y) else None
        whole = self.panel is not None and self.panel.shape[0] == self.anchors
        for top in range(0, self.anchors, self.height):
            panel = self.panel if whole else self.product(top)
            assert panel is not None
            values = self._differentiate(panel, table, saved, grad, stride, at_params, top)
            rows = panel.shape[0]
            if near is not None:
                near.add(panel, table, saved, grad, stride, top, *values)
            if for_x:
                torch.mm(panel, self.y.packed, out=products[0][top : top + rows])
            if for_y:
                packed = self.x.packed[top : top + rows]
                if top:
                    products[1].addmm_(panel.T, packed)
                else:
                    torch.mm(panel.T, packed, out=products[1])
        # Its products are gone.
        self.panel = None
        gx = torch.empty_like(problem.x, memory_format=torch.contiguous_format) if for_x else None
        gy = None
        if problem.y is not None and for_y:
            gy = torch.empty_like(problem.y, memory_format=torch.contiguous_format)
        if gx is not None or gy is not None:
            self._unpack(gx, gy, products, near, saved)
        return Gradients(gx, gy, at_params)

    def _differentiate(
        self,
        panel: Tensor,
        table: Tensor,
        header: Tensor,
        grad: Tensor,
        stride: int,
        at_params: Tensor | None,
        top: int,
    ) -> tuple[Tensor, int, int]:
        """Makes weights of the products; returns the marks of near pairs, and how columns are
        cut."""
        plan = self.plan
        launch, blocks, splits, span = self._cut("panel_weights", panel.shape[0])
        marks = torch.empty((blocks, splits), dtype=torch.int32, device=panel.device)
        weights_of_panel_kernel[(blocks * splits,)](
            *self.pairs(panel),
            table,
            header,
            grad,
            self.params,
            self.params if at_params is None else at_params,
            marks,
            stride,
            top,
            self.anchors,
            self.columns,
            self.width,
            span,
            splits,
            *self.exponents[-1],
            *self.numbers,
            *self.kind(),
            plan.coefficients if plan.anchor_params else -1,
            self.height,
            self.tiling(launch),
            **launch.options,
        )
        return marks, splits, span

    def kind(self) -> tuple[Any, ...]:
        """What kernels are compiled for that make weights."""
        plan = self.plan
        return (
            function(plan.gradient),
            clipped if plan.clipped[-1] else linear,
            PANEL_GRADIENTS[plan.kind],
            TERMS.get(plan.kind),
            plan.prefix,
            plan.groups,
            self.spec.reduction,
        )

    def _unpack(
        self,
        gx: Tensor | None,
        gy: Tensor | None,
        products: list[Tensor],
        near: _Near | None,
        header: Tensor,
    ) -> None:
        launch = configurations.row_launch()
        blocks = 0 if gx is None else blocks_in(self.anchors, launch.BM)
        others = 0 if gy is None else blocks_in(self.columns, launch.BM)
        x, y = self.x, self.y
        some: Any = gy if gx is None else gx
        unpack_kernel[(blocks + others,)](
            some if gx is None else gx,
            some if gy is None else gy,
            x.raw,
            y.raw,
            x.packed,
            y.packed,
            *products,
            *(products if near is None else near.rows),
            *((header, header) if near is None else near.marks),
            x.lengths,
            y.lengths,
            header,
            self.anchors,
            self.columns,
            x.raw.shape[1],
            self.width,
            blocks,
            self.plan.groups,
            self.spec.unit_rows,
            self.ones,
            launch.BM,
            launch.BK,
            num_warps=launch.warps,
        )

    def pairs(self, panel: Tensor) -> tuple[Tensor, ...]:
        x, y = self.x, self.y
        return (
            panel,
            x.packed,
            y.packed,
            x.norms,
            y.norms,
            x.labels,
            y.labels,
            self.itself,
        )

    def _cut(self, kernel: str, rows: int) -> tuple[configurations.Launch, int, int, int]:
        """The launch; blocks of rows, splits of columns, columns of a split."""
        launch = configurations.panel_launch(kernel)
        blocks = blocks_in(rows, launch.BM)
        tiles = blocks_in(self.columns, launch.BN)
        splits, span = configurations.panel_split(tiles, blocks, self.x.packed.device)
        return launch, blocks, splits, span * launch.BN

    def tiling(self, launch: configurations.Launch) -> Tiling:
        precision = self.spec.precision or matmul_precision()
        return tiling(self.spec.distance, precision, self.self_case, self.named, launch, self.width)


class _Near:
    """What near pairs add to the gradients."""

    def __init__(self, step: Step) -> None:
        self.step = step
        launch = self.launch = configurations.panel_launch("panel_near")
        self.chunks = blocks_in(step.width, launch.held(step.width))
        sides = zip((step.x, step.y), step.wanted, strict=True)
        self.rows, self.marks = [], []
        for rows, wanted in sides:
            count = len(rows.packed) if wanted else 0
            marks = (self.chunks, blocks_in(count, launch.BM))
            self.rows.append(rows.packed.new_empty((count, step.width)))
            self.marks.append(torch.empty(marks, dtype=torch.int32, device=rows.packed.device))

    def add(
        self,
        panel: Tensor,
        table: Tensor,
        header: Tensor,
        grad: Tensor,
        stride: int,
        top: int,
        marks: Tensor,
        splits: int,
        span: int,
    ) -> None:
        step, launch = self.step, self.launch
        blocks = blocks_in(panel.shape[0], launch.BM) if step.wanted[0] else 0
        others = blocks_in(step.columns, launch.BM) if step.wanted[1] else 0
        near_kernel[(blocks + others, self.chunks)](
            *step.pairs(panel),
            table,
            header,
            grad,
            step.params,
            marks,
            *self.rows,
            *self.marks,
            stride,
            top,
            step.anchors,
            step.columns,
            step.width,
            span,
            splits,
            blocks,
            *step.exponents[-1],
            *step.numbers,
            *step.kind(),
            step.height,
            step.tiling(launch),
            **launch.options,
        )


def blocks_in(count: int, block: int) -> int:
    return -(-count // block)


def _plain(tensor: Tensor) -> Tensor:
    """Without lazy signs, which kernels do not know of."""
    tensor = tensor.detach()
    return tensor.resolve_neg() if tensor.is_neg() else tensor
