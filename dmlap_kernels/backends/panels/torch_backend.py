"""The backend: the losses of `dmlap_kernels.backends.device` over `PanelSweeps`."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels.backends.device.backend import DeviceBackend
from dmlap_kernels.backends.device.families import FAMILIES
from dmlap_kernels.backends.device.sweeps import Sweeps
from dmlap_kernels.backends.panels.panel_sweeps import PanelSweeps
from dmlap_kernels.problem import PairProblem, PairSpec

# Losses that go by runs of classes (`Sides.first`), or draw in the order of the columns.
BY_CLASS = ("n_pairs", "soft_triple", "triplet_distance_weighted")


class TorchBackend(DeviceBackend):
    """Plain PyTorch. A number of a loss may be a tensor here."""

    name = "torch"
    reads_memory = False

    def unavailable(self) -> str | None:
        return None

    def refuses(self, spec: PairSpec | None, device_type: str, dtype: torch.dtype) -> str | None:
        return None

    def in_label_order(self, spec: PairSpec, problem: PairProblem) -> bool:
        if spec.match is not None:
            return False
        # On the CPU a sort costs less than to count labels pair by pair. Elsewhere it is launches.
        return problem.x.device.type == "cpu" or spec.loss in BY_CLASS

    def sweeps(self) -> Sweeps:
        return PanelSweeps()

    def at_numbers(
        self,
        spec: PairSpec,
        problem: PairProblem,
        numbers: Tensor,
        saved: Tensor | None,
        grad: Tensor,
    ) -> Tensor:
        """The gradient at ``numbers`` (P,), which stand where a param of ``spec`` is None.

        No other backend has it, and all of them take it from here: by autograd over the forward
        half, one panel at a time. ``saved`` is what this backend's forward sweep left; None where
        another one ran it.
        """
        if saved is None:
            values = numbers.detach().unbind()
            saved = self.forward(spec.filled(values), problem, False, False).saved
        with self._at(problem.x):
            leaves = [number.detach().requires_grad_() for number in numbers.unbind()]
            call = self._call(spec.filled(leaves), problem)
            family = FAMILIES[spec.loss]
            weights = self._weights(family, call, saved, grad)[0]
            with torch.enable_grad():
                groups = family.forward(call).groups
                total = (torch.stack([group.total for group in groups]) * weights).sum()
            found: list[Tensor | None] = [None] * len(leaves)
            if total.requires_grad:
                found = list(torch.autograd.grad(total, leaves, allow_unused=True))
            parts = (
                torch.zeros_like(leaf) if part is None else part
                for leaf, part in zip(leaves, found, strict=True)
            )
            return torch.stack([*parts]).detach() + call.nonfinite
