"""What steps have in common whose tensors have the same shapes: worked out once, and kept.

A `Kind` has sizes, how panels are cut, where pieces of the buffers lie, and all arguments of
kernels that are no pointers. Kinds that differ in numbers and sizes alone share what Triton
compiled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlap_kernels.backends.device.packing import TILE_WIDTH
from dmlap_kernels.backends.precision import matmul_precision
from dmlap_kernels.backends.triton import configurations
from dmlap_kernels.backends.triton.formulas import function
from dmlap_kernels.backends.triton.launching import Launch, Layout
from dmlap_kernels.backends.triton.panel_gradients import PANEL_GRADIENTS
from dmlap_kernels.backends.triton.panel_policies import POLICIES
from dmlap_kernels.backends.triton.plans import Plan
from dmlap_kernels.backends.triton.policies import TERMS, clipped, linear
from dmlap_kernels.backends.triton.tile import APART, ROWS_NAMED, SELF, Tiling, tiling
from dmlap_kernels.problem import PairProblem, PairSpec

# Floats before the table in what is saved, so that the table is aligned.
HEADER = 16
# Training has a few kinds; where batches are of ever new sizes, those of the last ones are kept.
_MOST_KINDS = 256


class Side(NamedTuple):
    """Of anchors or references, the numbers of the pieces: packed rows (rows, width), the same
    split (rows, 7 * depth) or any piece, their squared norms, and the lengths of the caller's."""

    packed: int
    parts: int
    norms: int
    lengths: int


class Panel(NamedTuple):
    """The launches of one panel: of each sweep two, and of the weights; of what else a loss has
    kernels for."""

    rows: int
    sweeps: list[tuple[Launch, Launch]]
    weights: Launch
    besides: Launch | None = None


class Wanted(NamedTuple):
    """The backward half, by which gradients are wanted: the pieces of its buffer, by their numbers,
    those of either side with -1 where there is none; and launches. Where weights are not summed,
    ``sums`` is any piece."""

    layout: Layout
    marks: int
    sums: int
    products: tuple[int, int]
    near_rows: tuple[int, int]
    near_marks: tuple[int, int]
    near: dict[int, Launch]
    unpack: Launch


def blocks_in(count: int, block: int) -> int:
    return -(-count // block)


class Kind:
    """Of the steps of a spec, by the shapes of their tensors; ``plan`` is the spec's, which is
    without its match. ``matched`` says whether there is one.

    Losses with kernels of their own have kinds of their own, of which some launches are others.
    """

    def __init__(
        self,
        plan: Plan,
        spec: PairSpec,
        precision: str,
        problem: PairProblem,
        known: dict[Any, dict[Any, Any]],
        more: Any,
        matched: bool,
    ) -> None:
        self.plan, self.spec, self.more, self.matched = plan, spec, more, matched
        # What Triton compiled, by half of a step and place in it.
        self.known = known
        # Of `statistics_steps`, once they were asked for.
        self.statistics: Any = None
        x, y = problem.x, problem.y
        self.self_case = y is None
        self.ones = spec.distance in ("euclidean", "sqeuclidean")
        self.device = x.device
        self.anchors, self.features = x.shape
        self.columns = self.anchors if y is None else y.shape[0]
        self.depth = -(-self.features // TILE_WIDTH) * TILE_WIDTH
        self.width = self.depth + (TILE_WIDTH if self.ones else 0)
        # Whether sums of an anchor's weights come with the weights, of the kernel that all kinds
        # but those with ones of their own launch, and not from the ones in a product.
        self.summed = self.ones and type(self) is Kind
        self.stride = self._stride()
        self.named = SELF.value if self.self_case else APART.value
        if problem.self_index is not None:
            self.named = ROWS_NAMED.value
        self.precision = precision
        self.split = self._splits()
        self.numbers, *self.exponents = plan.numbers(spec.params)
        self.height = min(configurations.panel_height(self.columns), self.anchors)
        self.saved = HEADER + plan.rows * self.anchors
        self.loss = (self.anchors,) if spec.reduction == "none" else ()
        self._wanted: dict[tuple[bool, bool], Wanted] = {}
        self.tops = range(0, self.anchors, self.height)
        # Of the columns, at most: the last panel, of fewer rows, may be cut into more.
        self.parts = max(self._cut("panel_weights", rows)[1] for rows in self._panel_rows())
        self.panels = {top: self._panel(top) for top in self.tops}
        self._lay_out()
        self.pack, self.reduce = self._pack(x, x if y is None else y), self._reduce()

    def _stride(self) -> int:
        return configurations.row_floats(self.columns)

    def _splits(self) -> bool:
        return configurations.splits_products(self.device, self.precision)

    @property
    def table_anchors(self) -> int:
        return self.anchors

    @property
    def one_panel(self) -> bool:
        return self.height == self.anchors

    def _lay_out(self) -> None:
        """The buffer of what the forward half makes, and what backward reads of it."""
        layout = self.layout = Layout()

        def side(rows: int) -> Side:
            packed = layout.add(rows, self.width)
            parts = packed
            if self.split:
                parts = layout.add(rows, 7 * self.depth, dtype=torch.bfloat16)
            lengths = layout.add(rows, dtype=torch.float64)
            return Side(packed, parts, layout.add(rows), lengths)

        self.x = side(self.anchors)
        self.y = self.x if self.self_case else side(self.columns)
        self.row_blocks, self.column_blocks = (
            blocks_in(count, configurations.row_launch().BM)
            for count in (self.anchors, self.columns)
        )
        self.flag_count = self._flag_count()
        self.flags = layout.add(self.flag_count)
        # Each sweep is merged before the next one begins.
        self.partials = layout.add(max(map(self._partial_count, self._panel_rows())))
        # The only one stays for backward.
        self.panel = layout.add(self.height, self.stride) if self.one_panel else -1

    def _flag_count(self) -> int:
        return self.row_blocks + (0 if self.self_case else self.column_blocks)

    def _panel_rows(self) -> set[int]:
        """How many rows panels have: the last one may have fewer, which are cut into more."""
        return {min(self.height, self.anchors - top) for top in self.tops}

    def _partial_count(self, rows: int) -> int:
        """Numbers that a sweep leaves of a panel of so many rows, at most."""
        policies = [POLICIES[sweep.policy] for sweep in self.plan.sweeps]
        return max(
            (policy.size + 2) * self._cut(f"panel_{policy.kind}", rows)[1] * rows
            for policy in policies
        )

    def _pack(self, x: Tensor, y: Tensor) -> Launch:
        row = configurations.row_launch()
        others = (
            self.anchors, self.columns, self.features, self.width, *x.stride(), *y.stride(),
            self.row_blocks, self.spec.unit_rows, self.ones, self.split, row.BM, row.BK,
        )  # fmt: skip
        return Launch((self.flag_count, 1, 1), others, {"num_warps": row.warps})

    def _reduce(self) -> Launch:
        plan, rows = self.plan, configurations.ROWS_REDUCED
        kind = plan.prefix, plan.groups, self.spec.reduction, rows
        return Launch((1, 1, 1), (self.anchors, self.flag_count, *kind), {"num_warps": 8})

    def _panel(self, top: int) -> Panel:
        rows = min(self.height, self.anchors - top)
        sweeps, prefix = [], 0
        for number, stored in enumerate(self.plan.stored):
            sweeps.append(
                (self._sweep(number, top, rows, prefix), self._formula(number, top, prefix))
            )
            prefix += len(stored)
        return Panel(rows, sweeps, self._weights(top, rows))

    def _sweep(self, number: int, top: int, rows: int, prefix: int) -> Launch:
        plan, sweep = self.plan, self.plan.sweeps[number]
        policy, own = POLICIES[sweep.policy], plan.own[number]
        launch, splits, span, blocks = self._cut(f"panel_{policy.kind}", rows)
        others = (
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
            self._tiling(launch),
        )
        return Launch((blocks * splits, 1, 1), others, launch.options)

    def _formula(self, number: int, top: int, prefix: int) -> Launch:
        """Of what a sweep found."""
        plan, block = self.plan, configurations.ROWS_OF_FORMULAS
        policy = POLICIES[plan.sweeps[number].policy]
        rows = min(self.height, self.anchors - top)
        others = (
            top,
            self.anchors,
            self.splits_of(plan.sweeps[number].policy, rows),
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
        )
        return Launch((blocks_in(rows, block), 1, 1), others, {"num_warps": 4})

    def splits_of(self, policy: str, rows: int) -> int:
        """Of the columns, of which a sweep over so many rows leaves states."""
        return self._cut(f"panel_{POLICIES[policy].kind}", rows)[1]

    def _weights(self, top: int, rows: int) -> Launch:
        launch, splits, span, blocks = self._cut("panel_weights", rows)
        others = (
            top,
            self.anchors,
            self.columns,
            self.width,
            span,
            splits,
            self.parts,
            *self.exponents[-1],
            *self.numbers,
            self.summed,
            *self._coefficients(),
            self.plan.coefficients if self.plan.anchor_params else -1,
            self.height,
            self._tiling(launch),
        )
        return Launch((blocks * splits, 1, 1), others, launch.options)

    def _coefficients(self) -> tuple[Any, ...]:
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

    def wanted(self, which: tuple[bool, bool]) -> Wanted:
        """The backward half where those gradients are wanted, at the anchors and the references."""
        if which not in self._wanted:
            self._wanted[which] = self._backward(which)
        return self._wanted[which]

    def _backward(self, which: tuple[bool, bool]) -> Wanted:
        layout, near = Layout(), configurations.panel_launch("panel_near")
        chunks = blocks_in(self.width, near.held(self.width))
        marks = layout.add(max(map(self._mark_count, self._panel_rows())), dtype=torch.int32)
        sums = layout.add(self.parts, self.anchors) if self.summed else marks
        products: list[int] = []
        rows, near_marks = [], []
        for count, wanted in zip((self.anchors, self.columns), which, strict=True):
            # Sums of anchors do not come from the ones.
            width = self.depth if self.summed and not products else self.width
            products.append(layout.add(count, width) if wanted else -1)
            some = wanted and self.ones
            rows.append(layout.add(count, self.width) if some else -1)
            parts = chunks, blocks_in(count, near.BM)
            near_marks.append(layout.add(*parts, dtype=torch.int32) if some else -1)
        launches = {
            top: self._near(top, which, chunks) for top in self.tops if self.ones and any(which)
        }
        row = configurations.row_launch()
        kept = tuple(
            n if wanted else 0
            for n, wanted in zip((self.row_blocks, self.column_blocks), which, strict=True)
        )
        others = (
            self.anchors, self.columns, self.features, self.width, kept[0], self.parts,
            self.plan.groups, self.spec.unit_rows, self.ones, self.summed, row.BM, row.BK,
        )  # fmt: skip
        unpack = Launch((sum(kept), 1, 1), others, {"num_warps": row.warps})
        of_products, of_rows, of_marks = (
            (at_x, at_y) for at_x, at_y in (products, rows, near_marks)
        )
        return Wanted(layout, marks, sums, of_products, of_rows, of_marks, launches, unpack)

    def _mark_count(self, rows: int) -> int:
        """Marks of near pairs that the weights of a panel of so many rows leave."""
        _, splits, _, blocks = self._cut("panel_weights", rows)
        return splits * blocks

    def _near(self, top: int, which: tuple[bool, bool], chunks: int) -> Launch:
        launch = configurations.panel_launch("panel_near")
        rows = min(self.height, self.anchors - top)
        _, splits, span, _ = self._cut("panel_weights", rows)
        blocks = blocks_in(rows, launch.BM) if which[0] else 0
        others_blocks = blocks_in(self.columns, launch.BM) if which[1] else 0
        others = (
            top,
            self.anchors,
            self.columns,
            self.width,
            span,
            splits,
            blocks,
            *self.exponents[-1],
            *self.numbers,
            *self._coefficients(),
            self.height,
            self._tiling(launch),
        )
        return Launch((blocks + others_blocks, chunks, 1), others, launch.options)

    def _cut(self, kernel: str, rows: int) -> tuple[configurations.Launch, int, int, int]:
        """The launch; splits of the columns, the columns of a split, blocks of rows."""
        launch = configurations.panel_launch(kernel)
        blocks = blocks_in(rows, launch.BM)
        tiles = blocks_in(self.columns, launch.BN)
        splits, span = configurations.panel_split(tiles, blocks, self.device)
        return launch, splits, span * launch.BN, blocks

    def _tiling(self, launch: configurations.Launch) -> Tiling:
        case = self.self_case, self.named, launch, self.width
        return tiling(self.spec.distance, self.precision, *case, self.matched)


_kinds: dict[Any, Kind] = {}
# By what Triton compiles for: the plan, which must live as long as its number is in a key, and
# kernels by half of a step and place in it.
_tables: dict[Any, tuple[Plan, dict[Any, dict[Any, Any]]]] = {}


def kind_of(
    made: type[Kind],
    plan: Plan,
    spec: PairSpec,
    problem: PairProblem,
    given: tuple[Tensor, ...],
    more: Any = None,
) -> Kind:
    """
    Args:
        made: the kind of the loss.
        plan, spec, problem: of the step.
        given: all tensors that kernels read of the caller's.
        more: what else the sizes of the kind follow from.
    """
    precision = spec.precision or matmul_precision()
    x, y, matched = problem.x, problem.y, spec.match is not None
    if matched:
        # A kind outlives its steps, and their tensors.
        spec = spec._replace(match=None)
    compiled_for = (
        *[(one.dtype, one.data_ptr() % 16, one.stride()) for one in given],
        x.device, precision, y is None, problem.self_index is None, matched,
    )  # fmt: skip
    shapes = x.shape, y is None or y.shape, more
    key = spec, shapes, compiled_for, configurations.PANEL_BYTES
    found = _kinds.get(key)
    if found is None:
        if len(_kinds) >= _MOST_KINDS:
            _kinds.pop(next(iter(_kinds)))
        words = made, id(plan), spec.distance, spec.unit_rows, spec.reduction, x.shape[1]
        _, known = _tables.setdefault((words, compiled_for), (plan, {}))
        found = _kinds[key] = made(plan, spec, precision, problem, known, more, matched)
    return found
