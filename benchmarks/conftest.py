"""Options of the benchmarks, and the measurements that their tests share."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from torch import Tensor

from benchmarks import peak
from benchmarks.candidates import CANDIDATES, OPS, Absent, Step, make
from benchmarks.measure import round_robin

PEAK_ROWS, PEAK_FEATURES = 4096, 128


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dmlap")
    group.addoption(
        "--seconds",
        type=float,
        default=0.5,
        help="seconds spent on each candidate of each comparison (default: 0.5)",
    )
    group.addoption(
        "--no-peak", action="store_true", help="do not measure peak memory (saves half a minute)"
    )


class Comparisons:
    """Measures each (op, rows, features) once, all candidates in turn."""

    def __init__(self, seconds: float, with_peak: bool) -> None:
        self.seconds = seconds
        self.with_peak = with_peak
        self.times: dict[tuple[str, int, int], dict[str, list[float]]] = {}
        self.absent: dict[tuple[str, int, int, str], str] = {}
        self._peaks: dict[str, float] | None = None

    def measure(self, op: str, rows: int, features: int) -> dict[str, list[float]]:
        key = (op, rows, features)
        if key not in self.times:
            steps = self._steps(op, rows, features)
            check(steps)
            self.times[key] = round_robin(steps, self.seconds)
        return self.times[key]

    def check(self, op: str, rows: int, features: int) -> None:
        check(self._steps(op, rows, features))

    def why_absent(self, op: str, rows: int, features: int, candidate: str) -> str:
        return self.absent[op, rows, features, candidate]

    def peak(self, op: str, candidate: str, rows: int, features: int) -> float | None:
        """MiB; only for the one size at which memory is measured, and never for the yardstick."""
        if not self.with_peak or (rows, features) != (PEAK_ROWS, PEAK_FEATURES):
            return None
        if self._peaks is None:
            pairs = [(op, candidate) for op in OPS for candidate in ("ours", "eager", "library")]
            runnable = [(op, name) for op, name in pairs if not self._cannot_run(op, name)]
            self._peaks = peak.measure(rows, features, runnable)
        return self._peaks.get(f"{op} {candidate}")

    def _cannot_run(self, op: str, candidate: str) -> bool:
        try:
            make(op, candidate, 16, 4)
        except Absent:
            return True
        return False

    def _steps(self, op: str, rows: int, features: int) -> dict[str, Step]:
        steps = {}
        for candidate in CANDIDATES:
            try:
                self._refuse_slow(op, rows, features, candidate)
                steps[candidate] = make(op, candidate, rows, features)
            except Absent as reason:
                self.absent[op, rows, features, candidate] = str(reason)
        return steps

    def _refuse_slow(self, op: str, rows: int, features: int, candidate: str) -> None:
        """Libraries are absent where a quarter of the batch foretells a call of eight budgets."""
        smaller = self.times.get((op, rows // 4, features), {})
        if candidate == "library" and candidate in smaller:
            expected = 16 * statistics.median(smaller[candidate])
            if expected > 8 * self.seconds:
                raise Absent(f"a call would take about {expected:.0f} s (see --seconds)")


def check(steps: dict[str, Step]) -> None:
    """All candidates must agree before any is timed."""
    truth = steps["eager"]()
    for name, step in steps.items():
        if name in ("eager", "G"):
            continue
        for mine, theirs in zip(step(), truth, strict=True):
            assert_agree(name, mine.detach(), theirs.detach())


def assert_agree(name: str, mine: Tensor, theirs: Tensor) -> None:
    error = (mine - theirs).abs().max().item()
    scale = theirs.abs().max().item()
    assert error <= 2e-3 * scale, f"{name} is {error / scale:.2g} off what eager PyTorch computes"


@pytest.fixture(scope="session")
def comparisons(request: pytest.FixtureRequest) -> Comparisons:
    config = request.config
    return Comparisons(config.getoption("--seconds"), not config.getoption("--no-peak"))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Keep what a reader compares: no host name, no single rounds."""
    for private in ("node", "release"):
        output_json["machine_info"].pop(private, None)
    output_json.pop("commit_info", None)
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)
        entry.pop("options", None)
