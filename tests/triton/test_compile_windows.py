"""As `test_compile`, for windows of positives, SoftTriple and searches, in their longest forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from dmlap_kernels.backends.device.packing import Sides, pack_rows
from dmlap_kernels.backends.device.sweeps import Triplets
from dmlap_kernels.backends.triton import search_steps
from dmlap_kernels.backends.triton.triton_sweeps import TritonSweeps
from tests.triton.aot import assert_fits, launches

SWEEPS = TritonSweeps()
ONES = torch.ones(200)
ROWS, LABELS = torch.zeros(4096, 128), torch.arange(4096)


def packed(
    distance: str = "euclidean",
    refs: bool = False,
    precision: str = "highest",
    rows: int = 200,
    named: bool = False,
) -> Sides:
    """With ``named`` each anchor has a column that is itself."""
    x, labels = torch.randn(rows, 128), torch.arange(rows) // 4
    columns = rows + 100
    y = (torch.randn(columns, 128), torch.arange(columns) // 4) if refs else (None, None)
    sides = pack_rows(x, y[0], (labels, y[1]), distance, False, precision)
    return sides._replace(itself=torch.arange(rows, dtype=torch.int32) if named else None)


def triplets(mining: str) -> Triplets:
    return Triplets(mining, 0.2, True, True, 0.5, 1.4, 7)


CALLS: dict[str, Callable[[], Any]] = {
    "semihard": lambda: SWEEPS.triplet_sums(packed(), triplets("semihard")),
    "draw": lambda: SWEEPS.triplet_sums(packed(refs=True), triplets("distance_weighted")),
    "all": lambda: SWEEPS.triplet_sums(packed(refs=True), triplets("all")),
    "gradient-semihard": lambda: SWEEPS.triplet_gradient(packed(), triplets("semihard"), ONES),
    "gradient-all": lambda: SWEEPS.triplet_gradient(packed(refs=True), triplets("all"), ONES),
    "gradient-semihard-self_index": lambda: SWEEPS.triplet_gradient(
        packed(refs=True, named=True), triplets("semihard"), ONES
    ),
    "gradient-all-self_index": lambda: SWEEPS.triplet_gradient(
        packed(refs=True, named=True), triplets("all"), ONES
    ),
    "gradient-angular": lambda: SWEEPS.angular_gradient(packed("cosine"), 0.8, ONES),
    "soft_triple": lambda: SWEEPS.soft_triple(packed("cosine", True), 20.0, 0.1, 0.01),
    "gradient-soft_triple": lambda: SWEEPS.soft_triple_gradient(
        packed("cosine", True), 20.0, 0.1, 0.01, torch.ones(2, 200), ONES
    ),
    "nearest-16": lambda: SWEEPS.nearest(packed(), 1),
    "nearest-128": lambda: SWEEPS.nearest(packed(), 100),
    "nearest-blocks": lambda: SWEEPS.nearest(packed(), 150),
    "nearest-panel": lambda: search_steps.nearest(ROWS, None, 10, "euclidean", True),
    "nearest-panel-128": lambda: search_steps.nearest(ROWS[:200], ROWS, 128, "cosine", False),
    "hard_classes-panel": lambda: search_steps.hard_classes(
        ROWS[:200], LABELS[:200], 10, 0.5, "euclidean", False
    ),
    "hard_classes-panel-4096": lambda: search_steps.hard_classes(
        ROWS, LABELS, 10, 0.5, "euclidean", True
    ),
    "class_scores": lambda: SWEEPS.class_scores(
        packed(refs=True), ONES, torch.arange(4, 201, 4), torch.arange(4, 301, 4)
    ),
}


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", CALLS)
def test_fits(name: str, capability: int, monkeypatch: Any, tmp_path: Path) -> None:
    found = launches(monkeypatch, CALLS[name], capability)
    assert found
    for launch in found:
        assert_fits(launch, tmp_path)


def test_a_lower_precision_fits(monkeypatch: Any, tmp_path: Path) -> None:
    sides = packed(precision="high")
    call = lambda: SWEEPS.triplet_gradient(sides, triplets("all"), ONES)  # noqa: E731
    for launch in launches(monkeypatch, call, 90):
        assert_fits(launch, tmp_path)


@pytest.mark.parametrize("mining", ["semihard", "distance_weighted", "all"])
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_batches_of_every_size_share_kernels(mining: str, refs: bool, monkeypatch: Any) -> None:
    """Of the launches of the smaller batches none compiles anything."""

    def call(*sizes: int) -> None:
        for rows in sizes:
            sides = packed(refs=refs, rows=rows)
            SWEEPS.triplet_sums(sides, triplets(mining))
            # As a slice, which nothing aligns.
            SWEEPS.triplet_gradient(sides, triplets(mining), torch.ones(rows + 1)[1:])

    alone = launches(monkeypatch, lambda: call(200), 90)
    together = launches(monkeypatch, lambda: call(200, 208, 17, 2), 90)
    assert len(together) == len(alone) > 3
