"""k-means and what it says of the classes: definitions, peers, refusals."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from torch import Tensor

from dmlap_kernels.evaluation import (
    assign_clusters,
    clustering,
    clustering_metrics,
    compare_clusters,
    retrieval_metrics,
)
from dmlap_kernels.extras import MissingExtra
from tests.evaluation.test_retrieval import _points

NAMES = ["nmi", "f1", "ami"]


def _entropy(labels: Tensor) -> float:
    shares = torch.unique(labels, return_counts=True)[1].double() / len(labels)
    return float(-(shares * shares.log()).sum())


def _nmi(labels: Tensor, clusters: Tensor) -> float:
    joint = _entropy(labels * 1000 + clusters)
    one, other = _entropy(labels), _entropy(clusters)
    return (one + other - joint) / ((one + other) / 2)


def _f1(labels: Tensor, clusters: Tensor) -> float:
    """The definition, pair by pair."""
    pairs = list(itertools.combinations(range(len(labels)), 2))
    together = {(i, j) for i, j in pairs if clusters[i] == clusters[j]}
    alike = {(i, j) for i, j in pairs if labels[i] == labels[j]}
    precision = len(together & alike) / len(together)
    recall = len(together & alike) / len(alike)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_definitions(seed: int) -> None:
    pytest.importorskip("sklearn")
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(7, (60,), generator=random)
    clusters = torch.where(
        torch.rand(60, generator=random) < 0.6, labels, torch.randint(9, (60,), generator=random)
    )
    found = compare_clusters(labels, clusters)
    assert list(found) == NAMES
    assert found["nmi"] == pytest.approx(_nmi(labels, clusters), rel=1e-9)
    assert found["f1"] == pytest.approx(_f1(labels, clusters), rel=1e-12)
    assert found["ami"] < found["nmi"]
    # Names of classes and of clusters, and the order of rows, do not matter.
    order = torch.randperm(60, generator=random)
    again = compare_clusters(40 - 3 * labels[order].int(), clusters[order].to(torch.uint8) + 5)
    assert again == pytest.approx(found, rel=1e-9)


def test_the_ends_of_the_scale() -> None:
    pytest.importorskip("sklearn")
    labels = torch.arange(40) % 8
    assert compare_clusters(labels, labels.flip(0)) == pytest.approx(dict.fromkeys(NAMES, 1.0))
    alone = torch.arange(40)
    assert compare_clusters(labels, alone)["f1"] == 0
    assert compare_clusters(alone, alone)["f1"] == 1
    random = torch.randint(8, (40,), generator=torch.Generator().manual_seed(0))
    assert (
        abs(compare_clusters(labels, random)["ami"])
        < 0.15
        < compare_clusters(labels, random)["nmi"]
    )


def test_pairs_are_counted_beyond_32_bits() -> None:
    pytest.importorskip("sklearn")
    labels, halves = torch.zeros(100_000, dtype=torch.uint8), torch.arange(100_000) % 2
    assert compare_clusters(labels, halves)["f1"] == pytest.approx(2 / 3, rel=1e-4)


@pytest.mark.parametrize("references", [False, True])
def test_equals_pytorch_metric_learning(references: bool) -> None:
    """Without a word about seeds: by default both cluster alike, and the queries alone."""
    pytest.importorskip("faiss")
    accuracy = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    # Enough rows that k-means is not done after its 20 rounds.
    x, labels = _points(1500, 20, 2)
    y, ref_labels = _points(200, 20, 3) if references else (None, None)
    names = {
        "recall@1": "precision_at_1",
        "r_precision": "r_precision",
        "map@r": "mean_average_precision_at_r",
        "nmi": "NMI",
        "ami": "AMI",
    }
    calculator = accuracy.AccuracyCalculator(
        include=tuple(names.values()), k="max_bin_count", device=torch.device("cpu")
    )
    peer = calculator.get_accuracy(x, labels, y, ref_labels)
    ours = retrieval_metrics(x, labels, y, ref_labels, ks=(1,), clustering=True)
    assert list(ours) == ["recall@1", "r_precision", "map@r", *NAMES]
    for name, theirs in names.items():
        assert ours[name] == pytest.approx(peer[theirs], rel=1e-9), name
    assert 0.1 < ours["ami"] < ours["nmi"] < 1


def test_metrics_are_those_of_the_same_assignment() -> None:
    """Of clusters that the peer is told, among them empty ones."""
    accuracy = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    x, labels = _points(200, 15, 4)
    clusters = torch.randint(15, (200,), generator=torch.Generator().manual_seed(1)) // 2 * 2
    calculator = accuracy.AccuracyCalculator(
        include=("NMI", "AMI"), device=torch.device("cpu"), kmeans_func=lambda *_: clusters
    )
    peer = calculator.get_accuracy(x, labels)
    ours = compare_clusters(labels, clusters)
    assert (ours["nmi"], ours["ami"]) == pytest.approx((peer["NMI"], peer["AMI"]), rel=1e-9)


def test_clusters_are_found_again(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 6
    x = 50 * torch.eye(6)[labels] + torch.randn(60, 6, generator=random)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        found = assign_clusters(x.to(dtype), 6)
        assert found.dtype == torch.int64 and found.shape == (60,)
        assert compare_clusters(labels, found)["nmi"] == pytest.approx(1)
    assert torch.equal(assign_clusters(x, 1), torch.zeros(60, dtype=torch.int64))
    assert len(assign_clusters(x, 60).unique()) == 60
    # Of few rows a cluster faiss would say a word for each call.
    assert "".join(capfd.readouterr()) == ""


def test_the_seed_decides() -> None:
    pytest.importorskip("faiss")
    x, labels = _points(400, 30, 5)
    first, again = (assign_clusters(x, 30, seed=7) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, assign_clusters(x, 30, seed=8))
    assert clustering_metrics(x, labels, seed=7) == compare_clusters(labels, first)


def test_every_row_takes_part() -> None:
    """By default faiss trains on 256 rows a cluster, hardly ever on the one row that is far off."""
    pytest.importorskip("faiss")
    x = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    x[9] = 10_000
    found = assign_clusters(x, 2)
    assert (found == found[9]).sum() == 1


def test_cosine_and_normalize_cluster_directions() -> None:
    pytest.importorskip("faiss")
    labels = torch.arange(40) % 2
    random = torch.Generator().manual_seed(0)
    directions = torch.tensor([[1.0, 0.1], [0.1, 1.0]])
    x = directions[labels] * torch.logspace(-2, 2, 40)[torch.randperm(40, generator=random), None]
    assert clustering_metrics(x, labels)["nmi"] < 0.5
    for options in ({"distance": "cosine"}, {"normalize": True}):
        assert clustering_metrics(x, labels, **options)["nmi"] == pytest.approx(1)
        assert retrieval_metrics(x, labels, clustering=True, **options)["nmi"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"labels": torch.arange(4)}, ValueError, r"labels must have shape \(5,\)"),
        ({"labels": torch.full((5,), 0.5)}, ValueError, "labels must be whole numbers, got 0.5"),
        ({"labels": ["a"] * 5}, TypeError, "labels must be a torch.Tensor or a NumPy array"),
        ({"embeddings": torch.zeros(5)}, ValueError, "embeddings must have shape"),
        ({"embeddings": torch.full((5, 2), torch.nan)}, ValueError, "embeddings must be finite"),
        ({"distance": "dot"}, ValueError, "distance must be one of"),
        ({"seed": -1}, ValueError, "seed must be in 0"),
        ({"normalize": 1}, TypeError, "normalize must be True or False"),
    ],
)
def test_bad_input_is_named(changes: dict, error: type[Exception], named: str) -> None:
    pytest.importorskip("faiss")
    arguments = {"embeddings": torch.randn(5, 2), "labels": torch.tensor([0, 0, 1, 1, 1])}
    with pytest.raises(error, match=named):
        clustering_metrics(**arguments | changes)


def test_labels_of_other_kinds() -> None:
    """NumPy, floats that are whole, a column: what is unambiguous."""
    pytest.importorskip("faiss")
    x, labels = _points(40, 4, 0)
    want = clustering_metrics(x, labels)
    for same in (labels.double(), labels[:, None], labels.numpy(), labels.to(torch.uint8)):
        assert clustering_metrics(x, same) == want
        assert retrieval_metrics(x, same) == retrieval_metrics(x, labels)
        assert retrieval_metrics(x, same, x, same, ks=1)["recall@1"] == 1
    found = compare_clusters(labels, labels % 2)
    assert found == compare_clusters(labels.numpy(), (labels % 2).bool())


def test_bad_clusters_are_named() -> None:
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match=r"clusters must be in 1\.\.5"):
        assign_clusters(torch.randn(5, 2), 6)
    with pytest.raises(ValueError, match="labels and clusters must have the same shape"):
        compare_clusters(torch.arange(3), torch.arange(4))
    with pytest.raises(ValueError, match="clusters must be whole numbers, got 0.5"):
        compare_clusters(torch.arange(3), torch.tensor([0.0, 0.5, 1.0]))
    with pytest.raises(TypeError, match="clustering must be True or False"):
        retrieval_metrics(torch.randn(4, 2), torch.arange(4) // 2, clustering="yes")


@pytest.mark.parametrize(
    ("module", "named"),
    [
        ("faiss", r"clustering needs faiss-cpu.*pip install 'dmlap-kernels\[faiss\]'"),
        ("sklearn", r"clustering needs scikit-learn.*pip install 'dmlap-kernels\[train\]'"),
    ],
)
def test_a_missing_extra_is_named(module: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    if module == "sklearn":
        # Refused before k-means runs.
        monkeypatch.delattr(clustering, "assign_clusters")
    x, labels = torch.randn(6, 2), torch.arange(6) // 2
    with pytest.raises(MissingExtra, match=named):
        retrieval_metrics(x, labels, clustering=True)
    assert list(retrieval_metrics(x, labels, ks=(1,))) == ["recall@1", "r_precision", "map@r"]
