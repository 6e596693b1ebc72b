"""A batch against a queue of 100,000 rows: `CrossBatchMemory` beside pytorch-metric-learning's.

A step writes the batch into a queue that is full, sweeps, and takes the gradient at the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.batch import Absent, make_batch
from benchmarks.measure import assert_agree, ratio, record, recorded_clock, round_robin
from benchmarks.peers import cross_batch_memory
from dmlap_kernels.losses import ContrastiveLoss, MultiSimilarityLoss, SupConLoss
from dmlap_kernels.memory import CrossBatchMemory

FEATURES, QUEUES = 128, (10_000, 100_000)
BATCHES = (128, 512)
LOSSES: dict[str, tuple[Callable[[], Any], str]] = {
    "contrastive": (ContrastiveLoss, "ContrastiveLoss"),
    "multi-similarity": (MultiSimilarityLoss, "MultiSimilarityLoss"),
    "sup-con": (SupConLoss, "SupConLoss"),
}


def steps_of(op: str, batch: int, queue: int, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    bank, rows = make_batch(queue, FEATURES), make_batch(batch, FEATURES)
    make, name = LOSSES[op]
    ours = CrossBatchMemory(make(), FEATURES, queue, dtype=dtype)
    ours(bank.x.detach(), bank.labels)
    # Labels of the queue, so that there are positives.
    labels = bank.labels[torch.arange(batch) * (queue // batch)]

    def step() -> tuple[torch.Tensor, ...]:
        loss = ours(rows.x, labels)
        return loss.detach(), *torch.autograd.grad(loss, rows.x)

    steps: dict[str, Callable[[], Any]] = {"ours": step}
    try:
        theirs = cross_batch_memory(name, bank.x.detach(), bank.labels, batch)
    except Absent:
        return steps

    def peer() -> tuple[torch.Tensor, ...]:
        loss = theirs(rows.x, labels)
        return loss.detach(), *torch.autograd.grad(loss, rows.x)

    return steps | {"pytorch-metric-learning": peer}


@pytest.mark.benchmark(timer=recorded_clock)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("op", LOSSES)
def test_memory(
    op: str, queue: int, batch: int, dtype: torch.dtype, seconds: float, benchmark: Any
) -> None:
    steps = steps_of(op, batch, queue, dtype)
    found = {name: step() for name, step in steps.items()}
    for mine, theirs in zip(found["ours"], [*found.values()][-1], strict=True):
        tolerance = 1e-3 if dtype == torch.float32 else 2e-2
        assert_agree("memory", mine, theirs, tolerance)
    if benchmark.disabled:
        return
    times = round_robin(steps, seconds)
    info: dict[str, Any] = {
        "op": op,
        "size": f"{batch} x {queue} x {FEATURES}",
        "dtype": str(dtype),
    }
    if "pytorch-metric-learning" in times:
        info["times_peer"] = ratio(times["ours"], times["pytorch-metric-learning"])
    record(benchmark, "memory", times["ours"], **info)
