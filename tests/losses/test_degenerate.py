"""Points that coincide, nearly coincide, are no numbers, are zero or make exponents huge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dmlap_kernels import fused_triplet_loss
from tests.losses.cases import Problem, choose_keywords, usual, variants
from tests.losses.compare import compare, run, run_reference, slopes
from tests.losses.losses_table import LOSSES
from tests.losses.test_properties import EACH, EVERY, REFS, Options, of_losses, problem_of


@of_losses(lambda row: "euclidean" in row.distances and not row.drawn)
@REFS
@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["near-origin", "far-from-origin"])
def test_pairs_a_ten_thousandth_apart(
    loss: str, options: Options, refs: bool, scale: float, backend: str, features: int = 16
) -> None:
    """Squared distances from norms alone would lose these distances altogether."""
    if LOSSES[loss].proxies and not refs:
        pytest.skip("proxies are references")
    g = torch.Generator().manual_seed(3)
    centres = scale * torch.randn(20, features, generator=g)
    steps = torch.nn.functional.normalize(torch.randn(20, features, generator=g))
    near = centres + 1e-4 * steps
    labels = torch.arange(20) // 2
    problem = Problem(centres, labels, near, labels, {})
    if not refs:
        problem = Problem(torch.cat([centres, near]), torch.cat([labels, labels]), None, None, {})
    case = replace(usual(loss, distance="euclidean"), options=options)
    names = torch.arange(20)
    lone = Problem(centres, names, near, names + 100 * (names % 2), {})
    for found in (problem, lone):
        found.keywords = choose_keywords(case, found)
        if loss == "contrastive":
            found.keywords["pos_margin"] = 0.0
        compare(loss, found, backend)


@of_losses(lambda row: row.name != "triplet_easy_positive_semihard")
@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_duplicated_points_have_no_gradient_between_them(
    loss: str, options: Options, distance: str, dtype: torch.dtype, backend: str
) -> None:
    """All points coincide: every distance is 0, so is every gradient, and nothing is NaN.

    Left out is a mining without a term where no negative is farther, which rounding decides.
    """
    row = LOSSES[loss]
    if distance not in (row.distances or (row.default_distance,)):
        pytest.skip(f"{loss} does not accept {distance}")
    keywords = problem_of(loss, options, True, distance=distance).keywords
    x = torch.tensor([[0.3, -1.7, 0.1, 4.0, 0.7]], dtype=dtype).repeat(12, 1)
    labels = torch.arange(12) % 3
    problems = [Problem(x, labels, x.clone()[:9], labels[:9], keywords)]
    if not row.proxies:
        problems.append(Problem(x, labels, None, None, keywords))
    for problem in problems:
        for normalize in (False, True) if row.distances else (False,):
            if row.distances:
                problem.keywords = keywords | {"normalize": normalize}
            value, grads = run(row.fused, problem, backend=backend)
            truth, _ = run_reference(loss, problem, torch.float64)
            steepness = max(slopes(loss, problem))
            assert abs(value.item() - truth.item()) < 1e-5 * max(1.0, abs(truth.item()), steepness)
            allowed = 5e-3 if dtype == torch.float16 else 1e-6
            for grad in grads[: 2 if problem.y is not None else 1]:
                assert torch.isfinite(grad).all()
                assert grad.abs().max() < allowed * max(1.0, steepness)


@of_losses(lambda row: not row.drawn)
@REFS
def test_some_duplicates_among_other_points(
    loss: str, options: Options, refs: bool, backend: str
) -> None:
    """Each class holds a point three times, and two classes share a point."""
    problem = problem_of(loss, options, refs, dtype=torch.float64)
    g = torch.Generator().manual_seed(8)
    points = torch.randn(12, 10, generator=g, dtype=torch.float64)
    more = torch.randn(5, 10, generator=g, dtype=torch.float64)
    x = torch.cat([points, points, points, points[:2], more])
    names = torch.arange(12) % 6
    labels = torch.cat([names, names, names, names[:2] + 1, torch.arange(5)])
    problem = Problem(x, labels, None, None, problem.keywords)
    if refs:
        problem.y, problem.ref_labels = x.flip(0), labels.flip(0)
    value, grads = run(LOSSES[loss].fused, problem, backend=backend)
    truth, true_grads = run_reference(loss, problem, torch.float64)
    torch.testing.assert_close(value, truth)
    for grad, true in zip(grads, true_grads, strict=True):
        assert torch.isfinite(grad).all()
        # Ties leave the choice of a triplet's gradient open.
        if not loss.startswith("triplet"):
            torch.testing.assert_close(grad, true, rtol=1e-6, atol=1e-8 * true.abs().max() + 1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@REFS
@EVERY
def test_non_finite_embeddings_give_a_non_finite_loss(
    loss: str, options: Options, refs: bool, bad: float, backend: str
) -> None:
    """In the first row with a positive: not every row is part of a term of every loss."""
    problem = problem_of(loss, options, refs)
    others = problem.labels if problem.ref_labels is None else problem.ref_labels
    equal = problem.labels[:, None] == others
    if not refs:
        equal.fill_diagonal_(False)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for side in (0, 1) if refs else (0,):
            pair = (problem.x, problem.y)
            rows = [None if t is None else t.to(dtype, copy=True) for t in pair]
            rows[side][int(equal.any(1 - side).nonzero()[0, 0]), 3] = bad
            x = rows[0].requires_grad_()
            for normalize in (False, True) if LOSSES[loss].distances else (False,):
                keywords = dict(problem.keywords)
                if LOSSES[loss].distances:
                    keywords["normalize"] = normalize
                arguments = (x, problem.labels, rows[1], problem.ref_labels)
                value, stats = LOSSES[loss].fused(
                    *arguments, backend=backend, return_stats="class_scores", **keywords
                )
                assert not torch.isfinite(value), f"{side} {dtype} {normalize}"
                value.backward()
                count = len(problem.x if loss == "proxy_anchor" else others)
                for index in (stats.hardest_positive, stats.hardest_negative):
                    assert index.min() >= -1 and index.max() < count


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_all_rows_non_finite(loss: str, options: Options, dtype: torch.dtype, backend: str) -> None:
    row = LOSSES[loss]
    keywords = problem_of(loss, options, True).keywords
    labels = torch.arange(20) % 4
    for distance in row.distances or (None,):
        x = torch.full((20, 4), torch.nan, dtype=dtype, requires_grad=True)
        proxies = (x.detach()[:8], labels[:8]) if row.proxies else ()
        chosen = keywords if distance is None else keywords | {"distance": distance}
        value = row.fused(x, labels, *proxies, backend=backend, **chosen)
        assert torch.isnan(value), distance
        value.backward()


BY_ORDER = ("triplet_semihard", "triplet_easy_positive_semihard", "triplet_distance_weighted")


@of_losses(lambda row: row.name not in BY_ORDER)
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_zero_rows_are_normalised_as_pytorch_does(
    loss: str, options: Options, distance: str, backend: str
) -> None:
    """A zero row stays zero: its cosine with everything is 0, its cosine distance 1.

    Mining by order or by weight is left out: everything is equally far from a zero row, and
    rounding decides.
    """
    row = LOSSES[loss]
    if distance not in (row.distances or (row.default_distance,)):
        pytest.skip(f"{loss} does not accept {distance}")
    changes = {"normalize": True} if row.distances else {}
    problem = problem_of(loss, options, row.proxies, distance=distance, **changes)
    problem.x[[2, 5]] = 0
    truth, _ = run_reference(loss, problem, torch.float64)
    value, grads = run(row.fused, problem, backend=backend)
    torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=1e-5)
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("loss", [name for name, row in LOSSES.items() if row.extreme])
@REFS
def test_large_exponents_do_not_overflow(loss: str, refs: bool, backend: str) -> None:
    problem = problem_of(loss, None, refs)
    problem.keywords |= LOSSES[loss].extreme
    assert_finite_and_right(loss, problem, backend)


@pytest.mark.parametrize("loss", [n for n, row in LOSSES.items() if "dot" in row.distances])
@REFS
def test_long_embeddings_with_inner_products(loss: str, refs: bool, backend: str) -> None:
    """Products of 1e8 in the exponents."""
    problem = problem_of(loss, None, refs, distance="dot")
    problem.x = problem.x * 1e4
    problem.y = None if problem.y is None else problem.y * 1e4
    assert_finite_and_right(loss, problem, backend)


def assert_finite_and_right(loss: str, problem: Problem, backend: str) -> None:
    value, grads = run(LOSSES[loss].fused, problem, backend=backend)
    truth, true_grads = run_reference(loss, problem, torch.float64)
    torch.testing.assert_close(value.double(), truth, rtol=1e-4, atol=1e-6)
    for grad, true in zip(grads, true_grads, strict=True):
        assert torch.isfinite(grad).all()
        assert grad.any() == true.any()


@EACH
def test_far_points_do_not_overflow(loss: str, backend: str) -> None:
    """Points 1e4 times as far apart, at the options of the near ones."""
    problem = problem_of(loss, variants(loss)[0], True)
    problem.x, problem.y = problem.x * 1e4, problem.y * 1e4
    value, grads = run(LOSSES[loss].fused, problem, backend=backend)
    truth, _ = run_reference(loss, problem, torch.float64)
    torch.testing.assert_close(value.double(), truth, rtol=1e-4, atol=1e-6)
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_hard_distances_have_all_their_digits_in_tight_clusters(backend: str) -> None:
    """The chosen pairs are measured by differences: from norms and products they would be off by
    some hundred units in the last place here."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 64, generator=g).repeat_interleave(40, 0)
    x = centres + 0.15 * torch.randn(160, 64, generator=g)
    labels = torch.arange(160) // 2
    options: dict[str, Any] = {"margin": 5.0, "reduction": "none", "backend": backend}
    ours, true = (fused_triplet_loss(rows, labels, **options) for rows in (x, x.double()))
    assert (ours - true).abs().max() < 10 * torch.finfo(torch.float32).eps


@REFS
def test_original_lifted_structure_without_negatives(refs: bool, backend: str) -> None:
    """1511.06452, eq. 4: the logarithm of an empty sum is -inf, and its hinge 0."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, generator=g)
    one, two = torch.zeros(6, dtype=torch.int64), torch.tensor([0, 0, 0, 0, 0, 1])
    for labels in (one, two):
        y, ref_labels = (x + 1, one) if refs else (None, None)
        for reduction in ("mean", "sum", "mean_nonzero", "none"):
            keywords = {"reduction": reduction, "pos_margin": 0.1, "neg_margin": 2.0}
            problem = Problem(x, labels, y, ref_labels, keywords)
            value, grads = run(LOSSES["lifted_structure_original"].fused, problem, backend=backend)
            truth, true_grads = run_reference("lifted_structure_original", problem, torch.float64)
            torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=1e-6)
            for grad, true in zip(grads, true_grads, strict=True):
                torch.testing.assert_close(grad.double(), true, rtol=1e-4, atol=1e-6)
            if labels is one:
                assert not value.any() and not any(grad.any() for grad in grads)
