"""The hardest classes of very many: exact, and by an index of faiss, with the share it finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.measure import call_time, ratio, record, recorded_clock, round_robin
from dmlap_kernels.trainer.class_mining import hardest_classes

FEATURES = 128
POOL = 16
SIZES = [10_000, 100_000]


def clustered_classes(count: int) -> torch.Tensor:
    """(count, 1, 128) unit rows around one center for every twenty, as classes lie in families."""
    g = torch.Generator().manual_seed(0)
    centers = F.normalize(torch.randn(max(2, count // 20), FEATURES, generator=g))
    rows = centers[torch.randint(len(centers), (count,), generator=g)]
    return F.normalize(rows + 0.05 * torch.randn(count, FEATURES, generator=g))[:, None]


@pytest.mark.benchmark(timer=recorded_clock)
@pytest.mark.parametrize("classes", SIZES, ids=str)
def test_hardest_classes(
    classes: int, request: pytest.FixtureRequest, seconds: float, benchmark: Any
) -> None:
    pytest.importorskip("faiss")
    if classes > SIZES[0]:
        request.getfixturevalue("long")
    if benchmark.disabled:
        classes = 500
    rows = clustered_classes(classes)
    found: dict[str, torch.Tensor] = {}
    steps = {
        search: lambda search=search: found.update(
            {search: hardest_classes(rows, POOL, search=search)}
        )
        for search in ("exact", "faiss")
    }
    first = {name: call_time(step) for name, step in steps.items()}
    shared = (found["exact"][:, :, None] == found["faiss"][:, None, :]).any(2)
    share = shared.float().mean().item()
    assert share > 0.5
    if benchmark.disabled:
        return
    times = round_robin(steps, 4 * seconds, first)
    record(
        benchmark,
        "mining",
        times["faiss"],
        op=f"hardest {POOL} classes by faiss",
        size=f"{classes} x {FEATURES}",
        rows=classes,
        features=FEATURES,
        times_exact=ratio(times["faiss"], times["exact"]),
        share_found=share,
    )
