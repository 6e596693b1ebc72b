"""The statistics of a step, of the panels that its forward half makes: one more sweep over each,
one launch that makes of it and of the loss's own sweep what `PairStats` has of anchors, and at last
one that adds up.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlap_kernels.backends.triton import configurations
from dmlap_kernels.backends.triton.formulas import function
from dmlap_kernels.backends.triton.kinds import HEADER, Kind, Panel, blocks_in
from dmlap_kernels.backends.triton.launching import Launch, Launcher, Layout
from dmlap_kernels.backends.triton.n_pairs_steps import NPairsStep
from dmlap_kernels.backends.triton.panel_kernels import sweep_kernel
from dmlap_kernels.backends.triton.panel_policies import POLICIES
from dmlap_kernels.backends.triton.plans import OPERANDS, Plan, of_table
from dmlap_kernels.backends.triton.policies import linear
from dmlap_kernels.backends.triton.statistics_kernels import (
    SUMS,
    anchor_statistics_kernel,
    sum_statistics_kernel,
)
from dmlap_kernels.backends.triton.steps import Step
from dmlap_kernels.backends.triton.tile import tiling
from dmlap_kernels.problem import PairProblem, PairStats

_POLICY = POLICIES["statistics"]
# Of exponents, and of formulas.
_NUMBERS = (0.0,) * (8 + OPERANDS)


class _OfPanel(NamedTuple):
    """Launches."""

    sweep: Launch
    anchors: Launch


class StatisticsKind:
    """What the statistics of steps of a `Kind` have in common."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.launch = configurations.panel_launch("panel_statistics")
        self.rows = {top: min(kind.height, kind.anchors - top) for top in kind.tops}
        self.stride = configurations.row_floats(kind.columns)
        block = configurations.ROWS_OF_FORMULAS
        self.blocks = sum(blocks_in(rows, block) for rows in self.rows.values())
        layout = self.layout = Layout()
        # Where the loss has rows of another length.
        apart = kind.stride != self.stride
        self.panel = layout.add(kind.height, self.stride) if apart else -1
        most = max(self._cut(rows)[0] * rows for rows in self.rows.values())
        self.partials = layout.add((_POLICY.size + 2) * most)
        self.sums = layout.add(SUMS, self.blocks, dtype=torch.float64)
        # Where kernels of the loss find them.
        given = kind.plan.statistics == ""
        self.terms = layout.add(3, kind.anchors, dtype=torch.float64) if given else self.sums
        self.panels = {top: _OfPanel(self._sweep(top), self._anchors(top)) for top in self.rows}
        others = self.blocks, configurations.ROWS_REDUCED
        self.sum_up = Launch((1, 1, 1), others, {"num_warps": 8})

    def _cut(self, rows: int) -> tuple[int, int, int]:
        """Splits of the columns, the columns of a split, blocks of rows."""
        launch, blocks = self.launch, blocks_in(rows, self.launch.BM)
        tiles = blocks_in(self.kind.columns, launch.BN)
        splits, span = configurations.panel_split(tiles, blocks, self.kind.device)
        return splits, span * launch.BN, blocks

    def _sweep(self, top: int) -> Launch:
        kind, launch = self.kind, self.launch
        splits, span, blocks = self._cut(self.rows[top])
        case = kind.self_case, kind.named, launch, kind.width
        others = (
            top, kind.anchors, kind.columns, kind.width, span, splits, *_NUMBERS, None, linear,
            *_POLICY[:5], _POLICY.size, _POLICY.kind, 0, kind.height,
            tiling(kind.spec.distance, kind.precision, *case),
        )  # fmt: skip
        return Launch((blocks * splits, 1, 1), others, launch.options)

    def _anchors(self, top: int) -> Launch:
        kind, plan, block = self.kind, self.kind.plan, configurations.ROWS_OF_FORMULAS
        rows = self.rows[top]
        before = top // kind.height * blocks_in(kind.height, block)
        # Of losses whose kernels are written down nothing is read but the table.
        policy, splits, numbers = plan.sweeps[-1].policy, 1, (0.0,) * OPERANDS
        merged: tuple[Any, ...] = (None, None, None, 0)
        if policy:
            splits, numbers = kind.splits_of(policy, rows), kind.numbers
            one = POLICIES[policy]
            merged = one.empty, one.merge, one.finish, one.size
        formula = function(plan.statistics) if plan.statistics else None
        others = (
            top, kind.anchors, kind.table_anchors, splits, self._cut(rows)[0], before, self.blocks,
            *numbers, formula, *merged, plan.rows, _POLICY.empty, _POLICY.merge, _POLICY.size,
            kind.height, block,
        )  # fmt: skip
        return Launch((blocks_in(rows, block), 1, 1), others, {"num_warps": 4})


class PanelStatistics:
    """The statistics of one step, which its forward half fills."""

    def __init__(self, step: Step) -> None:
        kind = step.kind
        if kind.statistics is None:
            kind.statistics = StatisticsKind(kind)
        self.step, self.kind = step, kind.statistics
        self.buffer = step.buffer.new_empty(self.kind.layout.floats)
        self.counts = step.labels.new_empty(2)
        self.values = self.buffer.new_empty(3)
        # Of each anchor: the distance of its farthest positive; the hardest columns.
        self.farthest = self.buffer.new_empty(kind.anchors)
        self.positive, self.negative = (step.labels.new_empty(kind.anchors) for _ in range(2))
        self._at: list[Any] = []

    def begin(self, launch: Launcher) -> None:
        self._at = launch.pieces(self.kind.layout, self.buffer)

    @property
    def terms(self) -> Any:
        """For kernels of the loss, (3, anchors) float64: how many terms an anchor has, how many are
        positive, and their sum."""
        return self._at[self.kind.terms]

    def sweep(self, launch: Launcher, top: int, pairs: tuple[Any, ...]) -> None:
        """Of a panel that holds products; ``pairs`` is what kernels read of it."""
        kind, step = self.kind, self.step
        if kind.panel >= 0:
            panel = self.buffer.as_strided(
                (kind.rows[top], kind.kind.columns),
                (kind.stride, 1),
                kind.layout.pieces[kind.panel].begin // 4,
            )
            step.product_into(panel, top)
            pairs = (self._at[kind.panel], *pairs[1:])
        none = pairs[3]
        at = *pairs, none, none, self._at[kind.partials]
        launch("statistics", sweep_kernel, kind.panels[top].sweep, *at)

    def gather(self, launch: Launcher, top: int, ends: tuple[Any, Any, Any]) -> None:
        """After the sweeps of the loss; ``ends`` are table, anchor_params and partials."""
        (table, params, partials), kind, pointer = ends, self.kind, launch.pointer
        launch(
            "statistics of anchors", anchor_statistics_kernel, kind.panels[top].anchors,
            partials, self._at[kind.partials], table, params, self.terms, self._at[kind.sums],
            pointer(self.farthest), pointer(self.positive), pointer(self.negative),
        )  # fmt: skip

    def sum_up(self, launch: Launcher) -> None:
        ends = launch.pointer(self.counts), launch.pointer(self.values)
        launch(
            "sum of statistics",
            sum_statistics_kernel,
            self.kind.sum_up,
            self._at[self.kind.sums],
            *ends,
        )

    def found(self) -> PairStats:
        constraints, violated = self.counts.unbind()
        violation, positive, negative = self.values.unbind()
        return PairStats(
            constraints, violated, violation, positive, negative, self.positive, self.negative
        )


class _BatchKind(Kind):
    """A batch with itself, of a loss whose table has half as many anchors as there are rows."""

    @property
    def table_anchors(self) -> int:
        return self.anchors // 2

    def _partial_count(self, rows: int) -> int:
        return 0

    def _panel(self, top: int) -> Panel:
        return Panel(min(self.height, self.anchors - top), [], Launch((1, 1, 1), (), {}))


class _BatchStep(Step):
    """Goes through panels for statistics alone."""

    made = _BatchKind

    def fill(self, told: PanelStatistics, saved: Tensor) -> None:
        """``saved`` is what the loss saved."""
        kind = self.kind
        launch = Launcher(kind.known.setdefault("statistics", {}))
        at = launch.pieces(kind.layout, self.buffer)
        self._pack(launch, at)
        told.begin(launch)
        table, params = launch.pointer(saved, HEADER), self._params(launch, at)
        for top in kind.panels:
            told.sweep(launch, top, self._pairs(launch, at, self._product(top)))
            told.gather(launch, top, (table, params, at[kind.partials]))
        told.sum_up(launch)
        launch.done()


@functools.cache
def _batch_plan(prefix: int) -> Plan:
    """One for all steps, which share what was compiled."""
    return Plan.written([""] * prefix, of_table(prefix))


def forward_with_statistics(
    step: Step, problem: PairProblem
) -> tuple[Tensor, Tensor, PanelStatistics]:
    """The loss, what is saved, and the statistics."""
    if not isinstance(step, NPairsStep):
        told = PanelStatistics(step)
        return *step.forward(told), told
    # Its anchors are half of the rows, but statistics are those of all pairs.
    loss, saved = step.forward()
    batch = _BatchStep(_batch_plan(step.plan.prefix), step.spec, problem)
    told = PanelStatistics(batch)
    batch.fill(told, saved)
    return loss, saved, told
