"""Rows that are near, far from the origin, no numbers, or not there; and the same call twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dmlap_kernels import fused_triplet_loss
from dmlap_kernels.backends.device.families import FAMILIES
from tests.losses import test_degenerate
from tests.losses.cases import Problem, make_problem, usual, variants
from tests.losses.compare import run
from tests.losses.losses_table import LOSSES

EACH = pytest.mark.parametrize("loss", FAMILIES)


def problem_of(loss: str, rows: int = 20) -> Problem:
    refs = "more" if LOSSES[loss].proxies else "self"
    return make_problem(replace(usual(loss, rows=rows, features=8), refs=refs))


@pytest.mark.parametrize(
    "loss", ["triplet_hard", "triplet_semihard", "triplet_all", "margin", "sup_con", "nt_xent"]
)
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_pairs_a_ten_thousandth_apart(loss: str, refs: bool, backend: str) -> None:
    scale = 30.0 if refs else 1.0
    options = variants(loss)[0]
    test_degenerate.test_pairs_a_ten_thousandth_apart(loss, options, refs, scale, backend)


@pytest.mark.parametrize("loss", ["contrastive", "margin", "lifted_structure"])
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_recomputed_pairs_of_many_features(loss: str, refs: bool, backend: str) -> None:
    """More features than a program holds, whose gradients are made panel by panel."""
    options = variants(loss)[0]
    for scale in (1.0, 30.0):
        test_degenerate.test_pairs_a_ten_thousandth_apart(loss, options, refs, scale, backend, 40)


@EACH
@pytest.mark.parametrize("rows", [0, 1])
def test_no_pairs(loss: str, rows: int, backend: str) -> None:
    """Neither anchors nor references, or one row that meets nobody."""
    problem = problem_of(loss)
    problem.x, problem.labels = problem.x[:rows], problem.labels[:rows]
    if problem.y is not None:
        assert problem.ref_labels is not None
        problem.y, problem.ref_labels = problem.y[:0], problem.ref_labels[:0]
    problem.keywords["reduction"] = "mean"
    value, grads = run(LOSSES[loss].fused, problem, backend=backend)
    assert value == 0
    assert all(not grad.any() for grad in grads)


@EACH
def test_no_references(loss: str, backend: str) -> None:
    problem = problem_of(loss)
    problem.y, problem.ref_labels = problem.x[:0], problem.labels[:0]
    value, grads = run(LOSSES[loss].fused, problem, backend=backend)
    assert value == 0
    assert all(not grad.any() for grad in grads)


@EACH
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_embeddings(loss: str, bad: float, backend: str) -> None:
    problem = problem_of(loss)
    problem.x[3, 2] = bad
    call = LOSSES[loss].fused
    value, stats = call(*problem.args(), backend=backend, return_stats=True, **problem.keywords)
    assert not value.isfinite().all()
    count = len(problem.x if problem.y is None or loss == "proxy_anchor" else problem.y)
    for found in (stats.hardest_positive, stats.hardest_negative):
        assert found.min() >= -1 and found.max() < count


@EACH
def test_the_same_twice(loss: str, backend: str) -> None:
    problem = problem_of(loss, 33)
    first, second = (run(LOSSES[loss].fused, problem, backend=backend) for _ in range(2))
    for one, other in zip((first[0], *first[1]), (second[0], *second[1]), strict=True):
        assert torch.equal(one, other)


def test_ties_go_to_the_lower_label_then_the_lower_index(backend: str) -> None:
    x = torch.tensor([[0.0], [1.0], [-1.0], [2.0], [-2.0], [2.0]])
    labels = torch.tensor([1, 1, 1, 3, 2, 2])
    _, stats = fused_triplet_loss(x, labels, backend=backend, return_stats=True)
    assert stats.hardest_positive.tolist() == [1, 2, 1, -1, 5, 4]
    assert stats.hardest_negative.tolist() == [4, 5, 4, 5, 2, 3]


def test_float64_is_refused(backend: str) -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="it computes in float32, got float64"):
        fused_triplet_loss(x, torch.tensor([0, 0, 1, 1]), backend=backend)
