"""The `triton` backend: sweeps as Triton kernels, on NVIDIA GPUs.

With ``TRITON_INTERPRET=1`` in the environment before Triton is imported, its interpreter runs them
on CPU tensors: slow, and meant for tests.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import re
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels import versions
from dmlap_kernels.backends.device.backend import DeviceBackend
from dmlap_kernels.backends.device.packing import pack
from dmlap_kernels.backends.device.stats import class_scores, thresholds
from dmlap_kernels.backends.device.sweeps import Sweeps
from dmlap_kernels.backends.panels import TorchBackend
from dmlap_kernels.backends.precision import products_in
from dmlap_kernels.backends.triton import configurations
from dmlap_kernels.backends.triton.hard_of_panels import HARD
from dmlap_kernels.backends.triton.plans import Plan, plan_of
from dmlap_kernels.problem import (
    Forward,
    Gradients,
    HardClasses,
    Nearest,
    PairProblem,
    PairSpec,
)

# Losses that serve a match: those whose kernels compare the labels of one pair at a time.
MATCHED = (
    "triplet_hard",
    "contrastive",
    "margin",
    "siglip",
    "multi_similarity",
    "lifted_structure",
    "nt_xent",
    "sup_con",
    "circle",
)
OLDEST_TRITON = versions.numbers(versions.SUPPORTED["triton"].oldest)


class TritonBackend(DeviceBackend):
    """Triton kernels for CUDA tensors; in the interpreter also for CPU tensors."""

    name = "triton"

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed (pip install triton)"
        try:
            version = _version()
        except ImportError as error:
            return f"Triton cannot be imported: {error}"
        if version < OLDEST_TRITON:
            have, need = (".".join(map(str, one)) for one in (version, OLDEST_TRITON))
            return f"it needs Triton {need} or newer, got {have}"
        if _interpreted():
            return None
        if torch.version.cuda is None:
            return "this PyTorch was built without CUDA"
        if not torch.cuda.is_available():
            return "no CUDA device is visible"
        if torch.cuda.get_device_capability() < (8, 0):
            return "it needs a device of capability 8.0 or higher"
        return None

    def device_types(self) -> tuple[str, ...]:
        return ("cpu", "cuda") if _interpreted() else ("cuda",)

    def sweeps(self) -> Sweeps:
        return _sweeps()

    def refuses_match(self, spec: PairSpec) -> str | None:
        if spec.loss in MATCHED:
            return None
        return f"kernels of {spec.loss} go by the runs of classes, which a match has none of"

    def saved_like(self, spec: PairSpec, problem: PairProblem) -> Tensor:
        plan = _plan(spec, problem)
        if plan is None:
            return super().saved_like(spec, problem)
        rows = problem.x.shape[0] // (2 if _in_pairs(spec, problem) else 1)
        size = _HEADER + plan.rows * rows
        return problem.x.new_empty(size, dtype=torch.float32)

    def forward(self, spec: PairSpec, problem: PairProblem, stats: bool, scores: bool) -> Forward:
        plan = _plan(spec, problem)
        if plan is None:
            if spec.match is not None:  # of no pairs
                return TorchBackend().forward(spec, problem, stats, scores)
            return super().forward(spec, problem, stats, scores)
        self._refuse_without_memory(*problem)
        with self._at(problem.x), _products_of(spec):
            step = step_of(plan, spec, problem)
            told = spec.match is None and plan.statistics is not None
            if (stats or scores) and told:
                return self._with_statistics(step, spec, problem, scores)
            loss, saved = step.forward()
        summary = None
        if stats or scores:
            # What the loss keeps of an anchor is less than statistics tell; sweeps know no match.
            forward = super().forward if spec.match is None else TorchBackend().forward
            summary = forward(spec, problem, stats, scores).stats
        return Forward(loss, saved, summary, step)

    def _with_statistics(
        self, step: Any, spec: PairSpec, problem: PairProblem, scores: bool
    ) -> Forward:
        from dmlap_kernels.backends.triton.statistics_steps import forward_with_statistics

        loss, saved, told = forward_with_statistics(step, problem)
        summary = told.found()
        if scores:
            sides, params = pack(spec, problem), problem.anchor_params
            bounds = thresholds(spec, None if params is None else params.detach(), told.farthest)
            classes = class_scores(self.sweeps(), sides, problem, sides.from_caller(bounds))
            summary = dataclasses.replace(summary, class_scores=classes)
        return Forward(loss, saved, summary, step)

    def backward(
        self,
        spec: PairSpec,
        problem: PairProblem,
        saved: Tensor,
        grad: Tensor,
        context: Any = None,
    ) -> Gradients:
        plan = _plan(spec, problem)
        if plan is None:
            if spec.match is not None:
                return TorchBackend().backward(spec, problem, saved, grad, context)
            return super().backward(spec, problem, saved, grad, context)
        self._refuse_without_memory(*problem, saved, grad)
        with self._at(problem.x), _products_of(spec):
            step = context
            if step is None:
                step = step_of(plan, spec, problem)
                step.pack()
            elif problem.y is not None:
                step.wanted = problem.x.requires_grad, problem.y.requires_grad
            return step.backward(saved, grad)

    def parts(self, spec: PairSpec, result: Forward) -> Tensor:
        plan = getattr(result.context, "plan", None)
        if plan is None:
            return super().parts(spec, result)
        saved = result.saved
        table = saved[_HEADER:].view(plan.rows, -1)[plan.prefix :].double()
        totals, terms, positive = table.view(plan.groups, 3, -1).unbind(1)
        if spec.reduction == "mean_nonzero":
            totals, terms = totals * (positive > 0), positive
        nonfinite = saved[plan.groups].double()
        return torch.stack((totals.sum(1), terms.sum(1))) + nonfinite

    def with_counts(self, spec: PairSpec, saved: Tensor, counts: Tensor) -> Tensor:
        if saved.ndim > 1:
            return super().with_counts(spec, saved, counts)
        saved[: counts.numel()] = counts.reciprocal()
        return saved

    def nearest(
        self, queries: Tensor, refs: Tensor | None, k: int, distance: str, normalize: bool
    ) -> Nearest:
        columns = len(queries if refs is None else refs)
        if not configurations.one_panel_serves(len(queries), columns, k):
            return super().nearest(queries, refs, k, distance, normalize)
        from dmlap_kernels.backends.triton import search_steps

        self._refuse_without_memory(queries, refs)
        with self._at(queries), products_in(search_steps.PRECISION):
            return search_steps.nearest(queries, refs, k, distance, normalize)

    def hard_classes(
        self, rows: Tensor, labels: Tensor, k: int, margin: float, distance: str, normalize: bool
    ) -> HardClasses:
        if not configurations.one_panel_serves(len(rows), len(rows), k):
            return super().hard_classes(rows, labels, k, margin, distance, normalize)
        from dmlap_kernels.backends.triton import search_steps

        self._refuse_without_memory(rows, labels)
        with self._at(rows), products_in(search_steps.PRECISION):
            return search_steps.hard_classes(rows, labels, k, margin, distance, normalize)


# Floats before the table, `kinds.HEADER`, which this module cannot import without Triton.
_HEADER = 16


def _plan(spec: PairSpec, problem: PairProblem) -> Plan | None:
    """What panels do for a call, None where it does not go by panels."""
    anchors, features = problem.x.shape
    if spec.match is not None:
        # However few features there are: nothing else of this backend compares labels as they come.
        return plan_of(spec, problem.y is None) if anchors > 0 and problem.num_refs > 0 else None
    if not configurations.panels_serve(anchors, problem.num_refs, features):
        return None
    if problem.y is not None and problem.ref_labels is None:
        return None
    if _in_pairs(spec, problem) and anchors < 2:
        return None
    if spec.loss == "angular":
        # Each anchor needs products of its positives, so that all of them are one panel.
        if max(anchors, problem.num_refs) > configurations.panel_height(problem.num_refs):
            return None
    if not _third_served(spec, problem):
        return None
    return plan_of(spec, problem.y is None)


def _third_served(spec: PairSpec, problem: PairProblem) -> bool:
    """Whether distances among references, where they count, are one panel, as is all else then."""
    mined = "triplet_all", "triplet_semihard", "triplet_distance_weighted"
    if spec.loss not in mined or not spec.params[2]:
        return True
    return max(problem.x.shape[0], problem.num_refs) <= configurations.panel_height(
        problem.num_refs
    )


def _in_pairs(spec: PairSpec, problem: PairProblem) -> bool:
    """Whether each class has one pair of rows, and so anchors are half of the rows at most."""
    return spec.loss == "n_pairs" and problem.y is None


def step_of(plan: Plan, spec: PairSpec, problem: PairProblem) -> Any:
    name = spec.loss
    if name in HARD and spec.params[2]:
        name = "one mined triplet with swap"
    elif name == "angular" and problem.y is not None:
        name = "angular with references"
    elif _in_pairs(spec, problem):
        name = "pairs of a batch"
    own, general = _steps()
    return own.get(name, general)(plan, spec, problem)


@functools.cache
def _steps() -> tuple[dict[str, Any], Any]:
    """Steps of losses that have one of their own, and that of the others. Each imports Triton."""
    from dmlap_kernels.backends.triton.angular_reference_steps import AngularReferenceStep
    from dmlap_kernels.backends.triton.angular_steps import AngularStep
    from dmlap_kernels.backends.triton.drawn_steps import DrawnStep
    from dmlap_kernels.backends.triton.hard_swap_steps import HardSwapStep
    from dmlap_kernels.backends.triton.lifted_steps import LiftedStep
    from dmlap_kernels.backends.triton.n_pairs_steps import NPairsStep
    from dmlap_kernels.backends.triton.soft_triple_steps import SoftTripleStep
    from dmlap_kernels.backends.triton.steps import Step
    from dmlap_kernels.backends.triton.triplet_steps import TripletStep

    own = {
        "pairs of a batch": NPairsStep,
        "one mined triplet with swap": HardSwapStep,
        "soft_triple": SoftTripleStep,
        "angular": AngularStep,
        "angular with references": AngularReferenceStep,
        "lifted_structure_original": LiftedStep,
        "triplet_all": TripletStep,
        "triplet_semihard": TripletStep,
        "triplet_distance_weighted": DrawnStep,
    }
    return own, Step


def _products_of(spec: PairSpec) -> AbstractContextManager:
    """Products are in the precision of the call, where it has one of its own."""
    return nullcontext() if spec.precision is None else products_in(spec.precision)


def _version() -> tuple[int, ...]:
    """Of the Triton that would be imported, whatever the distribution that brought it is called."""
    import triton

    return tuple(map(int, re.findall(r"\d+", triton.__version__)[:3]))


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _sweeps() -> Any:
    from dmlap_kernels.backends.triton.triton_sweeps import TritonSweeps

    return TritonSweeps()
