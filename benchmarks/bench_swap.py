"""A training step with pytorch-metric-learning's losses before and after they are swapped for ours.

The whole step: a small encoder forward, the miner, the loss, backward and the optimizer. Only the
loss and the miner differ; steps take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.batch import make_batch
from benchmarks.measure import ratio, record, recorded_clock, round_robin

INPUTS, FEATURES = 256, 128
# Of the loss: the miner if any, and whether theirs fits into memory at 4,096 rows, where some list
# every triplet or compare every positive with every negative pair.
OPS: dict[str, tuple[str, str | None, bool]] = {
    "triplet, hard": ("TripletMarginLoss", "BatchHardMiner", True),
    "triplet, all": ("TripletMarginLoss", None, False),
    "contrastive": ("ContrastiveLoss", None, True),
    "multi-similarity, mined": ("MultiSimilarityLoss", "MultiSimilarityMiner", True),
    "margin, distance-weighted": ("MarginLoss", "DistanceWeightedMiner", True),
    "NT-Xent": ("NTXentLoss", None, False),
    "SupCon": ("SupConLoss", None, True),
    "proxy-anchor": ("ProxyAnchorLoss", None, True),
}


def training_step(library: Any, op: str, rows: int) -> Callable[[], Any]:
    name, miner, _ = OPS[op]
    batch = make_batch(rows, INPUTS)
    inputs = batch.x.detach()
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(INPUTS, INPUTS), nn.ReLU(), nn.Linear(INPUTS, FEATURES))
    sizes = (batch.classes, FEATURES) if "Proxy" in name else ()
    loss = getattr(library.losses, name)(*sizes)
    mine = getattr(library.miners, miner)() if miner else None
    parameters = [*encoder.parameters(), *loss.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)

    def step() -> None:
        embeddings = encoder(inputs)
        indices = mine(embeddings, batch.labels) if mine else None
        optimizer.zero_grad()
        loss(embeddings, batch.labels, indices).backward()
        optimizer.step()

    return step


@pytest.mark.benchmark(timer=recorded_clock)
@pytest.mark.parametrize("rows", [128, 4096])
@pytest.mark.parametrize("op", OPS)
def test_swap(op: str, rows: int, seconds: float, benchmark: Any) -> None:
    theirs = pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import losses, miners  # noqa: F401

    from dmlap_kernels.compat import pytorch_metric_learning as ours

    steps = {"ours": training_step(ours, op, rows)}
    if rows <= 128 or OPS[op][2]:
        steps["theirs"] = training_step(theirs, op, rows)
    for step in steps.values():
        step()
    if benchmark.disabled:
        return
    times = round_robin(steps, seconds)
    info = {} if "theirs" not in times else {"times_theirs": ratio(times["ours"], times["theirs"])}
    record(benchmark, "swap", times["ours"], op=op, size=f"{rows} x {FEATURES}", **info)
