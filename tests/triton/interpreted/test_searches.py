"""Nearest neighbours and hard classes of the `triton` backend."""

from __future__ import annotations

import pytest
import torch

from dmlap_kernels import hard_classes, nearest
from dmlap_kernels.backends.triton import configurations
from tests import reference
from tests.mining.test_hard_classes import draw, margin_at
from tests.mining.test_nearest import assert_exact, points


@pytest.fixture(params=[True, False], ids=["one-panel", "tiles"])
def one_panel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether all products are one panel, or are made in kernels, as where there are many."""
    if not request.param:
        monkeypatch.setattr(configurations, "PANEL_BYTES", 0)
    return request.param


# queries, references (None: self case), features, k: on chip, of which one and of which two blocks
# of references, and beyond
SHAPES = [(2, None, 2, 1), (33, None, 17, 5), (20, 70, 5, 40), (9, 300, 20, 130)]


@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nearest(shape: tuple[int, int | None, int, int], distance: str, one_panel: bool) -> None:
    rows, refs, features, k = shape
    queries = points(rows, features, torch.float32, 0)
    references = None if refs is None else points(refs, features, torch.float32, 1)
    found = nearest(queries, references, k, distance=distance, backend="triton")
    assert_exact(found, queries, references, k, distance=distance)


@pytest.mark.parametrize("k", [1, 7, 200])
def test_equal_rows_come_in_the_order_of_their_indices(k: int, one_panel: bool) -> None:
    """Integers around 0, so that many rows are equally far, and none by rounding."""
    g = torch.Generator().manual_seed(1)
    originals = torch.randint(-3, 4, (9, 4), generator=g).float()
    copies = originals.repeat(25, 1)[torch.randperm(225, generator=g)]
    queries = torch.cat((originals, -originals))
    found = nearest(queries, copies, k, backend="triton")
    d, indices = reference.nearest(queries.double(), copies.double(), k)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.distances.double(), d, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [3, 150])
def test_distances_that_are_not_numbers_come_last(k: int, one_panel: bool) -> None:
    queries, refs = points(4, 3, torch.float32, 0), points(160, 3, torch.float32, 1)
    refs[5, 1] = torch.nan
    queries[2, 0] = torch.inf
    found = nearest(queries, refs, k, backend="triton")
    assert ((found.indices >= 0) & (found.indices < 160)).all()
    assert all(len(set(row.tolist())) == k for row in found.indices)
    assert (~found.distances[2].isfinite()).all()
    assert not (found.indices[[0, 1, 3]] == 5).any()


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_hard_classes(distance: str, one_panel: bool) -> None:
    """19 ragged classes, in more than one tile."""
    x, labels = draw(40, 19, 6)
    margin = margin_at(x, 0.5, distance=distance)
    found = hard_classes(x.float(), labels, 4, margin=margin, distance=distance, backend="triton")
    truth = reference.hard_classes(x, labels, 4, margin=margin, distance=distance)
    assert torch.equal(found.classes, truth[0])
    assert torch.equal(found.neighbors, truth[1])
    torch.testing.assert_close(found.scores.double(), truth[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.distances.double(), truth[3], rtol=1e-5, atol=1e-6)


def test_hard_classes_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes a few at a time are those of all at once.

    Scores to a few last bits: the interpreter multiplies tiles with the BLAS of NumPy, whose sums
    on some processors depend on where in a tile a row lies.
    """
    from dmlap_kernels.backends.device import search

    x, labels = draw(30, 12, 5)
    monkeypatch.setattr(configurations, "PANEL_BYTES", 0)
    whole = hard_classes(x.float(), labels, 3, backend="triton")
    monkeypatch.setattr(search, "_SCORES", 5 * 12)
    blocks = hard_classes(x.float(), labels, 3, backend="triton")
    assert torch.equal(whole.classes, blocks.classes)
    assert torch.equal(whole.neighbors, blocks.neighbors)
    for name in ("scores", "distances"):
        a, b = getattr(whole, name), getattr(blocks, name)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_equal_scores_go_to_the_nearer_then_to_the_lower_label(one_panel: bool) -> None:
    x = torch.tensor([[0.0], [5.0], [3.0], [-3.0], [10.0]])
    labels = torch.tensor([7, 2, 30, -5, 11])
    found = hard_classes(x, labels, 4, margin=0.5, backend="triton")
    by_label = dict(zip(found.classes.tolist(), found.neighbors.tolist(), strict=True))
    assert by_label[7] == [-5, 30, 2, 11]
    assert by_label[30] == [2, 7, -5, 11]


def test_near_pairs_are_compared_by_differences() -> None:
    """Rows a hundredth apart, a hundred from the origin, where products have no digits left."""
    x = 100 + 0.01 * points(24, 20, torch.float64, 0)
    x = x.float()
    found = nearest(x, k=5, backend="triton")
    truth = reference.nearest(x.double(), None, 5)
    assert torch.equal(found.indices, truth[1])
    torch.testing.assert_close(found.distances.double(), truth[0], rtol=1e-5, atol=0)
    labels = torch.arange(24) // 2
    hard = hard_classes(x, labels, 4, margin=0.1, backend="triton")
    classes = reference.hard_classes(x.double(), labels, 4, margin=0.1)
    assert torch.equal(hard.neighbors, classes[1])
    torch.testing.assert_close(hard.scores.double(), classes[2], rtol=1e-5, atol=1e-7)


def test_rows_as_they_lie() -> None:
    """Every second column of a wider table, and numbers whose sign is not resolved."""
    queries = points(20, 34, torch.float32, 0).T.contiguous().T[:, 1::2]
    refs = torch.view_as_complex(points(9, 34, torch.float32, 1).view(9, 17, 2)).conj().imag
    assert refs.is_neg()
    for dtype in (torch.float32, torch.bfloat16):
        rows = queries.to(dtype), refs.to(dtype)
        found = nearest(*rows, 4, normalize=True, backend="triton")
        assert_exact(found, *rows, 4, distance="euclidean", normalize=True)
