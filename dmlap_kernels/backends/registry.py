"""Who can run a call, and who should."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
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

        Of `spec` the answer depends on the loss, the distance and the normalisation alone.
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

    def nearest(
        self, queries: Tensor, refs: Tensor | None, k: int, distance: str, normalize: bool
    ) -> Nearest: ...

    def hard_classes(
        self, rows: Tensor, labels: Tensor, k: int, margin: float, distance: str, normalize: bool
    ) -> HardClasses: ...


NAMES = ("auto", "cpu", "torch", "triton", "cuda")
# What `auto` tries, as the file itself says.
_ORDER = Path(__file__).with_name("order.json")


@functools.cache
def backends() -> dict[str, Backend]:
    """Every backend by name, usable here or not."""
    from dmlap_kernels.backends.chunked import TorchBackend
    from dmlap_kernels.backends.cpu import CpuBackend
    from dmlap_kernels.backends.cuda import CudaBackend
    from dmlap_kernels.backends.triton.backend import TritonBackend

    return {b.name: b for b in (CpuBackend(), TorchBackend(), TritonBackend(), CudaBackend())}


def why_not(
    backend: Backend, spec: PairSpec | None, device_type: str, dtype: torch.dtype
) -> str | None:
    return backend.unavailable() or backend.refuses(spec, device_type, dtype)


@functools.cache
def _orders() -> dict[str, Any]:
    return json.loads(_ORDER.read_text())


def _chip(device_type: str) -> str:
    return torch.cuda.get_device_name() if device_type == "cuda" else device_type


def order(
    orders: dict[str, Any], spec: PairSpec | None, device_type: str, chip: str
) -> Sequence[str]:
    """What `auto` tries, first to last: as measured on a chip, else by the rule."""
    of_device = orders.get(device_type, orders["other"])
    measured = of_device["measured"].get(chip, {})
    return measured.get("search" if spec is None else spec.loss, of_device["rule"])


def choose(name: str, spec: PairSpec | None, device_type: str, dtype: torch.dtype) -> Backend:
    """The backend that runs a call; ValueError or RuntimeError if ``name`` cannot.

    Remembered without the params, which differ from call to call where they hold a seed.
    """
    kind = None if spec is None else (spec.loss, spec.distance, spec.normalize)
    key = (name, kind, device_type, dtype)
    return _chosen.get(key) or _chosen.setdefault(key, _choose(name, spec, device_type, dtype))


_chosen: dict[tuple, Backend] = {}


def _choose(name: str, spec: PairSpec | None, device_type: str, dtype: torch.dtype) -> Backend:
    if name != "auto":
        backend = backends()[name]
        if reason := backend.unavailable():
            raise RuntimeError(f"backend {name!r} is not available: {reason}")
        if reason := backend.refuses(spec, device_type, dtype):
            raise ValueError(f"backend {name!r} cannot run this call: {reason}")
        return backend
    for candidate in order(_orders(), spec, device_type, _chip(device_type)):
        backend = backends()[candidate]
        if why_not(backend, spec, device_type, dtype) is None:
            return backend
    raise RuntimeError(f"no backend can run this call on device {device_type!r}")
