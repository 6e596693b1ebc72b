"""Fair timing on a noisy machine: candidates take turns, and every round is kept.

`round_robin` measures all candidates of a comparison in one process, in turn, so that a slow minute
of the machine slows all of them. A turn is one call, or as many as last `SHORTEST_TURN`: a single
call of a tenth of a millisecond would be measured in the caches that another candidate left.
pytest-benchmark times one function at a time; its report still holds real rounds, because its clock
is replaced by `recorded_clock`, which plays the measured durations back.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

MAX_ROUNDS = 60
SHORTEST_TURN = 2e-3  # seconds
# A call that takes this many budgets is not repeated.
LONG_CALL = 4
WARM_UP_ROWS = 64

# A line for each measurement of ours, shown at the end of the session.
summary: list[str] = []

Steps = dict[str, Callable[[], Any]]


@runtime_checkable
class Timed(Protocol):
    """A function that takes its own time."""

    def __call__(self) -> Any: ...

    def call_time(self, calls: int) -> float: ...


def call_time(function: Callable[[], Any], calls: int = 1) -> float:
    """Seconds a call; a function of another process has a clock of its own."""
    if isinstance(function, Timed):
        return function.call_time(calls)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def round_robin(
    steps: Steps, seconds: float, first: dict[str, float] | None = None
) -> dict[str, list[float]]:
    """Durations of each candidate; about ``seconds`` are spent on each, at least one round.

    ``first``: what the first call of each took, where there has been one; where that was long
    (`LONG_CALL`) it is the measurement.
    """
    first = first or {}
    times: dict[str, list[float]] = {}
    for name, step in steps.items():
        long = first.get(name, 0.0) > LONG_CALL * seconds
        times[name] = [first[name] if long else call_time(step)]
    calls = {name: max(1, int(SHORTEST_TURN / taken)) for name, (taken,) in times.items()}
    rounds = {
        name: max(1, min(MAX_ROUNDS, int(seconds / taken / calls[name])))
        for name, (taken,) in times.items()
    }
    longest = max(rounds.values(), default=0)
    for turn in range(1, longest):
        for name, count in rounds.items():
            # A slow candidate's few rounds are spread over the whole measurement.
            if turn * count // longest != (turn - 1) * count // longest:
                times[name].append(call_time(steps[name], calls[name]))
    return times


def ratio(times: list[float], yardstick: list[float]) -> float:
    return statistics.median(times) / statistics.median(yardstick)


def assert_agree(name: str, mine: Tensor, theirs: Tensor, tolerance: float) -> None:
    error, scale = (mine - theirs).norm().item(), theirs.norm().item()
    assert error <= tolerance * scale, f"{name} is {error / scale:.2g} off what it is held against"


def record(benchmark: Any, bench: str, times: list[float], **info: Any) -> None:
    """Hand measured rounds to pytest-benchmark; ``info`` has an op, a size, and what else
    `benchmarks.findings` reads."""
    benchmark.group = f"{bench}: {info['op']}, {info['size']}"
    benchmark.extra_info.update(bench=bench, **info)
    if info.get("candidate", "ours") == "ours":
        ratios = [f"{key} {value:.3g}" for key, value in info.items() if key.startswith("times_")]
        milliseconds = f"{1e3 * statistics.median(times):.3g} ms"
        summary.append("  ".join([benchmark.group, milliseconds, *ratios]))
    play(times)
    benchmark.pedantic(lambda: None, rounds=len(times))


_tape: Iterator[float] = iter(())


def play(durations: list[float]) -> None:
    """Load the clock: each start-stop pair of readings is one duration apart."""
    global _tape
    _tape = _readings(durations)


def _readings(durations: list[float]) -> Iterator[float]:
    now = 0.0
    for duration in durations:
        yield now
        now += duration
        yield now


def recorded_clock() -> float:
    """The timer handed to pytest-benchmark."""
    return next(_tape)
