"""Properties that hold whatever the formula: invariances, empty sets, upstream gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmlap_kernels import fused_triplet_loss
from tests import reference
from tests.losses.cases import Problem, make_problem, usual, variants
from tests.losses.compare import compare, compare_stats, run, run_reference
from tests.losses.losses_table import LOSSES

Options = tuple[tuple[str, Any], ...]
CONFIGURATIONS = [(loss, options) for loss in LOSSES for options in variants(loss)]


def of_losses(keep: Any) -> Any:
    """Parametrises by loss and options, of the rows that ``keep`` accepts."""
    kept = [(loss, options) for loss, options in CONFIGURATIONS if keep(LOSSES[loss])]
    ids = [f"{loss}-{'-'.join(str(v) for _, v in options) or 'plain'}" for loss, options in kept]
    return pytest.mark.parametrize(("loss", "options"), kept, ids=ids)


EVERY = of_losses(lambda row: True)
EACH = pytest.mark.parametrize("loss", LOSSES)
TRANSLATED = of_losses(lambda row: "euclidean" in row.distances)
REFS = pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])


def draw(rows: int = 45, features: int = 12, refs: bool = False, **keywords: Any) -> Problem:
    """A problem of seven classes for a loss over distances."""
    g = torch.Generator().manual_seed(rows + features)
    x = torch.randn(rows, features, generator=g)
    labels = torch.randint(0, 7, (rows,), generator=g)
    shared = {"distance": "euclidean", "normalize": False, "reduction": "mean"}
    if not refs:
        return Problem(x, labels, None, None, shared | keywords)
    y = torch.randn(rows + 9, features, generator=g)
    ref_labels = torch.randint(0, 7, (rows + 9,), generator=g)
    return Problem(x, labels, y, ref_labels, shared | keywords)


def problem_of(
    loss: str,
    options: Options | None = None,
    refs: bool = False,
    **changes: Any,
) -> Problem:
    """45 rows of 12 features in small classes; proxies, where the loss has them, as references.

    Skips where the loss has no self case.
    """
    if LOSSES[loss].proxies and not refs:
        pytest.skip("proxies are references")
    changes = {"rows": 45, "features": 12, "refs": "more" if refs else "self"} | changes
    case = usual(loss, **changes)
    return make_problem(case if options is None else replace(case, options=options))


def assert_same(
    loss: str,
    problem: Problem,
    changed: Problem,
    backend: str,
    rows: Tensor | None = None,
    keep: int = 2,
) -> None:
    """Both problems have one value; gradients match on the first features, row by row.

    ``keep`` is the number of gradients that are compared.
    """
    value, grads = run(LOSSES[loss].fused, problem, backend=backend)
    other, other_grads = run(LOSSES[loss].fused, changed, backend=backend)
    assert value > 0
    torch.testing.assert_close(other, value, rtol=1e-5, atol=1e-6)
    for index, (mine, theirs) in enumerate(zip(grads[:keep], other_grads[:keep], strict=True)):
        if rows is not None and index == 0:
            mine = mine[rows]
        if mine.ndim == 2:
            theirs = theirs[:, : mine.shape[1]]
        atol = 1e-6 + 1e-5 * mine.abs().max().item()
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=atol)


@TRANSLATED
@REFS
@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean"])
@pytest.mark.parametrize("offset", [3.0, 1000.0])
def test_translation_of_all_points(
    loss: str, options: Options, refs: bool, distance: str, offset: float, backend: str
) -> None:
    """Points on a grid of 2^-10 can be moved by 1,000 without rounding."""
    if LOSSES[loss].drawn:
        pytest.skip("is mined among unit rows")
    problem = problem_of(loss, options, refs, distance=distance)
    problem.x = (problem.x * 1024).round() / 1024
    problem.y = None if problem.y is None else (problem.y * 1024).round() / 1024
    moved_y = None if problem.y is None else problem.y + offset
    moved = replace(problem, x=problem.x + offset, y=moved_y)
    assert torch.equal(moved.x - offset, problem.x)
    assert_same(loss, problem, moved, backend)
    compare(loss, moved, backend)


@of_losses(lambda row: not row.ordered)
@REFS
def test_permutation_of_rows(loss: str, options: Options, refs: bool, backend: str) -> None:
    """Not where rows are numbered for draws, or the first rows of a class are its pair."""
    problem = problem_of(loss, options, refs)
    order = torch.randperm(45, generator=torch.Generator().manual_seed(1))
    shuffled = replace(problem, x=problem.x[order], labels=problem.labels[order])
    assert_same(loss, problem, shuffled, backend, rows=order)


@EVERY
@REFS
def test_relabelling(loss: str, options: Options, refs: bool, backend: str) -> None:
    """Any names; in the same order where the order of labels decides about draws.

    A beta for each label moves along.
    """
    problem = problem_of(loss, options, refs)
    count = int(max(problem.labels.max(), 0 if not refs else problem.ref_labels.max())) + 1
    names = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    if LOSSES[loss].drawn:
        names = torch.arange(count) * 2**57 - 2**61
    keywords = dict(problem.keywords)
    beta = keywords.get("beta")
    if isinstance(beta, Tensor) and beta.numel() > 1:
        moved = torch.zeros(count)
        moved[names[: len(beta)]] = beta
        keywords["beta"] = moved
    elif not LOSSES[loss].drawn:
        names = names * 2**50 - 2**52
    ref_labels = None if problem.ref_labels is None else names[problem.ref_labels]
    renamed = replace(
        problem, labels=names[problem.labels], ref_labels=ref_labels, keywords=keywords
    )
    assert_same(loss, problem, renamed, backend, keep=1 + refs)


@of_losses(lambda row: not row.drawn)
@REFS
@pytest.mark.parametrize("extra", [1, 20])
def test_padding_features_with_zeros(
    loss: str, options: Options, refs: bool, extra: int, backend: str
) -> None:
    problem = problem_of(loss, options, refs)
    pad = torch.nn.functional.pad
    y = None if problem.y is None else pad(problem.y, (0, extra))
    assert_same(loss, problem, replace(problem, x=pad(problem.x, (0, extra)), y=y), backend)


@of_losses(lambda row: row.sum_over_references)
def test_splitting_references_adds_up(loss: str, options: Options, backend: str) -> None:
    problem = problem_of(loss, options, True, reduction="sum")
    fused = LOSSES[loss].fused
    whole, (gx, gy) = run(fused, problem, backend=backend)
    total, gx_sum, gy_parts = torch.zeros(()), torch.zeros_like(gx), []
    for part in (slice(0, 20), slice(20, 21), slice(21, None)):
        piece = replace(problem, y=problem.y[part], ref_labels=problem.ref_labels[part])
        value, (gx_part, gy_part) = run(fused, piece, backend=backend)
        total, gx_sum = total + value, gx_sum + gx_part
        gy_parts.append(gy_part)
    torch.testing.assert_close(total, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gx_sum, gx, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat(gy_parts), gy, rtol=1e-4, atol=1e-4)


def test_splitting_references_keeps_the_hardest(backend: str) -> None:
    problem = draw(refs=True)
    options = {"backend": backend, "return_stats": True}
    _, whole = fused_triplet_loss(*problem.args(), **options)
    d = reference.pair_distances(problem.x.double(), problem.y.double())
    rows = torch.arange(45)
    best = torch.full((45,), torch.inf, dtype=torch.float64)
    for part in (slice(0, 20), slice(20, 21), slice(21, None)):
        _, stats = fused_triplet_loss(
            problem.x, problem.labels, problem.y[part], problem.ref_labels[part], **options
        )
        found = d[rows, stats.hardest_negative.clamp_min(0) + (part.start or 0)]
        best = torch.minimum(best, torch.where(stats.hardest_negative >= 0, found, torch.inf))
    assert torch.equal(best, d[rows, whole.hardest_negative])


@of_losses(lambda row: not row.proxies)
def test_references_equal_to_the_batch_add_the_pairs_of_a_row_with_itself(
    loss: str, options: Options, backend: str
) -> None:
    """With references every pair exists, also when both tensors are one object."""
    problem = problem_of(loss, options, False, dtype=torch.float64)
    fused = LOSSES[loss].fused
    alone = fused(*problem.args(), backend=backend, **problem.keywords)
    problem.y, problem.ref_labels = problem.x, problem.labels
    truth = LOSSES[loss].reference(*problem.args(), **problem.keywords)
    ours = fused(*problem.args(), backend=backend, **problem.keywords)
    torch.testing.assert_close(ours, truth, rtol=1e-7, atol=1e-7)
    # The farthest positive is never the row itself, and the miner does not keep it; a sharp sigmoid
    # has no term left for it.
    if loss not in ("triplet_hard", "siglip") and not dict(options).get("mined"):
        assert abs(alone - ours) > 1e-6


@EVERY
@pytest.mark.parametrize("reduction", ["mean", "mean_nonzero", "sum", "none"])
@pytest.mark.parametrize("case", ["no-rows", "no-references", "one-row", "neither"])
def test_no_pairs_is_zero_and_attached(
    loss: str, options: Options, reduction: str, case: str, backend: str
) -> None:
    """Anchors without pairs have terms, of zero, in some losses; the reference counts them."""
    row = LOSSES[loss]
    rows = {"no-rows": 0, "no-references": 5, "one-row": 1, "neither": 0}[case]
    refs = {"no-rows": 4, "no-references": 0, "one-row": None, "neither": 0}[case]
    if row.proxies and refs is None:
        pytest.skip("proxies are references")
    usual_problem = make_problem(replace(usual(loss, reduction=reduction), options=options))
    x = torch.randn(rows, 3, requires_grad=True)
    y = None if refs is None else torch.randn(refs, 3, requires_grad=True)
    ref_labels = None if refs is None else torch.zeros(refs, dtype=torch.int64)
    arguments = (x, torch.zeros(rows, dtype=torch.int64), y, ref_labels)
    value, stats = row.fused(
        *arguments, backend=backend, return_stats="class_scores", **usual_problem.keywords
    )
    anchors = refs if loss == "proxy_anchor" else rows
    assert value.shape == ((anchors,) if reduction == "none" else ())
    assert value.sum() == 0
    assert value.requires_grad
    value.sum().backward()
    assert x.grad.shape == x.shape and not x.grad.any()
    if y is not None:
        assert y.grad.shape == y.shape and not y.grad.any()
    truth = row.stats(*arguments, **usual_problem.keywords)
    assert stats.constraints == truth.constraints
    assert stats.violated == 0 and stats.violation == 0
    assert torch.isnan(stats.mean_positive_distance)
    assert torch.isnan(stats.mean_negative_distance)
    assert stats.hardest_positive.tolist() == [-1] * anchors
    assert stats.class_scores.classes.numel() == min(anchors, 1)


@EACH
@pytest.mark.parametrize("pattern", ["same", "different"])
@pytest.mark.parametrize("reduction", ["mean", "mean_nonzero", "sum", "none"])
def test_one_sided_label_sets(loss: str, pattern: str, reduction: str, backend: str) -> None:
    options = variants(loss)[-1]
    proxies = LOSSES[loss].proxies
    changes = {"rows": 20, "features": 5, "pattern": pattern, "reduction": reduction}
    problem = problem_of(loss, options, proxies, **changes)
    compare(loss, problem, backend)
    compare_stats(loss, problem, backend)
    if loss.startswith("triplet"):
        value, (grad,) = run(LOSSES[loss].fused, problem, backend=backend)
        assert not value.any() and not grad.any()


@EVERY
def test_gradient_flows_only_where_it_is_asked_for(
    loss: str, options: Options, backend: str
) -> None:
    problem = problem_of(loss, options, True)
    fused = LOSSES[loss].fused
    _, (gx, gy, *_) = run(fused, problem, backend=backend)
    for wants_x, wants_y in ((True, False), (False, True), (False, False)):
        x = problem.x.clone().requires_grad_(wants_x)
        y = problem.y.clone().requires_grad_(wants_y)
        value = fused(x, problem.labels, y, problem.ref_labels, backend=backend, **problem.keywords)
        assert value.requires_grad == (wants_x or wants_y)
        if value.requires_grad:
            value.backward()
        for tensor, wanted, truth in ((x, wants_x, gx), (y, wants_y, gy)):
            assert (tensor.grad is not None) == wanted
            if wanted:
                assert torch.equal(tensor.grad, truth)


@EVERY
@REFS
def test_upstream_gradient_scales_and_selects_rows(
    loss: str, options: Options, refs: bool, backend: str
) -> None:
    """reduction="none" is linear in the upstream gradient, zeros and negative ones included."""
    problem = problem_of(loss, options, refs, reduction="none")
    fused = LOSSES[loss].fused
    anchors = len(problem.y if loss == "proxy_anchor" else problem.x)
    g = torch.Generator().manual_seed(2)
    u, v = torch.randn(anchors, generator=g), torch.randn(anchors, generator=g)
    u[::3] = 0
    _, grads_u = run(fused, problem, u, backend=backend)
    _, grads_v = run(fused, problem, v, backend=backend)
    _, grads = run(fused, problem, 2 * u - 3 * v, backend=backend)
    for a, b, both in zip(grads_u, grads_v, grads, strict=True):
        atol = 1e-5 * max(1.0, both.abs().max().item())
        torch.testing.assert_close(2 * a - 3 * b, both, rtol=1e-4, atol=atol)
    one = torch.zeros(anchors)
    one[7] = 1.0
    _, truths = run_reference(loss, problem, torch.float64, one)
    _, grads = run(fused, problem, one, backend=backend)
    for mine, true in zip(grads, truths, strict=True):
        atol = 1e-5 * max(1.0, true.abs().max().item())
        torch.testing.assert_close(mine.double(), true, rtol=1e-4, atol=atol)


@EVERY
def test_inputs_are_left_alone_and_results_do_not_share_memory(
    loss: str, options: Options, backend: str
) -> None:
    problem = problem_of(loss, options, True, reduction="none")
    fused = LOSSES[loss].fused
    before = [tensor.clone() for tensor in problem.args()]
    first, grads = run(fused, problem, backend=backend)
    kept = [first.clone(), *(grad.clone() for grad in grads)]
    run(fused, problem_of(loss, options, True, reduction="none", rows=60), backend=backend)
    for now, then in zip(problem.args(), before, strict=True):
        assert torch.equal(now, then)
    for now, then in zip((first, *grads), kept, strict=True):
        assert torch.equal(now, then)


def test_ties_go_to_the_lower_label_then_the_lower_index(backend: str) -> None:
    """Equal rows have equal distances, whatever the rounding."""
    g = torch.Generator().manual_seed(4)
    anchor, negative, positive = torch.randn(3, 1, 11, generator=g)
    x = torch.cat([anchor, positive, negative, negative, negative, positive, negative])
    labels = torch.tensor([5, 5, 9, 3, 3, 5, -2])
    for order in (torch.arange(7), torch.tensor([0, 5, 4, 6, 1, 3, 2])):
        rows, names = x[order], labels[order]
        _, stats = fused_triplet_loss(rows, names, backend=backend, return_stats=True)
        expected_p = next(i for i in range(1, 7) if names[i] == 5)
        expected_n = next(i for i in range(7) if names[i] == -2)
        assert stats.hardest_positive[0] == expected_p
        assert stats.hardest_negative[0] == expected_n
        names = torch.where(names == -2, 4, names)
        _, stats = fused_triplet_loss(rows, names, backend=backend, return_stats=True)
        assert stats.hardest_negative[0] == next(i for i in range(7) if names[i] == 3)
        _, stats = fused_triplet_loss(
            anchor, torch.tensor([5]), rows, names, backend=backend, return_stats=True
        )
        assert stats.hardest_negative[0] == next(i for i in range(7) if names[i] == 3)
        assert stats.hardest_positive[0] == next(
            i for i in range(7) if names[i] == 5 and torch.equal(rows[i], positive[0])
        )
