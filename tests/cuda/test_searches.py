"""`nearest` and `hard_classes` on the emulated backend."""

from __future__ import annotations

import pytest
import torch

from dmlap_kernels import hard_classes, nearest
from dmlap_kernels.backends.cuda.cuda_sweeps import CudaSweeps
from tests.cuda import formulas

# Queries, references (None: the queries), k: lists on and off the chip, groups of columns to merge.
SHAPES = [(70, None, 1), (66, 300, 5), (5, 1030, 33), (130, None, 128), (3, 200, 129), (20, 40, 40)]


@pytest.mark.parametrize("queries,references,k", SHAPES)
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_nearest(
    emulated_backend: str, queries: int, references: int | None, k: int, distance: str, order: str
) -> None:
    g = torch.Generator().manual_seed(queries + k)
    q = torch.randn(queries, 11, generator=g)
    r = None if references is None else torch.randn(references, 11, generator=g)
    got = nearest(q, r, k=k, distance=distance, backend=emulated_backend)
    wanted = nearest(
        q.double(), None if r is None else r.double(), k=k, distance=distance, backend="torch"
    )
    torch.testing.assert_close(got.distances.double(), wanted.distances, rtol=1e-5, atol=1e-6)
    swaps = got.indices != wanted.indices  # of references at one distance, up to rounding
    assert swaps.float().mean() < 0.01


@pytest.mark.parametrize("k", [3, 150])
def test_equally_near_columns_come_in_order(sweeps: CudaSweeps, k: int, order: str) -> None:
    sides = formulas.make_sides(9, 200, 4, "sqeuclidean")
    for tensor in (sides.x, sides.y, sides.x_norms, sides.y_norms):
        tensor.zero_()
    sides.y_norms[:7] = 1  # the farthest
    _, columns = sweeps.nearest(sides, k)
    assert columns.tolist() == [list(range(7, 7 + k))] * 9


@pytest.mark.parametrize("rows,classes", [(90, 90), (150, 9), (70, 3)])
def test_hard_classes(emulated_backend: str, rows: int, classes: int) -> None:
    g = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 9, generator=g)
    labels = torch.randperm(rows, generator=g) % classes
    k = min(4, classes - 1)
    got = hard_classes(x, labels, k=k, margin=4.0, backend=emulated_backend)
    wanted = hard_classes(x.double(), labels, k=k, margin=4.0, backend="torch")
    assert got.classes.tolist() == wanted.classes.tolist()
    assert got.neighbors.tolist() == wanted.neighbors.tolist()
    torch.testing.assert_close(got.scores.double(), wanted.scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.distances.double(), wanted.distances, rtol=1e-5, atol=1e-6)
