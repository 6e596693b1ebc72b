"""`retrieval_metrics`: metrics, averages, values of K, queries among the references."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dmlap_kernels.evaluation import METRICS, retrieval, retrieval_metrics
from tests.evaluation.test_retrieval import _points

ALL = tuple(name for name in METRICS if name not in retrieval.CLUSTERING)


def _of_queries(
    x: Tensor, labels: Tensor, y: Tensor, ref_labels: Tensor, itself: list[int], ks: list[int]
) -> list[tuple[int, dict[str, float]]]:
    """The definitions, one query at a time: label and metrics of those with relevant references."""
    found = []
    for i in range(len(x)):
        others = [j for j in range(len(y)) if j != itself[i]]
        ranked = sorted(others, key=lambda j: (float((x[i] - y[j]).norm()), j))
        hits = [int(ref_labels[j] == labels[i]) for j in ranked]
        r = sum(hits)
        if not r:
            continue
        at = [sum(hits[: n + 1]) / (n + 1) * hits[n] for n in range(len(hits))]
        first = hits.index(1) + 1
        of_query = {f"recall@{k}": float(first <= k) for k in ks}
        of_query |= {f"precision@{k}": sum(hits[:k]) / min(k, len(hits)) for k in ks}
        of_query |= {f"mrr@{k}": 1 / first if first <= k else 0.0 for k in ks}
        of_query |= {f"map@{k}": sum(at[:k]) / min(r, k) for k in ks}
        of_query |= {"r_precision": sum(hits[:r]) / r, "map@r": sum(at[:r]) / r}
        found.append((int(labels[i]), of_query))
    return found


def _expected(found: list[tuple[int, dict[str, float]]], average: str | None) -> dict[str, Any]:
    names = found[0][1]
    if average == "micro":
        return {name: float(np.mean([of[name] for _, of in found])) for name in names}
    classes = sorted({label for label, _ in found})
    means = {
        name: {c: float(np.mean([of[name] for label, of in found if label == c])) for c in classes}
        for name in names
    }
    if average == "macro":
        return {name: float(np.mean(list(of.values()))) for name, of in means.items()}
    return means


# Which reference is the query: none, all in order, some, all from behind.
CASES = {
    "itself": None,
    "none": [-1] * 60,
    "all": list(range(60)),
    "some": [i if i % 3 else -1 for i in range(60)],
    "reversed": list(range(79, 19, -1)),
}


def _case(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
    x, labels = _points(60, 9, 0)
    more, more_labels = _points(20, 12, 1)
    # One class of one query, which nothing else is of.
    labels[5] = 77
    y, ref_labels = torch.cat((x, more)), torch.cat((labels, more_labels))
    itself = CASES[name]
    if name == "reversed":
        y, ref_labels = y.flip(0), ref_labels.flip(0)
    if itself is None:
        return x, labels, x, labels, list(range(60))
    return x, labels, y, ref_labels, itself


@pytest.mark.parametrize("average", ["micro", "macro", None])
@pytest.mark.parametrize("block", [None, 40])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_definitions(
    case: str, block: int | None, average: str | None, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block is not None:
        monkeypatch.setattr(retrieval, "_NEIGHBORS_AT_ONCE", block)
    x, labels, y, ref_labels, itself = _case(case)
    # In blocks, R is what decides how many neighbours are needed.
    ks = [1, 3, 500] if block is None else [1, 3]
    references: dict[str, Any] = {}
    if case != "itself":
        references = {"ref_embeddings": y, "ref_labels": ref_labels}
        references["self_index"] = torch.tensor(itself, dtype=torch.int32)
    got = retrieval_metrics(
        x, labels, **references, ks=ks, metrics=ALL, average=average, backend=backend
    )
    want = _expected(_of_queries(x, labels, y, ref_labels, itself, ks), average)
    assert list(got) == list(want)
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-12), name
    assert case == "none" or 77 not in (got["recall@1"] if average is None else ())


def test_queries_among_the_references() -> None:
    """The usual case has a keyword; without one every query finds itself."""
    x, labels, y, ref_labels, itself = _case("all")
    silent = retrieval_metrics(x, labels, y, ref_labels, ks=1)
    assert silent["recall@1"] == 1
    said = retrieval_metrics(x, labels, y, ref_labels, ks=1, ref_includes_query=True)
    assert said == retrieval_metrics(
        x, labels, y, ref_labels, ks=1, self_index=torch.tensor(itself)
    )
    assert said["recall@1"] < 1 and said["map@r"] < silent["map@r"]
    # References that are the queries and nothing else.
    alone = retrieval_metrics(x, labels, x, labels, ks=1, ref_includes_query=True)
    assert alone == retrieval_metrics(x, labels, ks=1)


@pytest.mark.parametrize("includes", [False, True])
def test_equals_pytorch_metric_learning(includes: bool) -> None:
    pytest.importorskip("faiss")
    accuracy = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    x, labels = _points(150, 20, 2)
    more, more_labels = _points(100, 20, 3)
    y = torch.cat((x, more)) if includes else more
    ref_labels = torch.cat((labels, more_labels)) if includes else more_labels
    names = {
        "recall@1": "precision_at_1",
        f"mrr@{len(y)}": "mean_reciprocal_rank",
        f"map@{len(y)}": "mean_average_precision",
        "r_precision": "r_precision",
        "map@r": "mean_average_precision_at_r",
    }
    for average in ("micro", "macro"):
        calculator = accuracy.AccuracyCalculator(
            include=tuple(names.values()),
            avg_of_avgs=average == "macro",
            device=torch.device("cpu"),
        )
        peer = calculator.get_accuracy(x, labels, y, ref_labels, includes)
        ours = retrieval_metrics(
            x,
            labels,
            y,
            ref_labels,
            ks=(1, len(y)),
            metrics=ALL,
            average=average,
            ref_includes_query=includes,
        )
        for name, theirs in names.items():
            assert ours[name] == pytest.approx(peer[theirs], rel=1e-6), (average, name)


@pytest.mark.parametrize(
    ("ks", "names"),
    [
        (3, ["3"]),
        ((8, 1, 8, 2, 1), ["8", "1", "2"]),
        (np.array([2, 5]), ["2", "5"]),
        (np.int32(4), ["4"]),
        ([np.int64(2), 1], ["2", "1"]),
        (torch.tensor([2, 3]), ["2", "3"]),
        (torch.tensor(2), ["2"]),
        (range(1, 4), ["1", "2", "3"]),
        ({2}, ["2"]),
        ((10**30,), [str(10**30)]),
    ],
)
def test_any_positive_integers_are_ks(ks: Any, names: list[str]) -> None:
    x, labels = _points(30, 4, 0)
    for metric in ("recall", "precision", "mrr", "map"):
        got = retrieval_metrics(x, labels, ks=ks, metrics=metric)
        assert list(got) == [f"{metric}@{name}" for name in names]
        for name in names:
            alone = retrieval_metrics(x, labels, ks=min(int(name), 29), metrics=[metric])
            assert list(alone.values()) == [got[f"{metric}@{name}"]]


@pytest.mark.parametrize(
    "ks", [(), 0, (0,), (2, -1), 1.0, (1.5,), "1", ("1",), True, (True,), np.bool_(True), None]
)
def test_other_ks_are_refused(ks: Any) -> None:
    x, labels = _points(30, 4, 0)
    with pytest.raises(ValueError, match="ks must be one or more positive integers, got"):
        retrieval_metrics(x, labels, ks=ks)
    with pytest.raises(ValueError, match="ks must be one or more positive integers, got"):
        retrieval_metrics(x, labels, ks=torch.tensor([True]))


def test_metrics_can_be_chosen() -> None:
    x, labels = _points(30, 4, 0)
    assert list(retrieval_metrics(x, labels)) == [
        *("recall@1", "recall@2", "recall@4", "recall@8", "r_precision", "map@r")
    ]
    assert list(retrieval_metrics(x, labels, ks=2, metrics=("map@r", "mrr", "map@r"))) == [
        "map@r",
        "mrr@2",
    ]
    pytest.importorskip("faiss")
    pytest.importorskip("sklearn")
    assert list(retrieval_metrics(x, labels, metrics=("ami", "r_precision"))) == [
        "ami",
        "r_precision",
    ]
    # Clusters need no neighbours.
    assert list(retrieval_metrics(x, torch.arange(30), metrics="nmi")) == ["nmi"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"metrics": ()}, "metrics must be one or more of recall, precision"),
        ({"metrics": "precision_at_1"}, "metrics must be one of 'recall', .* 'precision_at_1'"),
        ({"average": "weighted"}, "average must be one of 'micro', 'macro', got 'weighted'"),
        ({"average": None, "clustering": True}, "average must be 'micro' or 'macro' with metrics"),
        ({"ref_includes_query": True}, "ref_includes_query must be False without ref_embeddings"),
        ({"self_index": torch.arange(5)}, "self_index must be left out without ref_embeddings"),
    ],
)
def test_bad_choices_are_named(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        retrieval_metrics(torch.randn(5, 2), torch.tensor([0, 0, 1, 1, 1]), **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"self_index": torch.arange(5) + 3}, r"self_index must be in -1\.\.6"),
        ({"self_index": torch.full((5,), -2)}, r"self_index must be in -1\.\.6 .*got -2"),
        ({"self_index": torch.arange(4)}, r"self_index must have shape \(5,\)"),
        (
            {"self_index": torch.arange(5), "ref_includes_query": True},
            "ref_includes_query must be False with self_index",
        ),
        (
            {"ref_includes_query": True, "ref_labels": torch.tensor([0, 0, 1, 1, 8, 0, 0])},
            "ref_labels must begin with the labels of the queries .* got 8 for query 4 of label 1",
        ),
        (
            {
                "ref_includes_query": True,
                "ref_embeddings": torch.randn(3, 2),
                "ref_labels": torch.zeros(3, dtype=torch.long),
            },
            "ref_embeddings must begin with the 5 queries .* got 3 rows",
        ),
    ],
)
def test_bad_references_are_named(options: dict, named: str) -> None:
    arguments = {
        "embeddings": torch.randn(5, 2),
        "labels": torch.tensor([0, 0, 1, 1, 1]),
        "ref_embeddings": torch.randn(7, 2),
        "ref_labels": torch.tensor([0, 0, 1, 1, 1, 0, 0]),
    }
    with pytest.raises(ValueError, match=named):
        retrieval_metrics(**arguments | options)


def test_no_gradient_is_asked_for() -> None:
    x, labels = _points(30, 4, 0)
    assert retrieval_metrics(x.requires_grad_(), labels) == retrieval_metrics(x.detach(), labels)
    assert math.isfinite(retrieval_metrics(x, labels)["recall@1"])
