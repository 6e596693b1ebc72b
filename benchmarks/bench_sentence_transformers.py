"""A training step of sentence-transformers before and after the swap of the import.

The encoder is one linear layer, so that the step is the loss and little else: with a real one the
share of the loss is smaller, and the ratio nearer to 1. Both take turns in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.measure import assert_agree, ratio, record, recorded_clock, round_robin

SIZES, FEATURES = (128, 4096), 384
EVERY = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
# Class, options, columns of texts, whether labels are classes.
LOSSES: dict[str, tuple[str, dict[str, Any], int, bool]] = {
    "mnrl": ("MultipleNegativesRankingLoss", {}, 2, False),
    "mnrl-gte": ("MultipleNegativesRankingLoss", {"directions": EVERY}, 2, False),
    "mnrl-negatives": ("MultipleNegativesRankingLoss", {}, 3, False),
    "batch-hard": ("BatchHardTripletLoss", {}, 1, True),
    "batch-semihard": ("BatchSemiHardTripletLoss", {}, 1, True),
    "batch-all": ("BatchAllTripletLoss", {}, 1, True),
    "gist": ("CachedGISTEmbedLoss", {}, 2, False),
}
# Rows from which on the original needs more than 12 GiB, or minutes.
TOO_MUCH = {"batch-all": 4096, "gist": 4096}


class Encoder(torch.nn.Linear):
    """Features as sentences; the sentence embedding is a linear map of them."""

    def forward(self, features: Any) -> Any:
        return {"sentence_embedding": super().forward(features["x"])}


def training_step(module: Any, op: str, rows: int) -> Callable[[], Tensor]:
    """A step of AdamW on one batch; returns the loss."""
    name, options, columns, classes = LOSSES[op]
    torch.manual_seed(0)
    base = torch.randn(rows, FEATURES)
    batch = [{"x": base + 3 * torch.randn(rows, FEATURES)} for _ in range(columns)]
    labels = torch.arange(rows) // 4 if classes else None
    encoder = Encoder(FEATURES, FEATURES)
    guides = [one["x"] @ torch.randn(FEATURES, FEATURES) for one in batch]
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-4)
    if op == "gist":
        loss = bare_gist(getattr(module, name))
    else:
        loss = getattr(module, name)(encoder, **options)

    def step() -> Tensor:
        optimizer.zero_grad()
        if op == "gist":
            found = [encoder(one)["sentence_embedding"] for one in batch]
            value = loss.calculate_loss([[one] for one in found], [[one] for one in guides])
        else:
            value = loss(batch, labels)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def bare_gist(kind: Any) -> Any:
    """Without models, which would have to have tokenizers: what `calculate_loss` reads."""
    loss = kind.__new__(kind)
    torch.nn.Module.__init__(loss)
    loss.temperature, loss.margin_strategy, loss.margin = 0.01, "absolute", 0.0
    loss.contrast_anchors = loss.contrast_positives = True
    loss.gather_across_devices = loss.show_progress_bar = False
    loss.mini_batch_size = 32
    loss.similarity_fct = torch.nn.CosineSimilarity(dim=-1)
    loss.cross_entropy_loss = torch.nn.CrossEntropyLoss()
    return loss


@pytest.mark.benchmark(timer=recorded_clock)
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("op", LOSSES)
def test_step(op: str, rows: int, seconds: float, benchmark: Any) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is absent")
    from sentence_transformers.sentence_transformer import losses as originals

    from dmlap_kernels.compat import sentence_transformers as fused

    steps = {"after": training_step(fused, op, rows)}
    if rows < TOO_MUCH.get(op, rows + 1):
        steps["before"] = training_step(originals, op, rows)
    first = [step() for step in steps.values()]
    if len(first) == 2:
        assert_agree(op, first[0], first[1], 1e-4)
    if benchmark.disabled:
        return
    times = round_robin(steps, seconds)
    before = {"times_before": ratio(times["after"], times["before"])} if "before" in times else {}
    record(
        benchmark,
        "sentence-transformers",
        times["after"],
        op=f"{op} step",
        size=f"{rows} x {FEATURES}",
        rows=rows,
        **before,
    )
