from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dmlap_kernels.evaluation import retrieval_metrics


def _brute_force(
    x: Tensor, labels: Tensor, y: Tensor | None, ref_labels: Tensor | None, ks: tuple[int, ...]
) -> dict[str, float]:
    """The definitions, one query at a time."""
    own = y is None
    y, ref_labels = (x, labels) if y is None or ref_labels is None else (y, ref_labels)
    found: dict[str, list[float]] = {}
    for i in range(len(x)):
        others = [j for j in range(len(y)) if not (own and i == j)]
        ranked = sorted(others, key=lambda j: (float((x[i] - y[j]).norm()), j))
        hits = [int(ref_labels[j] == labels[i]) for j in ranked]
        r = sum(hits)
        if not r:
            continue
        for k in ks:
            found.setdefault(f"recall@{k}", []).append(float(any(hits[:k])))
        found.setdefault("r_precision", []).append(sum(hits[:r]) / r)
        precision = [sum(hits[: n + 1]) / (n + 1) * hits[n] for n in range(r)]
        found.setdefault("map@r", []).append(sum(precision) / r)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _points(rows: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=random)
    centers = torch.randn(classes, 6, generator=torch.Generator().manual_seed(99))
    return centers[labels] + 2 * torch.randn(rows, 6, generator=random), labels


@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("ks", [(1, 2, 4, 8), (3,)])
def test_equals_brute_force(references: bool, ks: tuple[int, ...], backend: str) -> None:
    x, labels = _points(60, 12, 0)
    y, ref_labels = _points(45, 8, 1) if references else (None, None)
    got = retrieval_metrics(x, labels, y, ref_labels, ks=ks, backend=backend)
    want = _brute_force(x, labels, y, ref_labels, ks)
    assert list(got) == list(want)
    for name, value in want.items():
        assert math.isclose(got[name], value, rel_tol=1e-12), name
    # The case tells the metrics apart.
    assert len(set(want.values())) == len(want) and 0 < want["map@r"] < 1


def test_a_ranking_by_hand() -> None:
    """Query 0 of class 0, references at 1, 2, 3, ...: hit, miss, hit, miss, hit."""
    x, y = torch.zeros(1, 1), torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
    metrics = retrieval_metrics(x, torch.tensor([0]), y, torch.tensor([0, 1, 0, 1, 0]), ks=(1, 9))
    assert metrics == {
        "recall@1": 1.0,
        "recall@9": 1.0,
        "r_precision": pytest.approx(2 / 3),
        "map@r": pytest.approx((1 + 2 / 3) / 3),
    }


def test_queries_without_relevant_references_are_left_out() -> None:
    x = torch.tensor([[0.0], [0.1], [5.0]])
    # The last row is the only one of its class.
    assert retrieval_metrics(x, torch.tensor([-4, -4, 9]), ks=(1,))["recall@1"] == 1.0


def test_duplicates_do_not_retrieve_themselves(backend: str) -> None:
    x = torch.zeros(4, 3)
    metrics = retrieval_metrics(x, torch.tensor([0, 1, 0, 1]), ks=(1,), backend=backend)
    # Nearest of rows 0 to 3 by the lower index: 1, 0, 0, 0.
    assert metrics["recall@1"] == 0.25


def test_distance_and_normalize_reach_the_search() -> None:
    x = torch.tensor([[1.0, 0.0], [9.0, 1.0], [1.0, 2.0], [0.5, 9.0]])
    labels = torch.tensor([0, 0, 1, 1])
    assert retrieval_metrics(x, labels, ks=(1,))["recall@1"] < 1
    assert retrieval_metrics(x, labels, ks=(1,), distance="cosine")["recall@1"] == 1
    assert retrieval_metrics(x, labels, ks=(1,), normalize=True)["recall@1"] == 1


@pytest.mark.filterwarnings("error")
def test_every_other_row_is_no_reason_to_warn() -> None:
    x, labels = _points(60, 6, 0)
    every_other = retrieval_metrics(x[::2], labels[::2], x[1::2], labels[1::2])
    assert every_other == retrieval_metrics(*(t[i::2].clone() for i in (0, 1) for t in (x, labels)))


@pytest.mark.parametrize("references", [False, True])
def test_equals_pytorch_metric_learning(references: bool) -> None:
    pytest.importorskip("faiss")
    accuracy = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    x, labels = _points(300, 20, 2)
    y, ref_labels = _points(200, 20, 3) if references else (None, None)
    names = {
        "recall@1": "precision_at_1",
        "r_precision": "r_precision",
        "map@r": "mean_average_precision_at_r",
    }
    calculator = accuracy.AccuracyCalculator(
        include=tuple(names.values()), k="max_bin_count", device=torch.device("cpu")
    )
    peer = calculator.get_accuracy(x, labels, y, ref_labels)
    ours = retrieval_metrics(x, labels, y, ref_labels)
    for name, theirs in names.items():
        assert ours[name] == pytest.approx(peer[theirs], rel=1e-9), name


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"ks": ()}, ValueError, "ks must be one or more positive integers"),
        ({"ks": (0,)}, ValueError, "ks must be one or more positive integers"),
        ({"labels": torch.arange(5)}, ValueError, "labels must give at least one query"),
        ({"labels": torch.arange(4)}, ValueError, r"labels must have shape \(5,\)"),
        ({"ref_labels": torch.arange(5)}, ValueError, "ref_embeddings must be given"),
        ({"distance": "dot"}, ValueError, "distance must be one of"),
    ],
)
def test_bad_input_is_named(changes: dict, error: type[Exception], named: str) -> None:
    arguments = {"embeddings": torch.randn(5, 2), "labels": torch.tensor([0, 0, 1, 1, 1])}
    with pytest.raises(error, match=named):
        retrieval_metrics(**arguments | changes)
