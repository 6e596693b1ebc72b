"""``dmlap calibrate``: measures the backends that run here, for ``auto`` to go by on this chip.

Every loss and search at a few numbers of rows, forward and backward, host time included, by every
backend that has passed its self-check. What comes out is kept in the user's cache directory for
the chip, its driver and the versions of PyTorch, Triton and this package.
"""

from __future__ import annotations

import datetime
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlap_kernels.backends import cache, orders, ranking, registry, selfcheck
from dmlap_kernels.backends.chips import chip_at
from dmlap_kernels.backends.device.families import FAMILIES
from dmlap_kernels.backends.planted import PARAMS, PROXIES
from dmlap_kernels.problem import PairProblem, PairSpec
from dmlap_kernels.sweep import pair_loss

ROWS = (128, 1024, 4096, 16384)
FEATURES = 128
NEIGHBOURS = 10
# A candidate that takes so many times as long as the best is done with.
BEHIND = 20.0
# Calls of a measurement are timed in so many groups, of which the median counts.
GROUPS, MOST_CALLS = 3, 60

_EUCLIDEAN = ("triplet_", "contrastive", "margin", "lifted_")


class Time(NamedTuple):
    """One measurement; ``seconds`` a step, None with ``why`` there is none.

    ``behind``: it is known to be far slower than the best, by a call or by those of fewer rows.
    """

    op: str
    rows: int
    backend: str
    seconds: float | None
    why: str = ""
    behind: bool = False


@dataclass
class Calibration:
    """What was measured on a device, and the orders that follow from it."""

    device: torch.device
    times: list[Time] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    orders: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    path: Path | None = None

    def table(self) -> str:
        """Milliseconds of a step by op and rows, a column for each backend, the fastest starred."""
        names = list(dict.fromkeys(one.backend for one in self.times))
        cells: dict[tuple[str, int], dict[str, Time]] = {}
        for one in self.times:
            cells.setdefault((one.op, one.rows), {})[one.backend] = one
        width = max([len(op) for op, _ in cells] or [2])
        lines = [f"{'op':<{width}}  {'rows':>6}" + "".join(f"  {n:>10}" for n in names)]
        for (op, rows), by_name in cells.items():
            known = [t.seconds for t in by_name.values() if t.seconds and not t.behind]
            best = min(known, default=math.inf)
            words = [_cell(by_name.get(name), best) for name in names]
            lines.append(f"{op:<{width}}  {rows:>6}" + "".join(f"  {w:>10}" for w in words))
        return "\n".join(lines)


def _cell(one: Time | None, best: float) -> str:
    if one is None or one.seconds is None:
        return "-"
    sign = ">" if one.behind else ""
    return f"{sign}{1e3 * one.seconds:.3g}" + ("*" if one.seconds == best else " ")


def calibrate(
    device: torch.device,
    seconds: float = 60.0,
    *,
    ops: Sequence[str] | None = None,
    advance: Callable[[str], None] = lambda words: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """Measure for about ``seconds``, write the orders into the cache directory, go by them.

    Self-checks, which are repeated, and compilation come on top.

    Args:
        device: whose chip is measured.
        ops: names of losses, and "search"; all of them by default.
        advance: called before each measurement with what it is of.
        clock: seconds.

    Raises:
        RuntimeError: inside `torch.compile`, or while a CUDA graph is captured.
    """
    if torch.compiler.is_compiling():
        raise RuntimeError("calibrate cannot be compiled: it measures")
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("calibrate cannot run while a CUDA graph is captured: it measures")
    names = [*FAMILIES, orders.SEARCH] if ops is None else list(ops)
    run = _Run(device, clock, clock() + seconds, len(names) * len(ROWS))
    result = Calibration(device)
    for rows in ROWS:
        for op in names:
            result.times += run.measured(op, rows, advance)
    result.failed = {what: why for what, why in run.checked.items() if why}
    rule = orders.shipped().get(device.type, orders.shipped()["other"])["rule"]
    result.orders = proposed(result.times, rule)
    chip = chip_at(device)
    if chip is not None and result.orders:
        content = {
            "when": datetime.date.today().isoformat(),
            "orders": result.orders,
            "features": FEATURES,
            "times": [one._asdict() for one in result.times],
        }
        result.path = cache.write(chip, orders.CALIBRATED, content)
    registry.forget()
    return result


def total(ops: Sequence[str] | None = None) -> int:
    """How often `calibrate` calls ``advance``."""
    return len(ROWS) * (len(FAMILIES) + 1 if ops is None else len(ops))


def proposed(times: Sequence[Time], rule: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """By op the entries of an order; of the sizes at which every candidate is known."""
    found: dict[str, list[dict[str, Any]]] = {}
    for op in dict.fromkeys(one.op for one in times):
        by_shape: dict[tuple[int, int], dict[str, float]] = {}
        beyond = None
        for rows in ROWS:
            here = [one for one in times if (one.op, one.rows) == (op, rows)]
            known = {one.backend: one.seconds for one in here if one.seconds is not None}
            if any(one.why == NO_TIME for one in here) or len(known) < 2:
                # A single candidate is no order, and larger sizes have no more of them.
                beyond = _as_batch(op, rows)
                break
            by_shape[_as_batch(op, rows), FEATURES] = known
        if by_shape:
            entries = ranking.entries(by_shape, rule, beyond)
            found[op] = [{k: v for k, v in one.items() if k != "features"} for one in entries]
    return found


def _as_batch(op: str, rows: int) -> int:
    """The rows of a batch with as many pairs: there is a proxy for every four rows."""
    return math.isqrt(rows * (rows // 4)) if op in PROXIES else rows


NO_TIME = "no time was left"


class _Run:
    """Measures on one device until its time is over."""

    def __init__(
        self, device: torch.device, clock: Callable[[], float], until: float, left: int
    ) -> None:
        self.device, self.clock, self.until, self.left = device, clock, until, left
        # By backend and op what its self-check found, anew: this is how it is repeated.
        self.checked: dict[str, str] = {}
        # By op and backend, the rows and seconds of the last measurement.
        self.last: dict[tuple[str, str], tuple[int, float]] = {}
        self.done_with: set[tuple[str, str]] = set()

    def measured(self, op: str, rows: int, advance: Callable[[str], None]) -> Iterator[Time]:
        """All candidates at one size, those first that were fastest at the last."""
        advance(f"{op} {rows}")
        names = self.candidates(op)
        names.sort(key=lambda name: self.last.get((op, name), (0, 0.0))[1])
        # What is left is shared out evenly; what others do not use goes to who is later.
        share = max(0.0, self.until - self.clock()) / self.left / max(1, len(names))
        self.left -= 1
        best = math.inf
        for name in names:
            one = self.one(op, rows, name, share, best)
            if one.seconds is not None:
                best = min(best, one.seconds)
                self.last[op, name] = rows, one.seconds
                if one.seconds > BEHIND * best:
                    self.done_with.add((op, name))
            yield one

    def candidates(self, op: str) -> list[str]:
        found = []
        judge = registry.backends()["torch"]
        spec = spec_of(op)
        for name, backend in registry.backends().items():
            if registry.why_not(backend, spec, self.device.type, torch.float32) is not None:
                continue
            if selfcheck.needed(backend):
                key = f"{name}, {op}"
                if key not in self.checked:
                    begin = self.clock()
                    call = (judge, spec, torch.float32, self.device)
                    verdict = selfcheck.verdict(backend, *call, run=True, anew=True)
                    self.checked[key] = "" if verdict is None else verdict.why
                    self.until += self.clock() - begin
                if self.checked[key]:
                    continue
            found.append(name)
        return found

    def one(self, op: str, rows: int, name: str, share: float, best: float) -> Time:
        about = (op, rows, name)
        at, before = self.last.get((op, name), (rows, 0.0))
        expected = before * (rows / at) ** 2
        left = self.until - self.clock()
        if (op, name) in self.done_with and best < math.inf:
            return Time(*about, max(expected, BEHIND * best), "far behind", True)
        if left <= 0 or 2 * expected > left:
            return Time(*about, None, NO_TIME)
        try:
            step = step_of(op, rows, name, self.device)
            compiling = self.seconds(step, 1)
            first = self.seconds(step, 1)
            self.until += max(0.0, compiling - first)
            if first > BEHIND * best:
                return Time(*about, first, "far behind", True)
            if first > share:
                return Time(*about, first)
            calls = max(1, min(MOST_CALLS, int(share / first)) // GROUPS)
            return Time(*about, statistics.median(self.seconds(step, calls) for _ in range(GROUPS)))
        except (torch.OutOfMemoryError, MemoryError):
            return Time(*about, None, "out of memory")
        except RuntimeError as error:
            return Time(*about, None, f"failed: {' '.join(str(error).split())[:200]}")

    def seconds(self, step: Callable[[], Any], calls: int) -> float:
        """Of a step among others, as in training: what the host does counts where it is more."""
        self.wait()
        begin = self.clock()
        for _ in range(calls):
            step()
        self.wait()
        return (self.clock() - begin) / calls

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def spec_of(op: str) -> PairSpec | None:
    """A loss at settings that people use; None for searches."""
    if op == orders.SEARCH:
        return None
    distance = "euclidean" if op.startswith(_EUCLIDEAN) else "cosine"
    return PairSpec(op, PARAMS[op], distance)


def step_of(op: str, rows: int, name: str, device: torch.device) -> Callable[[], Any]:
    """Forward and backward of a loss, or a search, on clustered rows, four a class."""
    g = torch.Generator(device="cpu").manual_seed(rows)
    labels = torch.arange(rows, device="cpu") // 4
    classes = -(-rows // 4)
    centres = torch.randn(classes, FEATURES, generator=g, device="cpu")
    noise = torch.randn(rows, FEATURES, generator=g, device="cpu")
    drawn = (0.6 * centres[labels] + noise) / math.sqrt(FEATURES)
    order = torch.randperm(rows, generator=g, device="cpu")
    x, labels = drawn[order].to(device), labels[order].to(device)
    spec = spec_of(op)
    if spec is None:
        backend = registry.backends()[name]
        return lambda: backend.nearest(x, None, NEIGHBOURS, "euclidean", False)
    leaves = [x.requires_grad_()]
    y = names = beta = None
    if op in PROXIES:
        y = centres.to(device).requires_grad_()
        names = torch.arange(classes, device=device)
        leaves.append(y)
    if op == "margin":
        beta = torch.full((rows,), 1.2, device=device)
    problem = PairProblem(x, labels, y, names, beta)
    if op == "proxy_anchor":
        assert y is not None and names is not None
        problem = PairProblem(y, names, x, labels)

    def step() -> tuple[Tensor, ...]:
        value, _ = pair_loss(spec, problem, name)
        return torch.autograd.grad(value, leaves)

    return step
