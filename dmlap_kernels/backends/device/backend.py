"""A `dmlap_kernels.backends.registry.Backend` made of `Sweeps`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.device import search
from dmlap_kernels.backends.device.families import FAMILIES
from dmlap_kernels.backends.device.packing import unpacked
from dmlap_kernels.backends.device.stats import pair_stats
from dmlap_kernels.backends.device.storage import refuse_without_memory
from dmlap_kernels.backends.device.sweeps import Sweeps
from dmlap_kernels.backends.device.terms import Call, Family, parts, reduce
from dmlap_kernels.backends.precision import autocasts, full_precision
from dmlap_kernels.problem import (
    Forward,
    Gradients,
    HardClasses,
    Nearest,
    PairProblem,
    PairSpec,
    compute_dtype,
)


class DeviceBackend(ABC):
    """The losses of a GPU backend.

    Subclasses say what they are called, whether they run here (`unavailable`), what device types
    they serve, and how `sweeps` are made. The numbers of a loss, in `PairSpec.params`, are Python
    floats: kernels take them by value, and nothing of a device is read to know them.
    """

    name: str
    # Whether kernels are handed addresses, and so only tensors that lie in memory can be served.
    reads_memory = True

    def in_label_order(self, spec: PairSpec, problem: PairProblem) -> bool:
        """Whether `sweeps` are handed rows in label order, with the runs of classes."""
        return True

    def device_types(self) -> tuple[str, ...]:
        return ("cuda",)

    @abstractmethod
    def sweeps(self) -> Sweeps:
        """The kernels; called only where they run."""

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why they do not run on this machine; None if they do."""

    def refuses(self, spec: PairSpec | None, device_type: str, dtype: torch.dtype) -> str | None:
        if device_type not in self.device_types():
            return f"it serves tensors on cuda, got tensors on {device_type}"
        if spec is not None and spec.loss not in FAMILIES:
            return f"it has no policy {spec.loss!r}"
        if spec is not None and spec.match is not None and (why := self.refuses_match(spec)):
            return f"{why} (the torch backend serves it)"
        if dtype == torch.float64:
            return "it computes in float32, got float64 (the torch backend serves it)"
        return None

    def refuses_match(self, spec: PairSpec) -> str | None:
        """Why positives by other means than equal labels are not served; None if they are."""
        return "it finds positives by equal labels, and serves no match"

    def saved_like(self, spec: PairSpec, problem: PairProblem) -> Tensor:
        family = FAMILIES[spec.loss]
        rows = family.groups(spec) + family.kept_rows(spec, problem)
        dtype = compute_dtype(problem.x.dtype)
        return problem.x.new_empty((rows, problem.x.shape[0]), dtype=dtype)

    def forward(self, spec: PairSpec, problem: PairProblem, stats: bool, scores: bool) -> Forward:
        self._refuse_without_memory(*problem)
        with self._at(problem.x):
            # A memory bank needs no gradient: a backward that knows of it sweeps for none.
            call = self._call(spec, problem, stats or scores, only_needed=True)
            found = FAMILIES[spec.loss].forward(call)
            loss, weights = reduce(found.groups, spec.reduction, call.nonfinite)
            call.groups = found.groups
            if spec.reduction == "none":
                loss = call.sides.to_caller(loss)
            saved = torch.stack((*weights, *(() if found.kept is None else found.kept)))
            summary = pair_stats(call, found, problem, scores) if stats or scores else None
            return Forward(loss, saved, summary, call)

    def backward(
        self,
        spec: PairSpec,
        problem: PairProblem,
        saved: Tensor,
        grad: Tensor,
        context: Any = None,
    ) -> Gradients:
        self._refuse_without_memory(*problem, saved, grad)
        with self._at(problem.x):
            call = context or self._call(spec, problem)
            family, sides, nonfinite = FAMILIES[spec.loss], call.sides, call.nonfinite
            weights, kept = self._weights(family, call, saved, grad)
            found = family.backward(call, kept, weights)
            gx = gy = g_params = None
            if found.x is not None:
                gx = unpacked(sides, found.x, problem.x, False, nonfinite)
                gx = gx.to(problem.x.dtype)
            if problem.y is not None and found.y is not None:
                gy = unpacked(sides, found.y, problem.y, True, nonfinite)
                gy = gy.to(problem.y.dtype)
            if found.anchor_params is not None:
                g_params = sides.to_caller(found.anchor_params + nonfinite)
            return Gradients(gx, gy, g_params)

    def parts(self, spec: PairSpec, result: Forward) -> Tensor:
        call = result.context
        return parts(call.groups, spec.reduction) + call.nonfinite.double()

    def with_counts(self, spec: PairSpec, saved: Tensor, counts: Tensor) -> Tensor:
        weights, kept = saved.tensor_split((FAMILIES[spec.loss].groups(spec),))
        shares = counts.reciprocal().to(saved.dtype)[:, None]
        return torch.cat((torch.where(weights != 0, shares, 0), kept))

    def nearest(
        self, queries: Tensor, refs: Tensor | None, k: int, distance: str, normalize: bool
    ) -> Nearest:
        self._refuse_without_memory(queries, refs)
        with self._at(queries):
            return search.nearest(self.sweeps(), queries, refs, k, distance, normalize)

    def hard_classes(
        self, rows: Tensor, labels: Tensor, k: int, margin: float, distance: str, normalize: bool
    ) -> HardClasses:
        self._refuse_without_memory(rows, labels)
        with self._at(rows):
            return search.hard_classes(self.sweeps(), rows, labels, k, margin, distance, normalize)

    def _call(
        self,
        spec: PairSpec,
        problem: PairProblem,
        with_sums: bool = False,
        only_needed: bool = False,
    ) -> Call:
        order = self.in_label_order(spec, problem)
        for_kernels = self.reads_memory
        return Call.of(
            spec, problem, self.sweeps(), with_sums, only_needed, order, for_kernels=for_kernels
        )

    def _weights(
        self, family: Family, call: Call, saved: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the totals of the anchors count with (groups, B), and what else forward kept."""
        weights, kept = saved.tensor_split((family.groups(call.spec),))
        grad = grad.to(saved.dtype)
        return weights * (grad if grad.ndim == 0 else call.sides.from_caller(grad)), kept

    def _refuse_without_memory(self, *tensors: Tensor | None) -> None:
        if self.reads_memory:
            refuse_without_memory(self.name, *tensors)

    def _at(self, tensor: Tensor) -> AbstractContextManager:
        """Keeps autocast off, and makes the tensor's device current for kernels."""
        elsewhere = tensor.is_cuda and tensor.device.index != torch.cuda.current_device()
        if not elsewhere and not autocasts(tensor):
            return nullcontext()
        stack = ExitStack()
        stack.enter_context(full_precision(tensor))
        if tensor.is_cuda and self.reads_memory:
            stack.enter_context(torch.cuda.device(tensor.device))
        return stack
