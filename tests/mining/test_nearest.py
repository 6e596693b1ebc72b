"""Exact nearest neighbours against brute force."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dmlap_kernels import nearest
from dmlap_kernels.problem import Nearest
from tests import reference

DISTANCES = ("euclidean", "sqeuclidean", "cosine")
# queries, references (None: self case), features, k
SHAPES = [
    (2, None, 1, 1),
    (33, None, 17, 1),
    (49, None, 3, 10),
    (130, None, 64, 129),
    (301, None, 20, 300),
    (1, 1, 5, 1),
    (7, 400, 8, 300),
    (257, 48, 130, 48),
    (130, 257, 2, 10),
]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
OPTIONS = [
    {"distance": "euclidean", "normalize": False},
    {"distance": "sqeuclidean", "normalize": True},
    {"distance": "cosine", "normalize": False},
    {"distance": "euclidean", "normalize": True},
]
# Every shape with every distance; the dtypes take turns.
TABLE = [
    (shape, options, DTYPES[(i + j) % 4])
    for i, shape in enumerate(SHAPES)
    for j, options in enumerate(OPTIONS)
]


def points(rows: int, features: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, features, generator=g, dtype=torch.float64).to(dtype)


def assert_exact(
    found: Nearest, queries: torch.Tensor, references: torch.Tensor | None, k: int, **options
) -> None:
    """Distances are those of brute force; indices too, up to what rounding cannot tell apart."""
    refs = None if references is None else references.double()
    true_distances, true_indices = reference.nearest(queries.double(), refs, k, **options)
    real = torch.float64 if queries.dtype == torch.float64 else torch.float32
    scale = max(1.0, true_distances.max().item())
    tolerance = 16 * torch.finfo(real).eps * scale
    assert found.distances.dtype == real and found.indices.dtype == torch.int64
    assert found.distances.shape == found.indices.shape == (len(queries), k)
    if options.get("distance") == "euclidean":  # a root magnifies what is lost near zero
        tolerance = max(tolerance, 1e-3 * scale * torch.finfo(real).eps ** 0.5)
    torch.testing.assert_close(found.distances.double(), true_distances, rtol=1e-5, atol=tolerance)
    assert (found.distances[:, 1:] >= found.distances[:, :-1]).all()
    every = reference.pair_distances(
        queries.double(), queries.double() if refs is None else refs, **options
    )
    torch.testing.assert_close(
        every.gather(1, found.indices), true_distances, rtol=1e-5, atol=tolerance
    )
    assert all(len(set(row.tolist())) == k for row in found.indices)
    if references is None:
        assert (found.indices != torch.arange(len(queries))[:, None]).all()
    same = (found.indices == true_indices).double().mean().item()
    assert same > 0.99 or queries.dtype.itemsize == 2 or queries.shape[1] < 3


@pytest.mark.parametrize(
    ("shape", "options", "dtype"),
    TABLE,
    ids=["-".join(map(str, (shape, *options.values(), dtype))) for shape, options, dtype in TABLE],
)
def test_against_brute_force(
    shape: tuple[int, int | None, int, int],
    options: dict[str, Any],
    dtype: torch.dtype,
    backend: str,
) -> None:
    rows, refs, features, k = shape
    queries = points(rows, features, dtype, 0)
    references = None if refs is None else points(refs, features, dtype, 1)
    found = nearest(queries, references, k, backend=backend, **options)
    assert_exact(found, queries, references, k, **options)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("self_case", [True, False])
def test_equal_rows_come_in_the_order_of_their_indices(
    distance: str, self_case: bool, backend: str
) -> None:
    """Each point six times, shuffled; equal rows are equally far, whatever the rounding."""
    g = torch.Generator().manual_seed(1)
    originals = torch.randn(20, 9, generator=g)
    copies = originals.repeat(6, 1)[torch.randperm(120, generator=g)]
    queries = copies if self_case else torch.randn(50, 9, generator=g)
    found = nearest(
        queries, None if self_case else copies, k=40, distance=distance, backend=backend
    )
    for distances, indices in zip(found.distances, found.indices, strict=True):
        for a, b, i, j in zip(
            distances[:-1], distances[1:], indices[:-1], indices[1:], strict=True
        ):
            if torch.equal(copies[i], copies[j]):
                assert a == b and i < j
    if self_case and distance != "cosine":
        assert not found.distances[:, :5].any()


@pytest.mark.parametrize("k", [1, 3, 4])
def test_all_rows_equal(k: int, backend: str) -> None:
    x = torch.full((5, 3), 0.3)
    found = nearest(x, k=k, backend=backend)
    assert not found.distances.any()
    assert found.indices.tolist() == [[j for j in range(5) if j != i][:k] for i in range(5)]
    found = nearest(x, x, k=k, backend=backend)
    assert found.indices.tolist() == [list(range(k))] * 5


def test_a_row_finds_itself_among_references(backend: str) -> None:
    x = torch.randn(70, 12, generator=torch.Generator().manual_seed(2))
    found = nearest(x, x, backend=backend)
    assert found.indices[:, 0].tolist() == list(range(70))
    assert not found.distances.any()


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_near_pairs_far_from_the_origin(offset: float, backend: str) -> None:
    """Neighbours 2^-10 apart at 1,000: norms alone would not see them."""
    g = torch.Generator().manual_seed(5)
    base = torch.randint(-50, 50, (60, 8), generator=g).float() + offset
    near = base.clone()
    near[:, 3] += 2.0**-10
    found = nearest(base, near, backend=backend)
    assert found.indices[:, 0].tolist() == list(range(60))
    torch.testing.assert_close(found.distances, torch.full((60, 1), 2.0**-10))


def test_layouts_no_gradient_and_no_queries(backend: str) -> None:
    x = points(60, 9, torch.float32, 3)
    wide = torch.full((120, 27), torch.nan)
    wide[::2, 1::3] = x
    plain = nearest(x, k=7, backend=backend)
    for view in (wide[::2, 1::3], x.t().contiguous().t(), x.clone().requires_grad_()):
        other = nearest(view, k=7, backend=backend)
        assert torch.equal(plain.indices, other.indices)
        assert torch.equal(plain.distances, other.distances)
        assert not other.distances.requires_grad
    none = nearest(x[:0], x, k=4, backend=backend)
    assert none.distances.shape == none.indices.shape == (0, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_rows_do_not_crash(bad: float, backend: str) -> None:
    x = points(40, 6, torch.float32, 4)
    x[7, 2] = bad
    x[9] = bad
    for refs in (None, x):
        found = nearest(x, refs, k=39, backend=backend)
        assert found.indices.min() >= 0 and found.indices.max() < 40
        assert all(len(set(row.tolist())) == 39 for row in found.indices)


def test_offset_data_keeps_its_digits(backend: str) -> None:
    """Far from the origin, but not so far that pairs count as near and are taken from differences:
    without centring, the cancellation of the norms costs over a hundred units in the last place."""
    g = torch.Generator().manual_seed(3)
    x = 3 + 2 * torch.rand(200, 64, generator=g)
    distances, indices = nearest(x, k=150, backend=backend)
    true = (x.double()[:, None] - x.double()[indices]).norm(dim=2)
    error = ((distances - true) / true).abs().max().item()
    assert error < 5 * torch.finfo(torch.float32).eps
