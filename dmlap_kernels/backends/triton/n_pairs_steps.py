"""N-pairs without references, by panels of the first rows of all classes and their second rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.triton import configurations
from dmlap_kernels.backends.triton.first_pair_kernels import (
    pack_pairs_kernel,
    partners_kernel,
    slots_kernel,
    unpack_pairs_kernel,
)
from dmlap_kernels.backends.triton.plans import Plan
from dmlap_kernels.backends.triton.steps import Step, blocks_in, plain
from dmlap_kernels.problem import Gradients, PairProblem, PairSpec


class NPairsStep(Step):
    """A `Step` of slots for pairs, as `first_pair_kernels` says, of at least two rows."""

    def __init__(self, plan: Plan, spec: PairSpec, problem: PairProblem) -> None:
        rows, features = problem.x.shape
        slots = rows // 2
        # Only the shape of these counts: slots have one more feature.
        some = problem.x.new_empty((slots, features + 1), dtype=torch.float32)
        ends = [problem.labels.new_empty(slots) for _ in range(2)]
        super().__init__(plan, spec, PairProblem(some, ends[0], some, ends[1]))
        self.raw, self.row_labels = plain(problem.x), plain(problem.labels).contiguous()
        self.partners = torch.empty(rows, dtype=torch.int32, device=some.device)
        self.slot_of, self.filled = torch.empty_like(self.partners), self.partners.new_empty(1)
        self.first = torch.empty_like(ends[0])
        self.gradient: Tensor | None = None

    def pack(self) -> Tensor:
        rows, slots = len(self.raw), self.anchors
        find = configurations.panel_launch("partners")
        partners_kernel[(blocks_in(rows, find.BM),)](
            self.row_labels, self.partners, rows, find.BM, find.BN, **find.options
        )
        slots_kernel[(1,)](
            self.partners,
            self.slot_of,
            self.first,
            self.x.labels,
            self.y.labels,
            self.filled,
            rows,
            slots,
            configurations.ROWS_REDUCED,
            num_warps=8,
        )
        launch = configurations.row_launch()
        blocks = blocks_in(rows, launch.BM)
        flags = self.x.norms.new_empty(blocks)
        x, y = self.x, self.y
        pack_pairs_kernel[(blocks + blocks_in(slots, launch.BM),)](
            self.raw,
            self.partners,
            self.slot_of,
            self.filled,
            x.packed,
            y.packed,
            x.norms,
            y.norms,
            x.lengths,
            y.lengths,
            flags,
            rows,
            slots,
            self.raw.shape[1],
            self.width,
            *self.raw.stride(),
            blocks,
            self.spec.unit_rows,
            self.ones,
            launch.BM,
            launch.BK,
            num_warps=launch.warps,
        )
        return flags

    def forward(self) -> tuple[Tensor, Tensor]:
        loss, saved = super().forward()
        if self.spec.reduction == "none":
            # Of rows that are first in no pair it is 0, or NaN as everywhere.
            rows = torch.arange(len(self.raw), device=loss.device)
            loss = torch.where(self.partners > rows, loss[self.slot_of.long()], saved[1])
        return loss, saved

    def backward(self, saved: Tensor, grad: Tensor) -> Gradients:
        if grad.ndim:
            grad = grad[self.first]
        super().backward(saved, grad)
        return Gradients(self.gradient, None, None)

    def _unpack(self, gx: Any, gy: Any, products: list[Tensor], near: Any, header: Tensor) -> None:
        launch = configurations.row_launch()
        rows, x, y = len(self.raw), self.x, self.y
        self.gradient = torch.empty_like(self.raw, memory_format=torch.contiguous_format)
        unpack_pairs_kernel[(blocks_in(rows, launch.BM),)](
            self.gradient,
            self.partners,
            self.slot_of,
            x.packed,
            y.packed,
            *products,
            *(products if near is None else near.rows),
            *((header, header) if near is None else near.marks),
            x.lengths,
            y.lengths,
            header,
            rows,
            self.raw.shape[1],
            self.width,
            self.plan.groups,
            self.spec.unit_rows,
            self.ones,
            launch.BM,
            launch.BK,
            num_warps=launch.warps,
        )
