"""N-pairs without references, by panels of the first rows of all classes and their second rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmlap_kernels.backends.triton import configurations
from dmlap_kernels.backends.triton.first_pair_kernels import (
    pack_pairs_kernel,
    partners_kernel,
    slots_kernel,
    unpack_pairs_kernel,
)
from dmlap_kernels.backends.triton.kinds import Kind, Wanted, blocks_in
from dmlap_kernels.backends.triton.launching import Launch, Launcher
from dmlap_kernels.backends.triton.plans import Plan
from dmlap_kernels.backends.triton.steps import Step, plain
from dmlap_kernels.problem import Gradients, PairProblem, PairSpec

if TYPE_CHECKING:
    from dmlap_kernels.backends.triton.statistics_steps import PanelStatistics


class NPairsKind(Kind):
    """Anchors and references are slots; ``more`` is the shape and the strides of the caller's
    rows."""

    def _splits(self) -> bool:
        return False

    def _flag_count(self) -> int:
        return blocks_in(self.more[0], configurations.row_launch().BM)

    def _lay_out(self) -> None:
        super()._lay_out()
        self.arranged = self._arranged(*self.more)

    def _arranged(
        self, rows: int, features: int, stride: int, step: int
    ) -> tuple[Launch, Launch, Launch, Launch]:
        """Of the caller's rows: to find partners, to fill slots, to pack, to unpack."""
        find, row = configurations.panel_launch("partners"), configurations.row_launch()
        blocks = blocks_in(rows, row.BM)
        unit, ones = self.spec.unit_rows, self.ones
        partners = (blocks_in(rows, find.BM), 1, 1), (rows, find.BM, find.BN), find.options
        slots = (1, 1, 1), (rows, self.anchors, configurations.ROWS_REDUCED), {"num_warps": 8}
        grid = (blocks + blocks_in(self.anchors, row.BM), 1, 1)
        packed = (
            rows, self.anchors, features, self.width, stride, step, blocks, unit, ones, row.BM,
            row.BK,
        )  # fmt: skip
        unpacked = rows, features, self.width, self.plan.groups, unit, ones, row.BM, row.BK
        options = {"num_warps": row.warps}
        return (
            Launch(*partners),
            Launch(*slots),
            Launch(grid, packed, options),
            Launch((blocks, 1, 1), unpacked, options),
        )


class NPairsStep(Step):
    """A `Step` of slots for pairs, as `first_pair_kernels` says, of at least two rows."""

    made = NPairsKind
    kind: NPairsKind

    def __init__(self, plan: Plan, spec: PairSpec, problem: PairProblem) -> None:
        rows, features = problem.x.shape
        slots = rows // 2
        self.raw, self.row_labels = plain(problem.x), plain(problem.labels).contiguous()
        # Only the shape of these counts: slots have one more feature.
        some = problem.x.new_empty((slots, features + 1), dtype=torch.float32)
        ends = [problem.labels.new_empty(slots) for _ in range(2)]
        super().__init__(plan, spec, PairProblem(some, ends[0], some, ends[1]))
        self.partners = torch.empty(rows, dtype=torch.int32, device=some.device)
        self.slot_of, self.filled = torch.empty_like(self.partners), self.partners.new_empty(1)
        self.first = torch.empty_like(ends[0])

    def _more_given(self) -> tuple[Tensor, ...]:
        return self.raw, self.row_labels

    def _more(self) -> Any:
        return (*self.raw.shape, *self.raw.stride())

    def _pack(self, launch: Launcher, at: list[Any]) -> None:
        x, y, point = self.kind.x, self.kind.y, launch.pointer
        find, fill, pack, _ = self.kind.arranged
        partners, slot_of, filled = map(point, (self.partners, self.slot_of, self.filled))
        launch("partners", partners_kernel, find, point(self.row_labels), partners)
        launch(
            "slots", slots_kernel, fill,
            partners, slot_of, point(self.first), point(self.labels), point(self.ref_labels),
            filled,
        )  # fmt: skip
        launch(
            "pack", pack_pairs_kernel, pack,
            point(self.raw), partners, slot_of, filled, at[x.packed], at[y.packed], at[x.norms],
            at[y.norms], at[x.lengths], at[y.lengths], at[self.kind.flags],
        )  # fmt: skip

    def forward(self, told: PanelStatistics | None = None) -> tuple[Tensor, Tensor]:
        loss, saved = super().forward(told)
        if self.spec.reduction == "none":
            # Of rows that are first in no pair it is 0, or NaN as everywhere.
            rows = torch.arange(len(self.raw), device=loss.device)
            loss = torch.where(self.partners > rows, loss[self.slot_of.long()], saved[1])
        return loss, saved

    def backward(self, saved: Tensor, grad: Tensor) -> Gradients:
        found = super().backward(saved, grad[self.first] if grad.ndim else grad)
        return Gradients(found.x, None, None)

    def _unpack(
        self, launch: Launcher, at: list[Any], to: list[Any], wanted: Wanted, header: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        x, y, point = self.kind.x, self.kind.y, launch.pointer
        found = torch.empty_like(self.raw, memory_format=torch.contiguous_format)
        launch(
            "unpack", unpack_pairs_kernel, self.kind.arranged[-1],
            point(found), point(self.partners), point(self.slot_of), at[x.packed], at[y.packed],
            *(to[number] for number in wanted.products), *self._nears(at, to, wanted),
            at[x.lengths], at[y.lengths], header,
        )  # fmt: skip
        return found, None
