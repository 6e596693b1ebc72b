from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dmlap_kernels.trainer.class_mining import hardest_classes


def _representatives(classes: int, per_class: int) -> torch.Tensor:
    """(classes, per_class, 12) unit rows, those of a class near each other."""
    random = torch.Generator().manual_seed(0)
    centers = torch.randn(classes, 1, 12, generator=random)
    return F.normalize(centers + 0.3 * torch.randn(classes, per_class, 12, generator=random), dim=2)


@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("per_class", [1, 3])
def test_an_index_that_searches_everything_is_exact(distance: str, per_class: int) -> None:
    # So few rows that all lists are searched; all classes are candidates.
    rows = _representatives(12, per_class)
    exact = hardest_classes(rows, 4, distance=distance)
    assert torch.equal(
        hardest_classes(rows, 4, search="faiss", distance=distance)[:, :1], exact[:, :1]
    )
    if per_class == 1:
        assert torch.equal(hardest_classes(rows, 4, search="faiss", distance=distance), exact)


@pytest.mark.parametrize("per_class", [1, 2])
def test_an_index_finds_nearly_all(per_class: int) -> None:
    rows = _representatives(3000, per_class)
    exact = hardest_classes(rows, 8)
    found = hardest_classes(rows, 8, search="faiss")
    shared = (exact[:, :, None] == found[:, None, :]).any(2).float().mean()
    assert shared > 0.8
    own = torch.arange(3000)[:, None]
    assert (found != own).all()
    assert all(len(set(row)) == 8 for row in found.tolist())


def test_two_classes() -> None:
    rows = _representatives(2, 2)
    assert hardest_classes(rows, 1, search="faiss").tolist() == [[1], [0]]


def test_normalisation_comes_first() -> None:
    rows = _representatives(40, 1)
    stretched = rows * torch.rand(40, 1, 1, generator=torch.Generator().manual_seed(1)).add(0.1)
    for search in ("exact", "faiss"):
        got = hardest_classes(stretched, 3, search=search, normalize=True)
        assert torch.equal(got, hardest_classes(rows, 3))
