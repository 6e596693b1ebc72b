"""Rows too short to be normalised, and rows whose squares are no float32 any more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import dmlap_kernels
from dmlap_kernels import fused_n_pairs_loss
from tests import reference
from tests.losses.cases import Problem, far_from_kinks, make_problem, usual, variants
from tests.losses.compare import run, run_reference
from tests.losses.losses_table import LOSSES

SIDES = pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])


def normalised() -> list[Any]:
    """Every loss with unit rows: (loss, options, distance)."""
    found = []
    for loss, row in LOSSES.items():
        for distance in row.distances or (row.default_distance,):
            for options in variants(loss):
                name = f"{loss}-{distance}-{'-'.join(str(v) for _, v in options)}"
                found.append(pytest.param(loss, options, distance, id=name))
    return found


NORMALISED = pytest.mark.parametrize(("loss", "options", "distance"), normalised())


def unit_problem(
    loss: str, options: Any, distance: str, refs: bool, dtype: torch.dtype, lengths: Tensor
) -> Problem:
    """Rows of these lengths, over and over again, that keep away from kinks."""
    row = LOSSES[loss]
    if row.proxies and not refs:
        pytest.skip("proxies are references")
    case = usual(loss, rows=26, features=10, refs="more" if refs else "self", dtype=dtype)
    case = replace(case, options=options, distance=distance, normalize=bool(row.distances))
    for shift in range(40):
        problem = make_problem(case)
        rows = [None, None]
        for side, t in enumerate((problem.x, problem.y)):
            if t is not None:
                at = (torch.arange(len(t)) + shift) % len(lengths)
                unit = torch.nn.functional.normalize(t.double()).roll(shift, 0)
                rows[side] = (unit * lengths[at, None]).to(dtype)
        problem = replace(problem, x=rows[0], y=rows[1])
        if far_from_kinks(loss, problem):
            return problem
    pytest.skip("every draw has a pair within rounding of a kink")


def assert_right(loss: str, problem: Problem, backend: str, tolerance: float) -> None:
    """Value and gradient; rows of every length are held against others of their length."""
    value, gradients = run(LOSSES[loss].fused, problem, backend=backend)
    truth, true_gradients = run_reference(loss, problem, torch.float64)
    torch.testing.assert_close(value.double(), truth, rtol=tolerance, atol=tolerance)
    sides = [t for t in (problem.x, problem.y) if t is not None]
    for rows, mine, true in zip(sides, gradients, true_gradients, strict=False):
        length = rows.double().norm(dim=1, keepdim=True).clamp_min(1e-12)
        error = ((mine.double() - true) * length).abs().max()
        largest = (true * length).abs().max()
        assert error <= 20 * tolerance * max(largest, 1e-30), f"{error} of {largest}"


@NORMALISED
@SIDES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_too_short_to_be_normalised(
    loss: str, options: Any, distance: str, refs: bool, dtype: torch.dtype, backend: str
) -> None:
    """x / 1e-12 as in `torch.nn.functional.normalize`, whose gradient is that of a division."""
    lengths = torch.tensor([1.0, 7e-13, 3.0, 2e-13, 9e-13], dtype=torch.float64)
    problem = unit_problem(loss, options, distance, refs, dtype, lengths)
    assert_right(loss, problem, backend, 1e-4 if dtype == torch.float32 else 1e-9)


@NORMALISED
@SIDES
def test_rows_of_any_length_are_normalised(
    loss: str, options: Any, distance: str, refs: bool, native: str
) -> None:
    """Their squares are no float32: too large, or 0."""
    lengths = torch.tensor([1e19, 1.0, 1e30, 3e38, 1e-11], dtype=torch.float64)
    problem = unit_problem(loss, options, distance, refs, torch.float32, lengths)
    assert_right(loss, problem, native, 1e-4)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("scale", [1e19, 1e30])
@pytest.mark.parametrize("loss", LOSSES)
@SIDES
def test_long_rows(loss: str, refs: bool, scale: float, reduction: str, native: str) -> None:
    """Not normalised: where value and gradient are float32 numbers, though squares are none."""
    row = LOSSES[loss]
    if row.proxies and not refs:
        pytest.skip("proxies are references")
    for distance in row.distances or (row.default_distance,):
        case = usual(loss, rows=26, features=10, refs="more" if refs else "self", normalize=False)
        problem = make_problem(replace(case, distance=distance, reduction=reduction))
        problem.x = problem.x * scale
        problem.y = None if problem.y is None else problem.y * scale
        value, gradients = run(row.fused, problem, backend=native)
        truth, true_gradients = run_reference(loss, problem, torch.float64)
        for mine, true in zip([value, *gradients], [truth, *true_gradients], strict=True):
            rounded = true.to(mine.dtype)
            if rounded.isfinite().all():
                atol = 1e-5 * float(rounded.abs().max())
                torch.testing.assert_close(mine, rounded, rtol=1e-4, atol=atol)


def test_statistics_of_long_rows(native: str) -> None:
    problem = make_problem(usual("contrastive", rows=26, features=10))
    x = problem.x * 1e20
    _, stats = dmlap_kernels.fused_contrastive_loss(
        x, problem.labels, normalize=False, return_stats="class_scores", backend=native
    )
    keywords = {"distance": "euclidean", "normalize": False}
    truth = reference.pair_stats("contrastive", x.double(), problem.labels, **keywords)
    for name in ("mean_positive_distance", "mean_negative_distance", "violation"):
        mine = getattr(stats, name).double()
        torch.testing.assert_close(mine, getattr(truth, name), rtol=1e-5, atol=0.0)
    for name in ("hardest_positive", "hardest_negative", "constraints", "violated"):
        assert torch.equal(getattr(stats, name), torch.as_tensor(getattr(truth, name)))
    scores, true = stats.class_scores, truth.class_scores
    assert scores is not None
    torch.testing.assert_close(scores.min_distance.double(), true.min_distance, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("scale", [1e19, 1e30])
def test_search_among_long_rows(scale: float, normalize: bool, native: str) -> None:
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 8, generator=g) * scale
    labels = torch.arange(60) // 3
    found = dmlap_kernels.nearest(rows, k=5, normalize=normalize, backend=native)
    distances, indices = reference.nearest(rows.double(), k=5, normalize=normalize)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.distances.double(), distances, rtol=1e-5, atol=0.0)
    for names in (labels, torch.arange(60)):
        options = {"margin": 3 * scale, "normalize": normalize}
        hard = dmlap_kernels.hard_classes(rows, names, 4, backend=native, **options)
        _, neighbors, scores, low = reference.hard_classes(rows.double(), names, 4, **options)
        assert torch.equal(hard.neighbors, neighbors)
        torch.testing.assert_close(hard.scores.double(), scores, rtol=1e-5, atol=0.0)
        torch.testing.assert_close(hard.distances.double(), low, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("distance", ["cosine", "dot"])
def test_n_pairs_of_long_rows(distance: str, native: str) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 8, generator=g) * 1e19
    labels = torch.arange(20) // 2
    options = {"distance": distance, "normalize": True}
    value = fused_n_pairs_loss(x, labels, backend=native, **options)
    truth = reference.loss("n_pairs", x.double(), labels, reduction="mean", **options)
    torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=1e-6)


def test_rows_that_are_not_finite_stay_so(native: str) -> None:
    """Beside rows so long that their squares overflow."""
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)) * 1e20
    x[3, 1] = torch.nan
    loss = dmlap_kernels.fused_contrastive_loss(x.requires_grad_(), torch.arange(12) // 3)
    assert loss.isnan()
    loss.backward()
    assert x.grad.isnan().all()
