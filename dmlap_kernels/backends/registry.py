"""Who can run a call, and who should."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dmlap_kernels.backends import fallback, orders
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


NAMES = ("auto", "cpu", "torch", "triton", "cuda")


@functools.cache
def backends() -> dict[str, Backend]:
    """Every backend by name, usable here or not."""
    from dmlap_kernels.backends.cpu import CpuBackend
    from dmlap_kernels.backends.cuda import CudaBackend
    from dmlap_kernels.backends.panels import TorchBackend
    from dmlap_kernels.backends.triton.backend import TritonBackend

    return {b.name: b for b in (CpuBackend(), TorchBackend(), TritonBackend(), CudaBackend())}


def why_not(
    backend: Backend, spec: PairSpec | None, device_type: str, dtype: torch.dtype
) -> str | None:
    return backend.unavailable() or backend.refuses(spec, device_type, dtype)


class _ByShape:
    """What ``auto`` takes of a kind of call, where that depends on the shape."""

    def __init__(self, entries: tuple[orders.Entry, ...], taken: tuple[Backend, ...]) -> None:
        self.limits = [(e.pairs, e.features, b) for e, b in zip(entries, taken, strict=True)]

    def at(self, x: Tensor, y: Tensor | None) -> Backend:
        rows, features = x.shape
        pairs = rows * (rows if y is None else y.shape[0])
        for most_pairs, most_features, backend in self.limits:
            if pairs <= most_pairs and features <= most_features:
                return backend
        raise AssertionError("the last entry serves every call")


def choose(name: str, spec: PairSpec | None, x: Tensor, y: Tensor | None = None) -> Backend:
    """The backend that runs a call; ValueError or RuntimeError if ``name`` cannot.

    Anchors ``x`` (B, D) and references ``y`` (N, D), or None, are looked at from outside only.
    Remembered without the params, which differ from call to call where they hold a seed, and
    without the shape, which ``auto`` compares with a few limits where it was measured.
    """
    kind = None if spec is None else (spec.loss, spec.distance, spec.normalize)
    key = (name, kind, x.device.type, x.dtype)
    found = _chosen.get(key)
    if found is None:
        found = _choose(name, spec, *key[2:])
        if name == "auto":
            _tell(spec, *key[2:])
        _chosen[key] = found
    return found.at(x, y) if isinstance(found, _ByShape) else found


_chosen: dict[tuple, Backend | _ByShape] = {}


def _choose(
    name: str, spec: PairSpec | None, device_type: str, dtype: torch.dtype
) -> Backend | _ByShape:
    if name != "auto":
        backend = backends()[name]
        if reason := backend.unavailable():
            raise RuntimeError(f"backend {name!r} is not available: {reason}")
        if reason := backend.refuses(spec, device_type, dtype):
            raise ValueError(f"backend {name!r} cannot run this call: {reason}")
        return backend
    entries = _entries(spec, device_type)
    taken = tuple(_first(entry, spec, device_type, dtype) for entry in entries)
    return taken[0] if len(set(taken)) == 1 else _ByShape(entries, taken)


def _tell(spec: PairSpec | None, device_type: str, dtype: torch.dtype) -> None:
    """Nothing falls back silently: warn where kernels made for the device do not run here."""
    reasons = fallback.Reasons(lambda name: backends()[name].unavailable())
    for entry in _entries(spec, device_type):
        taken = _first(entry, spec, device_type, dtype).name
        names = fallback.passed_over(device_type, entry.names, taken, reasons)
        fallback.tell(device_type, names, taken, reasons)


def _entries(spec: PairSpec | None, device_type: str) -> tuple[orders.Entry, ...]:
    op = orders.SEARCH if spec is None else spec.loss
    return orders.entries(orders.load(), op, device_type, orders.chip_of(device_type))


def _first(
    entry: orders.Entry, spec: PairSpec | None, device_type: str, dtype: torch.dtype
) -> Backend:
    for name in entry.names:
        if why_not(backends()[name], spec, device_type, dtype) is None:
            return backends()[name]
    raise RuntimeError(f"no backend can run this call on device {device_type!r}")


class Explanation(NamedTuple):
    """Why ``auto`` takes a backend: the order it went by, where that is from, and for each earlier
    name of the order why it was not taken."""

    taken: str
    order: tuple[str, ...]
    source: str
    passed_over: dict[str, str]


def explain(spec: PairSpec | None, x: Tensor, y: Tensor | None = None) -> Explanation:
    """What `choose` makes of such a call with the name ``"auto"``, and why."""
    chosen = _choose("auto", spec, x.device.type, x.dtype)
    taken = (chosen.at(x, y) if isinstance(chosen, _ByShape) else chosen).name
    pairs, features = x.shape[0] * (x if y is None else y).shape[0], x.shape[1]
    found = _entries(spec, x.device.type)
    entry = next(one for one in found if pairs <= one.pairs and features <= one.features)
    earlier = entry.names[: entry.names.index(taken)]
    reasons = {n: why_not(backends()[n], spec, x.device.type, x.dtype) or "" for n in earlier}
    return Explanation(taken, entry.names, entry.source, reasons)
