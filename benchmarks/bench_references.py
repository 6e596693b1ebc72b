"""A few anchors against 100,000 references, beside the same loss within a batch.

Time per pair, relative to the time per visited pair of the self case: of B x B pairs the sweep
visits those on and above the diagonal. The gradient is taken at the anchors, as with a memory bank.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dmlap_kernels
from benchmarks.batch import SAMPLES_PER_CLASS, make_batch
from benchmarks.candidates import LOSSES, Step, loss_step
from benchmarks.measure import ratio, record, recorded_clock, round_robin

REFERENCES, FEATURES, SELF_ROWS = 100_000, 128, 4096
ANCHORS = (32, 128, 512)
OPS = ("triplet-hard", "triplet-all", "contrastive-2%", "multi-similarity", "sup-con")


def with_references(op: str, anchors: int) -> Step:
    bank = make_batch(REFERENCES, FEATURES)
    row, references = LOSSES[op], bank.x.detach()
    options = row.settings(references) | row.own
    loss = getattr(dmlap_kernels, row.function)
    # Anchors are other samples of some of the classes.
    drawn = torch.arange(anchors) * (REFERENCES // anchors // SAMPLES_PER_CLASS)
    x = make_batch(anchors, FEATURES).x.detach().add_(references[drawn]).requires_grad_()
    labels = bank.labels[drawn]

    def step() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(loss(x, labels, references, bank.labels, **options), x)

    return step


@pytest.mark.benchmark(timer=recorded_clock)
@pytest.mark.parametrize("anchors", ANCHORS)
@pytest.mark.parametrize("op", OPS)
def test_references(op: str, anchors: int, seconds: float, benchmark: Any) -> None:
    steps = {
        "references": with_references(op, anchors),
        "self": loss_step(LOSSES[op], "ours", make_batch(SELF_ROWS, FEATURES)),
    }
    if benchmark.disabled:
        for step in steps.values():
            assert all(gradient.isfinite().all() for gradient in step())
        return
    times = round_robin(steps, seconds)
    pairs = anchors * REFERENCES
    visited = SELF_ROWS * (SELF_ROWS + 1) / 2
    record(
        benchmark,
        "references",
        times["references"],
        op=op,
        size=f"{anchors} x {REFERENCES} x {FEATURES}",
        anchors=anchors,
        times_self=ratio(times["references"], times["self"]) * visited / pairs,
    )
