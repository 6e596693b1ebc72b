"""What a call costs where there is little to compute, beside an empty autograd function.

Loops of calls take turns; every measurement is the mean of a loop.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dmlap_kernels
from benchmarks.batch import make_batch
from benchmarks.candidates import LOSSES
from benchmarks.measure import call_time, record, recorded_clock

OPS = ("triplet-hard", "contrastive-2%", "sup-con", "proxy-anchor")
SIZES, FEATURES = (32, 128, 512), 128
LOOPS = 15


class Empty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.empty(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.empty_like(ctx.saved_tensors[0])


def calls(op: str, rows: int) -> dict[str, Callable[[], Any]]:
    row = LOSSES[op]
    batch = make_batch(rows, FEATURES, proxies_per_class=row.proxies)
    options = row.settings(batch.x) | row.own
    function = getattr(dmlap_kernels, row.function)

    def loss() -> Tensor:
        return function(*batch.tensors, **options)

    return {
        "forward": loss,
        "both": lambda: torch.autograd.grad(loss(), batch.leaves),
        "empty forward": lambda: Empty.apply(batch.x),
        "empty both": lambda: torch.autograd.grad(Empty.apply(batch.x), batch.x),
    }


def loops(steps: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Seconds a call; about ``seconds`` are spent on each."""
    repeats = {}
    for name, step in steps.items():
        step()
        taken = min(call_time(step) for _ in range(3))
        repeats[name] = max(1, int(seconds / LOOPS / taken))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(LOOPS):
        for name, step in steps.items():
            calls = [step] * repeats[name]
            times[name].append(
                call_time(lambda calls=calls: [call() for call in calls]) / len(calls)
            )
    return times


@pytest.mark.benchmark(timer=recorded_clock)
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("op", OPS)
def test_overhead(op: str, rows: int, seconds: float, benchmark: Any) -> None:
    steps = calls(op, rows)
    if benchmark.disabled:
        for step in steps.values():
            step()
        return
    times = loops(steps, seconds / 2)
    record(
        benchmark,
        "overhead",
        times["both"],
        op=op,
        size=f"{rows} x {FEATURES}",
        rows=rows,
        microseconds={name: 1e6 * statistics.median(t) for name, t in times.items()},
    )
