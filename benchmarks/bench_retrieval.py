"""`retrieval_metrics` at the size of Stanford Online Products, Recall@1000 included.

Against faiss's exact index, its building included, that looks up as many neighbours and measures
nothing. Peak memory of both, beyond the embeddings; what they have to return is Q k distances of 4
bytes and indices of 8.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.batch import make_batch
from benchmarks.measure import call_time, ratio, record, recorded_clock, round_robin
from benchmarks.peak import can_measure, step_growth
from benchmarks.peers import faiss_search
from dmlap_kernels.data.photo_sets import SOP_KS
from dmlap_kernels.evaluation import retrieval_metrics

FEATURES = 512
# The test split has 60,502 images of 11,316 products.
PRODUCTS = 11_316
SIZES = (20_000, 60_502)


def recall(indices: Tensor, labels: Tensor, k: int) -> float:
    """Recall@K of neighbours that hold the query itself."""
    others = indices[:, : k + 1] != torch.arange(len(labels))[:, None]
    hits = (labels[indices[:, : k + 1]] == labels[:, None]) & others
    alone = torch.bincount(labels)[labels] == 1
    return hits.any(1)[~alone].double().mean().item()


@pytest.mark.benchmark(timer=recorded_clock)
@pytest.mark.parametrize("rows", SIZES)
def test_retrieval(
    rows: int, request: pytest.FixtureRequest, seconds: float, benchmark: Any
) -> None:
    pytest.importorskip("faiss")
    if rows > SIZES[0]:
        request.getfixturevalue("long")
    if benchmark.disabled:
        rows = max(SOP_KS) + 100
    batch = make_batch(rows, FEATURES, classes=-(-rows * PRODUCTS // SIZES[1]))
    x, labels = batch.x.detach(), batch.labels
    found: dict[str, Any] = {}
    search = faiss_search(x, x, max(SOP_KS) + 1)
    steps = {
        "ours": lambda: found.update(ours=retrieval_metrics(x, labels, ks=SOP_KS)),
        "faiss": lambda: found.update(faiss=search()[1]),
    }
    measured = {
        name: step_growth(step) if can_measure() else {"seconds": call_time(step)}
        for name, step in steps.items()
    }
    indices = found.pop("faiss")
    for k in SOP_KS:
        theirs = recall(indices, labels, k)
        assert found["ours"][f"recall@{k}"] == pytest.approx(theirs, abs=1e-3), k
    del indices
    if benchmark.disabled:
        return
    first = {name: result["seconds"] for name, result in measured.items()}
    times = round_robin(steps, 4 * seconds, first)
    record(
        benchmark,
        "retrieval",
        times["ours"],
        op=f"recall@{max(SOP_KS)}",
        size=f"{rows} x {FEATURES}",
        rows=rows,
        features=FEATURES,
        times_faiss=ratio(times["ours"], times["faiss"]),
        mib={name: result.get("peak_mib") for name, result in measured.items()},
    )
