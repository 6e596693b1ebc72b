"""What is asked of a faiss that has GPUs; the stand-in computes on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dmlap_kernels import faiss_gpus
from dmlap_kernels.evaluation import assign_clusters
from dmlap_kernels.trainer.class_mining import hardest_classes

faiss = pytest.importorskip("faiss")


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The indexes that were moved to the one GPU that there is."""
    found: list[Any] = []

    def to_gpu(index: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(index)
        return index

    for module in (faiss, *(getattr(faiss, name, faiss) for name in ("extra_wrappers",))):
        monkeypatch.setattr(module, "get_num_gpus", lambda: 1, raising=False)
        monkeypatch.setattr(module, "index_cpu_to_all_gpus", to_gpu, raising=False)
    return found


def _classes(count: int) -> torch.Tensor:
    return torch.randn(count, 2, 8, generator=torch.Generator().manual_seed(1))


def test_hard_classes_are_searched_there(moved: list[Any]) -> None:
    rows = _classes(60)
    found = hardest_classes(rows, 3, search="faiss")
    assert [type(index).__name__ for index in moved] == ["IndexFlatL2", "IndexIVFFlat"]
    moved.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faiss, "get_num_gpus", lambda: 0)
        assert torch.equal(hardest_classes(rows, 3, search="faiss"), found)
    assert not moved


def test_more_neighbours_than_a_gpu_gives_are_searched_here(
    moved: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_gpus, "MOST_NEIGHBORS", 20)
    hardest_classes(_classes(60), 12, search="faiss")
    assert [type(index).__name__ for index in moved] == ["IndexFlatL2"]


def test_k_means_runs_there(moved: list[Any]) -> None:
    rows = torch.tensor([[0.0], [1.0], [50.0], [51.0]])
    clusters = assign_clusters(rows, 2)
    assert clusters[0] == clusters[1] != clusters[2] == clusters[3]
    assert moved


def test_a_build_without_the_question_has_none() -> None:
    assert faiss_gpus.gpus(object()) == 0
    assert faiss_gpus.gpus(faiss) == faiss.get_num_gpus()
