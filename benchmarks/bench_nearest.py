"""`nearest` for a thousand neighbours against faiss's exact index, building it included."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dmlap_kernels
from benchmarks.batch import make_batch
from benchmarks.measure import assert_agree, call_time, ratio, record, recorded_clock, round_robin
from benchmarks.peers import faiss_nearest

NEIGHBOURS = 1000
SIZES = [(10_000, 128), (60_000, 512)]


@pytest.mark.benchmark(timer=recorded_clock)
@pytest.mark.parametrize(("rows", "features"), SIZES, ids=lambda value: str(value))
def test_nearest(
    rows: int, features: int, request: pytest.FixtureRequest, seconds: float, benchmark: Any
) -> None:
    pytest.importorskip("faiss")
    if rows > SIZES[0][0]:
        request.getfixturevalue("long")
    if benchmark.disabled:
        rows = NEIGHBOURS + 100
    references = make_batch(rows, features).x.detach()
    queries = references + 0.5 * torch.randn(
        rows, features, generator=torch.Generator().manual_seed(0)
    )
    found: dict[str, torch.Tensor] = {}
    theirs = faiss_nearest(queries, references, NEIGHBOURS)
    steps = {
        "ours": lambda: found.update(
            ours=dmlap_kernels.nearest(queries, references, NEIGHBOURS).distances
        ),
        "faiss": lambda: found.update(faiss=theirs()),
    }
    first = {name: call_time(step) for name, step in steps.items()}
    assert_agree("nearest", found["ours"], found["faiss"].clamp_min(0).sqrt(), 1e-3)
    if benchmark.disabled:
        return
    times = round_robin(steps, 4 * seconds, first)
    record(
        benchmark,
        "nearest",
        times["ours"],
        op=f"nearest k = {NEIGHBOURS}",
        size=f"{rows} x {rows} x {features}",
        rows=rows,
        features=features,
        times_faiss=ratio(times["ours"], times["faiss"]),
    )
