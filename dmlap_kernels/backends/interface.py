"""What every backend offers to whoever chooses among them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from dmlap_kernels.problem import (
    Forward,
    Gradients,
    HardClasses,
    Nearest,
    PairProblem,
    PairSpec,
)


class Backend(Protocol):
    """What a backend offers; `spec` is None for `nearest` and `hard_classes`."""

    name: str

    def unavailable(self) -> str | None:
        """Why it cannot run on this machine; None if it can."""

    def refuses(self, spec: PairSpec | None, device_type: str, dtype: torch.dtype) -> str | None:
        """Why it cannot run this call although it is available; None if it can.

        Of `spec` the answer depends on the loss, the distance, the normalisation, and whether there
        is a match, alone.
        """

    def saved_like(self, spec: PairSpec, problem: PairProblem) -> Tensor:
        """An empty tensor of the shape and dtype of `Forward.saved`."""

    def forward(self, spec: PairSpec, problem: PairProblem, stats: bool, scores: bool) -> Forward:
        """Loss, what backward needs of it, and `PairStats` when asked for."""

    def backward(
        self,
        spec: PairSpec,
        problem: PairProblem,
        saved: Tensor,
        grad: Tensor,
        context: Any = None,
    ) -> Gradients:
        """Gradients of the loss, given the gradient at its value."""

    def parts(self, spec: PairSpec, result: Forward) -> Tensor:
        """Of a mean reduction the sums of the groups of terms and what they are divided by, stacked
        (2, groups) float64, so that processes may add theirs up."""

    def with_counts(self, spec: PairSpec, saved: Tensor, counts: Tensor) -> Tensor:
        """``saved`` of a forward sweep for a backward that divides by ``counts`` (groups,)."""

    def nearest(
        self, queries: Tensor, refs: Tensor | None, k: int, distance: str, normalize: bool
    ) -> Nearest: ...

    def hard_classes(
        self, rows: Tensor, labels: Tensor, k: int, margin: float, distance: str, normalize: bool
    ) -> HardClasses: ...
