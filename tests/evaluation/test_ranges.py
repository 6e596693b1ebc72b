"""Embeddings that are not finite are refused; large and small ones are compared all the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dmlap_kernels.evaluation import assign_clusters, clustering_metrics, retrieval_metrics
from dmlap_kernels.evaluation.ranges import check_finite, in_range
from tests.evaluation.test_retrieval import _points

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _queries(x: Tensor) -> object:
    return retrieval_metrics(x, torch.arange(len(x)) % 3)


def _references(x: Tensor) -> object:
    labels = torch.arange(len(x)) % 3
    return retrieval_metrics(torch.zeros_like(x), labels, x, labels)


def _clustered(x: Tensor) -> object:
    return clustering_metrics(x, torch.arange(len(x)) % 3)


def _by_cosine(x: Tensor) -> object:
    return clustering_metrics(x, torch.arange(len(x)) % 3, distance="cosine")


@pytest.mark.parametrize("scale", [1e-20, 1e-200])
def test_short_rows_have_directions_in_float64(scale: float) -> None:
    """Shorter ones than 1e-12 are not normalised to length 1 as they are."""
    x, labels = torch.randn(60, 5, dtype=torch.float64), torch.arange(60) % 6
    for options in ({"distance": "cosine"}, {"normalize": True}):
        truth = retrieval_metrics(x, labels, **options)
        assert retrieval_metrics(x * scale, labels, **options) == truth


def test_metrics_of_tensors_without_data_are_refused() -> None:
    x, labels = torch.empty(6, 2, device="meta"), torch.empty(6, dtype=torch.int64, device="meta")
    for function in (retrieval_metrics, clustering_metrics):
        with pytest.raises(TypeError, match="embeddings must be a tensor with data"):
            function(x, labels)
    with pytest.raises(ValueError, match=r"embeddings must have at least one row, got \(0, 2\)"):
        clustering_metrics(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (_queries, "embeddings"),
        (_references, "ref_embeddings"),
        (_clustered, "embeddings"),
        (_by_cosine, "embeddings"),
        (lambda x: assign_clusters(x, 3), "embeddings"),
    ],
)
def test_rows_that_are_not_finite_are_named(
    call: Callable[[Tensor], object], argument: str, value: float, dtype: torch.dtype
) -> None:
    x = torch.randn(12, 4).to(dtype)
    x[7, 2] = value
    with pytest.raises(ValueError, match=rf"^{argument} must be finite, but row 7 has .*1 of 12"):
        call(x)
    x[2:10, 0] = value
    named = r"rows 2, 3, 4, 5, 6, \.\.\. have NaN or infinite values \(8 of 12 rows\)"
    with pytest.raises(ValueError, match=rf"^{argument} must be finite, but {named}"):
        call(x)


def test_rows_are_counted_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmlap_kernels.evaluation.ranges._ROWS_AT_ONCE", 5)
    x = torch.zeros(18, 2)
    x[[4, 5, 17]] = torch.inf
    with pytest.raises(ValueError, match=r"x must be finite, but rows 4, 5, 17 have .*\(3 of 18"):
        check_finite("x", x)


# Beyond these exponents squares overflow or vanish.
SIZES = {torch.float32: (20, -25, 37, -37), torch.float64: (180, -180, 305), torch.bfloat16: (20,)}


@pytest.mark.parametrize(
    ("dtype", "exponent"), [(dtype, e) for dtype, some in SIZES.items() for e in some]
)
@pytest.mark.parametrize("options", [{}, {"distance": "cosine"}, {"normalize": True}])
def test_neighbours_do_not_depend_on_the_size(
    options: dict, dtype: torch.dtype, exponent: int, backend: str
) -> None:
    x, labels = _points(60, 8, 0)
    y, ref_labels = _points(50, 8, 1)
    x, y = x.to(dtype), y.to(dtype)
    factor = 2.0 ** round(exponent * 3.32193)  # a power of two near that of ten
    for references in ((), (y, ref_labels)):
        scaled = (references[0] * factor, ref_labels) if references else ()
        want = retrieval_metrics(x, labels, *references, backend=backend, **options)
        got = retrieval_metrics(x * factor, labels, *scaled, backend=backend, **options)
        assert got == want


@pytest.mark.parametrize("backend_options", [{"distance": "cosine"}, {"normalize": True}])
def test_directions_of_rows_of_all_sizes(backend_options: dict, backend: str) -> None:
    x, labels = _points(60, 8, 0)
    sizes = 2.0 ** torch.linspace(-110, 110, 60).round()
    want = retrieval_metrics(x, labels, backend=backend, **backend_options)
    got = retrieval_metrics(x * sizes[:, None], labels, backend=backend, **backend_options)
    assert got == want


def test_what_is_in_range_is_left_alone() -> None:
    x, y = torch.randn(5, 3), 1e6 * torch.randn(4, 3)
    for directions in (False, True):
        assert all(
            a is b for a, b in zip(in_range(x, y, directions=directions), (x, y), strict=True)
        )
    zeros = torch.zeros(3, 2)
    assert in_range(zeros, None, directions=True)[0] is zeros
    assert in_range(torch.zeros(0, 2), None, directions=False)[1] is None


CLUSTERS = """
import faiss, torch
from dmlap_kernels.evaluation import assign_clusters, clustering_metrics, retrieval_metrics

faiss.omp_set_num_threads(1)
torch.set_num_threads(1)
random = torch.Generator().manual_seed(0)
labels = torch.arange(60) % 6
x = 50 * torch.eye(6)[labels] + torch.randn(60, 6, generator=random)
want = clustering_metrics(x, labels)
assert want["nmi"] > 0.9
for dtype, factors in (
    (torch.float32, (2.0**67, 2.0**120, 2.0**-90)),
    (torch.float64, (2.0**67, 2.0**900, 2.0**-900)),
    (torch.bfloat16, (2.0**67,)),
):
    for factor in factors:
        scaled = x.to(dtype) * factor
        for options in ({}, {"distance": "cosine"}, {"normalize": True}):
            got = clustering_metrics(scaled, labels, **options)
            assert got["nmi"] > 0.9, (dtype, factor, options, got)
        retrieval_metrics(scaled, labels, clustering=True)
        assert len(assign_clusters(scaled, 6).unique()) == 6
# One row far beyond all others.
x[0] = 3e38
assert len(assign_clusters(x, 2)) == 60
"""


def test_large_values_do_not_end_the_process(tmp_path: Path) -> None:
    """Of infinite distances faiss says abort."""
    pytest.importorskip("faiss")
    pytest.importorskip("sklearn")
    done = subprocess.run(
        [sys.executable, "-c", CLUSTERS], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
