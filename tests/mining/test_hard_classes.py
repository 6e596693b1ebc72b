"""Hardest classes against the whole class matrix."""

from __future__ import annotations

import pytest
import torch

from dmlap_kernels import hard_classes
from tests import reference

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
# representatives, classes, features, k; distance, normalize; share of pairs violated; dtype.
# With few violations most scores are 0 and the smallest distance decides.
TABLE = [
    ((2, 2, 3, 1), "euclidean", False, 1.0, F32),
    ((2, 2, 8, 1), "cosine", False, 0.5, F64),
    ((40, 40, 8, 39), "euclidean", False, 0.02, F32),
    ((40, 40, 3, 10), "sqeuclidean", False, 1.0, F64),
    ((40, 40, 17, 39), "euclidean", True, 0.5, BF16),
    ((49, 49, 17, 1), "cosine", True, 0.02, F32),
    ((49, 49, 64, 48), "sqeuclidean", True, 0.5, F32),
    ((130, 33, 12, 10), "euclidean", False, 0.5, F32),
    ((130, 33, 12, 32), "euclidean", False, 0.02, F64),
    ((130, 33, 130, 1), "cosine", False, 0.5, F32),
    ((130, 33, 2, 10), "sqeuclidean", False, 1.0, F32),
    ((130, 33, 20, 10), "euclidean", True, 1.0, BF16),
    ((257, 50, 16, 49), "euclidean", True, 0.02, F32),
    ((257, 50, 16, 10), "sqeuclidean", False, 0.5, F64),
    ((301, 301, 20, 300), "euclidean", False, 0.5, F32),
]


def draw(rows: int, classes: int, features: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ragged classes in no order, with labels of both signs."""
    g = torch.Generator().manual_seed(rows + classes)
    x = torch.randn(rows, features, generator=g, dtype=torch.float64)
    names = 10 * torch.randperm(classes, generator=g) - 150
    members = torch.cat(
        [torch.arange(classes), torch.randint(0, classes, (rows - classes,), generator=g)]
    )
    return x, names[members[torch.randperm(rows, generator=g)]]


def margin_at(x: torch.Tensor, quantile: float, **options) -> float:
    return reference.pair_distances(x, x, **options).flatten().quantile(quantile).item()


@pytest.mark.parametrize(
    ("shape", "distance", "normalize", "violated", "dtype"),
    TABLE,
    ids=["-".join(map(str, row)) for row in TABLE],
)
def test_against_brute_force(
    shape: tuple[int, int, int, int],
    distance: str,
    normalize: bool,
    violated: float,
    dtype: torch.dtype,
    backend: str,
) -> None:
    rows, classes, features, k = shape
    points, labels = draw(rows, classes, features)
    x = points.to(dtype)
    options = {"distance": distance, "normalize": normalize}
    margin = margin_at(x.double(), violated, **options)
    found = hard_classes(x, labels, k, margin=margin, backend=backend, **options)
    true_classes, true_neighbors, true_scores, true_distances = reference.hard_classes(
        x.double(), labels, k, margin=margin, **options
    )
    assert found.classes.dtype == found.neighbors.dtype == torch.int64
    assert torch.equal(found.classes, true_classes)
    assert found.scores.shape == found.distances.shape == (classes, k)
    close = {"rtol": 1e-5, "atol": 3e-6 * max(1.0, margin)}
    torch.testing.assert_close(found.scores.double(), true_scores, **close)
    agree = found.neighbors == true_neighbors
    assert agree.double().mean() > 0.99
    torch.testing.assert_close(found.distances.double()[agree], true_distances[agree], **close)
    assert (found.neighbors != found.classes[:, None]).all()
    assert all(len(set(row.tolist())) == k for row in found.neighbors)


def test_scores_are_means_over_all_pairs_of_two_classes(backend: str) -> None:
    """By hand: classes 0 at {0, 4}, 1 at {5}, 2 at {2}, 3 at {40} on a line, margin 4."""
    x = torch.tensor([[0.0], [4.0], [5.0], [2.0], [40.0]])
    labels = torch.tensor([0, 0, 1, 2, 3])
    found = hard_classes(x, labels, 3, margin=4.0, backend=backend)
    assert found.classes.tolist() == [0, 1, 2, 3]
    assert found.neighbors.tolist() == [[2, 1, 3], [0, 2, 3], [0, 1, 3], [1, 0, 2]]
    torch.testing.assert_close(
        found.scores,
        torch.tensor([[2, 1.5, 0], [1.5, 1, 0], [2, 1, 0], [0, 0, 0.0]]),
        rtol=1e-6,
        atol=1e-6,
    )
    torch.testing.assert_close(
        found.distances,
        torch.tensor([[2, 1, 36], [1, 3, 35], [2, 3, 38], [35, 36, 38.0]]),
        rtol=1e-6,
        atol=1e-5,
    )


def test_equal_scores_and_distances_go_to_the_lower_label(backend: str) -> None:
    """Classes that coincide are equally hard."""
    point, other = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    x = torch.stack([point, other, other, point, other, other])
    labels = torch.tensor([7, 30, -5, 2, 11, 4])
    for margin in (0.0, 100.0):
        found = hard_classes(x, labels, 5, margin=margin, backend=backend)
        by_label = dict(zip(found.classes.tolist(), found.neighbors.tolist(), strict=True))
        assert by_label[7] == [2, -5, 4, 11, 30]
        assert by_label[2] == [7, -5, 4, 11, 30]
        assert by_label[30] == [-5, 4, 11, 2, 7]
        assert by_label[4] == [-5, 11, 30, 2, 7]


def test_a_class_that_is_near_on_average_beats_one_that_touches(backend: str) -> None:
    """The mean over pairs counts; the smallest distance only breaks ties."""
    x = torch.tensor([[0.0], [0.1], [50.0], [1.0], [1.2]])
    labels = torch.tensor([0, 1, 1, 2, 2])
    found = hard_classes(x, labels, 2, margin=3.0, backend=backend)
    assert found.neighbors[0].tolist() == [2, 1]
    found = hard_classes(x, labels, 2, margin=-1.0, backend=backend)
    assert found.neighbors[0].tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_label_dtypes_and_layout(dtype: torch.dtype, backend: str) -> None:
    points, labels = draw(60, 20, 7)
    x = points.float()
    labels = labels + 150
    plain = hard_classes(x, labels, 5, backend=backend)
    other = hard_classes(x.t().contiguous().t(), labels.to(dtype), 5, backend=backend)
    for a, b in zip(plain, other, strict=True):
        assert torch.equal(a, b)
    assert plain.classes.dtype == torch.int64


def test_many_classes_need_no_class_matrix(native: str) -> None:
    """20,000 classes: a class matrix of floats would take 1.6 GB."""
    classes = 20_000
    x = torch.randn(classes, 16, generator=torch.Generator().manual_seed(0))
    found = hard_classes(x, torch.arange(classes), 5, margin=1.0, backend=native)
    rows = torch.arange(0, classes, 997)
    d = torch.cdist(x[rows].double(), x.double())
    d[torch.arange(len(rows)), rows] = torch.inf
    nearest_classes = d.topk(5, largest=False).indices
    assert torch.equal(found.neighbors[rows], nearest_classes)


def test_non_finite_representatives_do_not_crash(backend: str) -> None:
    points, labels = draw(60, 20, 7)
    x = points.float()
    x[4, 1] = torch.nan
    x[9, 2] = torch.inf
    found = hard_classes(x, labels, 19, backend=backend)
    known = set(labels.tolist())
    for own, row in zip(found.classes.tolist(), found.neighbors.tolist(), strict=True):
        assert sorted([own, *row]) == sorted(known)
