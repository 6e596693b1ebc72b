"""Fair timing on a noisy machine: candidates take turns, and every round is kept.

`round_robin` measures all candidates of a comparison in one process, one call each in turn, so that
a slow minute of the machine slows all of them. pytest-benchmark times one function at a time; its
report still holds real rounds, because its clock is replaced by `recorded_clock`, which plays the
measured durations back.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

MAX_ROUNDS = 40


def call_time(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def round_robin(steps: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Durations of each warm candidate; about ``seconds`` are spent on each, at least one round."""
    times = {name: [call_time(step)] for name, step in steps.items()}
    rounds = {
        name: max(1, min(MAX_ROUNDS, int(seconds / first))) for name, (first,) in times.items()
    }
    longest = max(rounds.values(), default=0)
    for turn in range(1, longest):
        for name, count in rounds.items():
            # A slow candidate's few rounds are spread over the whole measurement.
            if turn * count // longest != (turn - 1) * count // longest:
                times[name].append(call_time(steps[name]))
    return times


def ratio(times: list[float], yardstick: list[float]) -> float:
    return statistics.median(times) / statistics.median(yardstick)


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
