"""Measurements of the ops, shared by the tests of their candidates."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from benchmarks import peak
from benchmarks.batch import Absent
from benchmarks.candidates import CANDIDATES, LOSSES, OPS, Step, make
from benchmarks.measure import WARM_UP_ROWS, assert_agree, call_time, round_robin
from benchmarks.revision import Revision

PEAK_ROWS, PEAK_FEATURES = 4096, 128
# Libraries stay out of comparisons with more features than these, unless all are asked for.
LIBRARY_FEATURES = 128
LONGEST_CALL = 40.0  # seconds
# What an earlier revision is compared with.
BESIDE_A_REVISION = ("ours", "eager", "G")
# From this many rows on, calls with fewer rows foretell what a call takes.
PROBED_ROWS = 2048


class Comparisons:
    """Measures each (op, rows, features) once, all candidates in turn.

    With another revision of the package, "revision" is ours at that revision.
    """

    def __init__(
        self,
        seconds: float,
        every_candidate: bool,
        with_peak: bool,
        revision: Revision | None = None,
    ) -> None:
        self.seconds = seconds
        self.revision = revision
        self.every_candidate = every_candidate
        self.with_peak = with_peak
        self._times: dict[tuple[str, int, int], dict[str, list[float]] | Exception] = {}
        self._absent: dict[tuple[str, int, int], dict[str, str]] = {}
        self._peaks: dict[str, dict[str, Any]] | None = None

    def measure(self, op: str, rows: int, features: int) -> dict[str, list[float]]:
        """Durations by candidate; what went wrong is raised again by each later call."""
        key = (op, rows, features)
        if key not in self._times:
            try:
                steps = self._steps(op, rows, features)
                self._times[key] = round_robin(steps, self.seconds, check(op, steps))
            except Exception as error:
                self._times[key] = error
        found = self._times[key]
        if isinstance(found, Exception):
            raise found
        return found

    def check(self, op: str, rows: int, features: int, candidate: str) -> None:
        """Without measuring: whether a candidate agrees with eager PyTorch."""
        check(op, self._steps(op, rows, features, ("eager", candidate)))

    def absent(self, op: str, rows: int, features: int) -> dict[str, str]:
        """Why candidates of a comparison do not take part."""
        return self._absent[op, rows, features]

    def peak(self, op: str, candidate: str, rows: int, features: int) -> float | None:
        """MiB; only for the one size at which memory is measured, and never for the yardstick."""
        if not self.with_peak or (rows, features) != (PEAK_ROWS, PEAK_FEATURES):
            return None
        if self._peaks is None:
            pairs = [(op, candidate) for op in OPS for candidate in ("ours", "eager", "library")]
            runnable = [pair for pair in pairs if self._can_run(*pair)]
            self._peaks = peak.measure("growth", runnable, [rows, features])
        return self._peaks.get(f"{op} {candidate}", {}).get("peak_mib")

    def _can_run(self, op: str, candidate: str) -> bool:
        try:
            make(op, candidate, PEAK_ROWS, PEAK_FEATURES)
        except Absent:
            return False
        return True

    def _steps(
        self, op: str, rows: int, features: int, candidates: tuple[str, ...] = CANDIDATES
    ) -> dict[str, Step]:
        steps = {}
        absent = self._absent[op, rows, features] = {}
        for candidate in candidates:
            try:
                self._refuse_unwanted(op, features, candidate)
                if candidate == "revision":
                    assert self.revision is not None
                    steps[candidate] = self.revision.make(op, rows, features)
                    continue
                steps[candidate] = make(op, candidate, rows, features)
                make(op, candidate, WARM_UP_ROWS, features)()
                if candidate in ("eager", "library"):
                    _refuse_slow(op, candidate, rows, features)
            except Absent as reason:
                steps.pop(candidate, None)
                absent[candidate] = str(reason)
        return steps

    def _refuse_unwanted(self, op: str, features: int, candidate: str) -> None:
        if candidate == "revision" and self.revision is None:
            raise Absent("there is none to compare with (see --compare-to)")
        if self.every_candidate:
            return
        if self.revision is not None and candidate not in (*BESIDE_A_REVISION, "revision"):
            raise Absent("left out beside a revision (see --all-candidates)")
        if candidate == "compile" and not (op in LOSSES and LOSSES[op].compiled):
            raise Absent("takes long to compile (see --all-candidates)")
        if candidate == "library" and features > LIBRARY_FEATURES:
            raise Absent(f"left out for D > {LIBRARY_FEATURES} (see --all-candidates)")


def _refuse_slow(op: str, candidate: str, rows: int, features: int) -> None:
    if rows < PROBED_ROWS:
        return
    halvings, growth = 3, 4
    if op in LOSSES and candidate == "library":
        halvings, growth = LOSSES[op].foretold
    probe = make(op, candidate, rows >> halvings, features)
    probe()
    expected = call_time(probe) * growth**halvings
    if expected > LONGEST_CALL:
        raise Absent(f"a call would take about {expected:.0f} s")


def check(op: str, steps: dict[str, Step]) -> dict[str, float]:
    """All candidates must agree before any is timed: with eager PyTorch, or where that is left out
    with each other. Returns how long their calls took, but for what may have been compiled in
    them."""
    row = LOSSES.get(op)
    tolerance = row.tolerance if row else 2e-3
    first: dict[str, float] = {}
    truth: tuple[Tensor, ...] | None = None
    for name in sorted(steps, key=lambda name: name != "eager"):
        start = time.perf_counter()
        found = steps[name]()
        first[name] = time.perf_counter() - start
        if name == "G":
            continue
        if truth is None:
            truth = found
        else:
            compared = 1 if row and row.drawn else None
            for mine, theirs in zip(found[:compared], truth[:compared], strict=True):
                assert_agree(f"{op}, {name},", mine.detach(), theirs.detach(), tolerance)
    first.pop("compile", None)
    return first
