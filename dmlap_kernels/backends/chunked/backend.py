"""The backend: the value of a block comes from ordinary tensor code; its gradient from autograd
over the same code, run again in backward. It is the slow one, with the fewest assumptions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.chunked.blocks import Sides, full_precision, make_block
from dmlap_kernels.backends.chunked.gradients import at_numbers, gradients, log_sums_before
from dmlap_kernels.backends.chunked.policies import POLICIES, groups_of
from dmlap_kernels.backends.chunked.search import hard_classes, nearest
from dmlap_kernels.backends.chunked.stats import StatsSummary
from dmlap_kernels.backends.chunked.terms import GroupSums
from dmlap_kernels.problem import (
    Forward,
    Gradients,
    HardClasses,
    Nearest,
    PairProblem,
    PairSpec,
    compute_dtype,
)


class TorchBackend:
    """Chunked plain PyTorch."""

    name = "torch"

    def unavailable(self) -> str | None:
        return None

    def refuses(self, spec: PairSpec | None, device_type: str, dtype: torch.dtype) -> str | None:
        return None

    def saved_like(self, spec: PairSpec, problem: PairProblem) -> Tensor:
        shape = problem.x.shape[0], groups_of(spec.loss)
        return problem.x.new_empty(shape, dtype=compute_dtype(problem.x.dtype))

    def forward(self, spec: PairSpec, problem: PairProblem, stats: bool, scores: bool) -> Forward:
        with full_precision(problem.x):
            return self._forward(spec, problem, stats, scores)

    def _forward(self, spec: PairSpec, problem: PairProblem, stats: bool, scores: bool) -> Forward:
        sides = Sides.of(spec, problem)
        x, refs = sides.x, sides.refs
        wanted = stats or scores
        summary = StatsSummary(spec, problem, refs, scores, x) if wanted else None
        sums = GroupSums(x, groups_of(spec.loss), spec.reduction)
        of_refs = log_sums_before(spec, problem, sides)
        for at in sides.blocks():
            block = make_block(spec, problem, at, x[at], refs, of_refs)
            for terms in POLICIES[spec.loss](spec.params, block):
                sums.add(at, terms)
            if summary is not None:
                summary.add(at, block)
        loss, weights = sums.reduce()
        return Forward(loss + sides.poison, weights, summary.result(sums) if summary else None)

    def backward(
        self,
        spec: PairSpec,
        problem: PairProblem,
        saved: Tensor,
        grad: Tensor,
        context: Any = None,
    ) -> Gradients:
        with full_precision(problem.x):
            return gradients(spec, problem, saved * grad.reshape(-1, 1))

    def at_numbers(
        self,
        spec: PairSpec,
        problem: PairProblem,
        numbers: Tensor,
        saved: Tensor | None,
        grad: Tensor,
    ) -> Tensor:
        """The gradient at ``numbers`` (P,), which stand where a param of ``spec`` is None.

        No other backend has it, and all of them take it from here. ``saved`` is what this
        backend's forward sweep left; None where another one ran it.
        """
        with full_precision(problem.x):
            if saved is None:
                values = numbers.detach().unbind()
                saved = self._forward(spec.filled(values), problem, False, False).saved
            return at_numbers(spec, problem, numbers, saved * grad.reshape(-1, 1))

    def nearest(
        self, queries: Tensor, refs: Tensor | None, k: int, distance: str, normalize: bool
    ) -> Nearest:
        with full_precision(queries):
            return nearest(queries, refs, k, distance, normalize)

    def hard_classes(
        self, rows: Tensor, labels: Tensor, k: int, margin: float, distance: str, normalize: bool
    ) -> HardClasses:
        with full_precision(rows):
            return hard_classes(rows, labels, k, margin, distance, normalize)
