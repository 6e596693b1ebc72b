"""Who can run a call, and who should."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dmlap_kernels.backends import fallback, orders, planted, selfcheck
from dmlap_kernels.backends.interface import Backend
from dmlap_kernels.problem import (
    PairSpec,
)

NAMES = ("auto", "cpu", "torch", "triton", "cuda")


@functools.cache
def backends() -> dict[str, Backend]:
    """Every backend by name, usable here or not."""
    from dmlap_kernels.backends.cpu import CpuBackend
    from dmlap_kernels.backends.cuda import CudaBackend
    from dmlap_kernels.backends.panels import TorchBackend
    from dmlap_kernels.backends.triton.triton_backend import TritonBackend

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
    Remembered for a device without the params, which differ from call to call where they hold a
    seed, and without the shape, which ``auto`` compares with a few limits where it was measured.
    """
    kind = None if spec is None else (planted.variant_of(spec), spec.distance, spec.normalize)
    key = (name, kind, x.device, x.dtype)
    found = _chosen.get(key)
    if found is None:
        if name == "auto":
            look = _Look(spec, x.device, x.dtype, _unproved(x))
            found = look.found()
            look.tell()
            if not look.put_off:
                _chosen[key] = found
        else:
            found = _chosen[key] = _named(name, spec, x.device, x.dtype)
    return found.at(x, y) if isinstance(found, _ByShape) else found


_chosen: dict[tuple, Backend | _ByShape] = {}


def forget() -> None:
    """What was chosen so far: orders or self-checks have changed."""
    _chosen.clear()


def _named(name: str, spec: PairSpec | None, device: torch.device, dtype: torch.dtype) -> Backend:
    backend = backends()[name]
    with _current(device):
        if reason := backend.unavailable():
            raise RuntimeError(f"backend {name!r} is not available: {reason}")
        if reason := backend.refuses(spec, device.type, dtype):
            raise ValueError(f"backend {name!r} cannot run this call: {reason}")
    return backend


@contextlib.contextmanager
def _current(device: torch.device) -> Iterator[None]:
    """Backends that look at the current GPU look at this one: a machine may have several cards."""
    if device.type == "cuda" and torch.cuda.is_available():
        with torch.cuda.device(device):
            yield
    else:
        yield


def _unproved(x: Tensor) -> str:
    """What to do with a backend of which nothing is known yet: to ``"check"`` it; to ``"assume"``
    that it passes, where a call is only traced and will choose again when it runs; to go
    ``"past"`` it, where a check would get into what is recorded."""
    plain = type(x) is Tensor or type(x) is torch.nn.Parameter
    if not plain or x.device.type == "meta" or torch.compiler.is_compiling():
        return "assume"
    if torch._C._are_functorch_transforms_active():
        return "past"
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return "past"
    return "check"


class _Look:
    """One look for what ``auto`` takes for a kind of call on a device.

    Attributes:
        put_off: a backend was not checked, so that the next call has to look again.
        failed: what differed in the self-checks of the backends that were passed over.
        verdicts: those of all backends that were asked about.
    """

    def __init__(
        self, spec: PairSpec | None, device: torch.device, dtype: torch.dtype, unproved: str
    ) -> None:
        self.spec, self.device, self.dtype, self.unproved = spec, device, dtype, unproved
        op = orders.SEARCH if spec is None else spec.loss
        table = orders.load(device)
        self.entries = orders.entries(table, op, device.type, orders.chip_of(device))
        self.put_off = False
        self.failed: dict[str, str] = {}
        self.verdicts: dict[str, selfcheck.Verdict | None] = {}

    def found(self) -> Backend | _ByShape:
        with _current(self.device):
            taken = tuple(map(self.first, self.entries))
        return taken[0] if len(set(taken)) == 1 else _ByShape(self.entries, taken)

    def first(self, entry: orders.Entry) -> Backend:
        """Of an order the first that runs, and has proved itself where it needs to."""
        for name in entry.names:
            # A file may name what another version had.
            backend = backends().get(name)
            if backend is None or self.why_not(backend) is not None:
                continue
            if not selfcheck.needed(backend):
                return backend
            found = self.verdicts[name] = self.verdict(backend)
            if found is None:
                self.put_off = True
                if self.unproved == "assume":
                    return backend
            elif found.passed:
                return backend
            else:
                self.failed[name] = found.why
        raise RuntimeError(f"no backend can run this call on device {self.device.type!r}")

    def why_not(self, backend: Backend) -> str | None:
        return why_not(backend, self.spec, self.device.type, self.dtype)

    def verdict(self, backend: Backend) -> selfcheck.Verdict | None:
        call = (self.spec, self.dtype, self.device)
        run = self.unproved == "check"
        return selfcheck.verdict(backend, backends()["torch"], *call, run=run)

    def tell(self) -> None:
        """Nothing falls back silently: warn where kernels made for the device are not taken."""
        reasons = fallback.Reasons(lambda name: backends()[name].unavailable())
        kind = self.device.type
        with _current(self.device):
            for entry in self.entries:
                taken = self.first(entry).name
                known = tuple(name for name in entry.names if name in backends())
                names = fallback.passed_over(kind, known, taken, reasons)
                earlier = known[: known.index(taken)]
                failed = {n: self.failed[n] for n in earlier if n in self.failed}
                call = selfcheck.subject_of(backends()[taken], self.spec, self.dtype).words
                fallback.tell(kind, names, taken, reasons, failed, call)


class Explanation(NamedTuple):
    """Why ``auto`` takes a backend: the order it went by, where that is from, for each earlier name
    of the order why it was not taken, and what is known of the one that is."""

    taken: str
    order: tuple[str, ...]
    source: str
    passed_over: dict[str, str]
    proof: str = ""


def explain(spec: PairSpec | None, x: Tensor, y: Tensor | None = None) -> Explanation:
    """What `choose` makes of such a call with the name ``"auto"``, and why; checks nothing."""
    look = _Look(spec, x.device, x.dtype, "assume")
    pairs, features = x.shape[0] * (x if y is None else y).shape[0], x.shape[1]
    entry = next(one for one in look.entries if pairs <= one.pairs and features <= one.features)
    known = tuple(name for name in entry.names if name in backends())
    with _current(x.device):
        taken = look.first(entry)
        reasons = {
            name: look.why_not(backends()[name]) or _words(look.verdicts.get(name))
            for name in known[: known.index(taken.name)]
        }
    proof = _words(look.verdicts[taken.name]) if taken.name in look.verdicts else ""
    return Explanation(taken.name, known, entry.source, reasons, proof)


def _words(verdict: selfcheck.Verdict | None) -> str:
    return "its self-check comes with the first call" if verdict is None else verdict.words
