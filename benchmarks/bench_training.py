"""A training step with DMLAP against one with plain batches: same loss, same batch size.

Steps take turns over whole projections, so that drawing representatives, scoring classes and the
proximal term all count. The images are noise: what a step costs does not depend on them.
"""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch

from benchmarks.measure import call_time, record, recorded_clock
from dmlap_kernels.data import Dataset, Distortion, Split
from dmlap_kernels.trainer import TrainConfig, Trainer

CLASSES, IMAGES = 400, 10
STEPS = 200  # two projections at the default length
WARM_UP = 5


def noise_images() -> Dataset:
    """As large as glyphs, in the same form."""
    g = torch.Generator().manual_seed(0)

    def split(classes: int) -> Split:
        labels = torch.arange(classes).repeat_interleave(IMAGES)
        images = torch.randint(256, (len(labels), 1, 28, 28), generator=g, dtype=torch.uint8)
        return Split(images, labels, tuple(str(c) for c in range(classes)))

    return Dataset("noise", split(CLASSES), split(4), augment=Distortion())


@pytest.mark.benchmark(timer=recorded_clock)
@pytest.mark.parametrize("loss", ["contrastive"])
def test_training_step(loss: str, benchmark: Any) -> None:
    data = noise_images()
    trainers = {
        method: Trainer(TrainConfig(loss=loss, method=method, steps=STEPS + WARM_UP), data)
        for method in ("plain", "dmlap")
    }
    for trainer in trainers.values():
        trainer.encoder.train()
        for _ in range(WARM_UP):
            trainer.train_step()
    if benchmark.disabled:
        return
    times: dict[str, list[float]] = {method: [] for method in trainers}
    for _ in range(STEPS):
        for method, trainer in trainers.items():
            times[method].append(call_time(trainer.train_step))
    record(
        benchmark,
        "training",
        times["dmlap"],
        op=f"{loss} step",
        size="dmlap",
        times_plain=sum(times["dmlap"]) / sum(times["plain"]),
        times_plain_median=statistics.median(times["dmlap"]) / statistics.median(times["plain"]),
        plain_ms=1e3 * statistics.mean(times["plain"]),
    )
