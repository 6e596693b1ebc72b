"""Properties that hold whatever the formula: invariances, empty sets, degenerate points."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dmlap_kernels import fused_contrastive_loss, fused_triplet_loss
from tests import reference
from tests.losses.cases import Case, Problem, make_problem
from tests.losses.compare import FUSED, REFERENCE, compare, compare_stats, run

CONFIGURATIONS: list[tuple[str, dict[str, Any]]] = [
    ("triplet", {"margin": 0.4}),
    ("triplet", {"margin": 0.4, "swap": True, "smooth": True}),
    ("contrastive", {"pos_margin": 0.5, "neg_margin": 4.0}),
    ("contrastive", {"neg_margin": 4.0, "squared": True}),
]
EVERY = pytest.mark.parametrize(
    ("loss", "options"), CONFIGURATIONS, ids=["hard", "hard-swap-smooth", "pairs", "pairs-squared"]
)
REFS = pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])


def draw(rows: int = 45, features: int = 12, refs: bool = False, **keywords: Any) -> Problem:
    g = torch.Generator().manual_seed(rows + features)
    x = torch.randn(rows, features, generator=g)
    labels = torch.randint(0, 7, (rows,), generator=g)
    shared = {"distance": "euclidean", "normalize": False, "reduction": "mean"}
    if not refs:
        return Problem(x, labels, None, None, shared | keywords)
    y = torch.randn(rows + 9, features, generator=g)
    ref_labels = torch.randint(0, 7, (rows + 9,), generator=g)
    return Problem(x, labels, y, ref_labels, shared | keywords)


def assert_same(
    loss: str, problem: Problem, changed: Problem, backend: str, rows: Tensor | None = None
) -> None:
    """Both problems have one value; gradients match on the first features, row by row."""
    value, grads = run(FUSED[loss], problem, None, backend=backend)
    other, other_grads = run(FUSED[loss], changed, None, backend=backend)
    assert value > 0
    torch.testing.assert_close(other, value, rtol=1e-5, atol=1e-6)
    for index, (mine, theirs) in enumerate(zip(grads, other_grads, strict=True)):
        if rows is not None and index == 0:
            mine = mine[rows]
        torch.testing.assert_close(theirs[:, : mine.shape[1]], mine, rtol=1e-3, atol=1e-6)


@EVERY
@REFS
@pytest.mark.parametrize("offset", [3.0, 1000.0])
def test_translation_of_all_points(
    loss: str, options: dict[str, Any], refs: bool, offset: float, backend: str
) -> None:
    """Points on a grid of 2^-10 can be moved by 1,000 without rounding."""
    problem = draw(refs=refs, **options)
    problem.x = (problem.x * 1024).round() / 1024
    problem.y = None if problem.y is None else (problem.y * 1024).round() / 1024
    moved_y = None if problem.y is None else problem.y + offset
    moved = Problem(
        problem.x + offset, problem.labels, moved_y, problem.ref_labels, problem.keywords
    )
    assert torch.equal(moved.x - offset, problem.x)
    assert_same(loss, problem, moved, backend)
    compare(loss, moved, backend)


@EVERY
@REFS
def test_permutation_of_rows(loss: str, options: dict[str, Any], refs: bool, backend: str) -> None:
    problem = draw(refs=refs, **options)
    order = torch.randperm(45, generator=torch.Generator().manual_seed(1))
    shuffled = Problem(
        problem.x[order], problem.labels[order], problem.y, problem.ref_labels, problem.keywords
    )
    assert_same(loss, problem, shuffled, backend, rows=order)


@EVERY
@REFS
def test_relabelling(loss: str, options: dict[str, Any], refs: bool, backend: str) -> None:
    problem = draw(refs=refs, **options)
    names = torch.tensor([5, -3, 2**62, 0, -(2**62), 77, 6])
    ref_labels = None if problem.ref_labels is None else names[problem.ref_labels]
    renamed = Problem(problem.x, names[problem.labels], problem.y, ref_labels, problem.keywords)
    assert_same(loss, problem, renamed, backend)


@EVERY
@REFS
@pytest.mark.parametrize("extra", [1, 20])
def test_padding_features_with_zeros(
    loss: str, options: dict[str, Any], refs: bool, extra: int, backend: str
) -> None:
    problem = draw(refs=refs, **options)
    pad = torch.nn.functional.pad
    y = None if problem.y is None else pad(problem.y, (0, extra))
    padded = Problem(
        pad(problem.x, (0, extra)), problem.labels, y, problem.ref_labels, problem.keywords
    )
    assert_same(loss, problem, padded, backend)


@pytest.mark.parametrize("squared", [False, True])
def test_splitting_references_adds_up(squared: bool, backend: str) -> None:
    problem = draw(refs=True, neg_margin=4.0, squared=squared, reduction="sum")
    whole, (gx, gy) = run(fused_contrastive_loss, problem, None, backend=backend)
    total, gx_sum, gy_parts = torch.zeros(()), torch.zeros_like(gx), []
    for part in (slice(0, 20), slice(20, 21), slice(21, None)):
        piece = Problem(
            problem.x,
            problem.labels,
            problem.y[part],
            problem.ref_labels[part],
            problem.keywords,
        )
        value, (gx_part, gy_part) = run(fused_contrastive_loss, piece, None, backend=backend)
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


@EVERY
def test_references_equal_to_the_batch_add_the_pairs_of_a_row_with_itself(
    loss: str, options: dict[str, Any], backend: str
) -> None:
    """With references every pair exists, also when both tensors are one object."""
    problem = draw(**options)
    problem.y, problem.ref_labels = problem.x, problem.labels
    truth = REFERENCE[loss](*problem.args(), **problem.keywords)
    ours = FUSED[loss](*problem.args(), backend=backend, **problem.keywords)
    torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)
    alone = FUSED[loss](problem.x, problem.labels, backend=backend, **problem.keywords)
    if loss == "contrastive":
        assert abs(alone - ours) > 1e-3


@EVERY
@REFS
@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["near-origin", "far-from-origin"])
def test_pairs_a_ten_thousandth_apart(
    loss: str, options: dict[str, Any], refs: bool, scale: float, backend: str
) -> None:
    """Squared distances from norms alone would lose these distances altogether."""
    g = torch.Generator().manual_seed(3)
    centres = scale * torch.randn(20, 16, generator=g)
    steps = torch.nn.functional.normalize(torch.randn(20, 16, generator=g))
    near = centres + 1e-4 * steps
    labels = torch.arange(20) // 2
    keywords = {"distance": "euclidean", "normalize": False, "reduction": "mean"} | options
    if refs:
        problem = Problem(centres, labels, near, labels, keywords)
    else:
        problem = Problem(
            torch.cat([centres, near]), torch.cat([labels, labels]), None, None, keywords
        )
    if loss == "contrastive":
        problem.keywords["pos_margin"] = 0.0
    compare(loss, problem, backend)
    names = torch.arange(20)
    lone = Problem(centres, names, near, names + 100 * (names % 2), problem.keywords)
    compare(loss, lone, backend)


@EVERY
@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_duplicated_points_have_no_gradient_between_them(
    loss: str, options: dict[str, Any], distance: str, dtype: torch.dtype, backend: str
) -> None:
    """All points coincide: every distance is 0, so is every gradient, and nothing is NaN."""
    x = torch.tensor([[0.3, -1.7, 0.1, 4.0, 0.7]], dtype=dtype).repeat(12, 1).requires_grad_()
    labels = torch.arange(12) % 3
    for y in (None, x.detach().clone()[:9].requires_grad_()):
        refs = () if y is None else (y, labels[:9])
        for normalize in (False, True):
            value = FUSED[loss](
                x,
                labels,
                *refs,
                distance=distance,
                normalize=normalize,
                backend=backend,
                **options,
            )
            inputs = [x] if y is None else [x, y]
            truth = REFERENCE[loss](
                x.double(),
                labels,
                *(() if y is None else (y.double(), labels[:9])),
                distance=distance,
                normalize=normalize,
                **options,
            )
            assert abs(value.item() - truth.item()) < 1e-5
            for grad in torch.autograd.grad(value, inputs):
                assert torch.isfinite(grad).all()
                assert grad.abs().max() < (5e-3 if dtype == torch.float16 else 1e-6)


@EVERY
def test_some_duplicates_among_other_points(
    loss: str, options: dict[str, Any], backend: str
) -> None:
    """Each class holds a point three times, and two classes share a point."""
    g = torch.Generator().manual_seed(8)
    points = torch.randn(12, 10, generator=g)
    x = torch.cat([points, points, points, points[:2], torch.randn(5, 10, generator=g)])
    names = torch.arange(12) % 6
    labels = torch.cat([names, names, names, names[:2] + 1, torch.arange(5)])
    problem = draw(**options)
    problem.x, problem.labels = x.double(), labels
    value, (grad,) = run(FUSED[loss], problem, None, backend=backend)
    truth, (true_grad,) = run(REFERENCE[loss], problem, None)
    torch.testing.assert_close(value, truth)
    assert torch.isfinite(grad).all()
    if loss == "contrastive":  # ties leave the choice of a triplet's gradient open
        torch.testing.assert_close(grad, true_grad)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@REFS
@EVERY
def test_non_finite_embeddings_give_a_non_finite_loss(
    loss: str, options: dict[str, Any], refs: bool, bad: float, backend: str
) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for side in ("x", "y") if refs else ("x",):
            problem = draw(refs=refs, **options)
            poisoned = problem.x.to(dtype)
            y = None if problem.y is None else problem.y.to(dtype)
            (poisoned if side == "x" else y)[11, 3] = bad
            poisoned.requires_grad_()
            for normalize in (False, True):
                keywords = problem.keywords | {"normalize": normalize}
                value, stats = FUSED[loss](
                    poisoned,
                    problem.labels,
                    y,
                    problem.ref_labels,
                    backend=backend,
                    return_stats="class_scores",
                    **keywords,
                )
                assert not torch.isfinite(value), f"{side} {dtype} {normalize}"
                value.backward()
                count = len(problem.x) if y is None else len(y)
                for index in (stats.hardest_positive, stats.hardest_negative):
                    assert index.min() >= -1 and index.max() < count


@EVERY
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_all_rows_non_finite(
    loss: str, options: dict[str, Any], distance: str, dtype: torch.dtype, backend: str
) -> None:
    x = torch.full((20, 4), torch.nan, dtype=dtype, requires_grad=True)
    value = FUSED[loss](x, torch.arange(20) % 4, distance=distance, backend=backend, **options)
    assert torch.isnan(value)
    value.backward()


@EVERY
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_zero_rows_are_normalised_as_pytorch_does(
    loss: str, options: dict[str, Any], distance: str, backend: str
) -> None:
    """A zero row stays zero: its cosine with everything is 0, its cosine distance 1."""
    problem = draw(rows=20, normalize=True, distance=distance, **options)
    problem.x[[2, 5]] = 0
    problem.labels[:8] = torch.tensor([0, 0, 1, 1, 0, 2, 2, 1])
    truth, _ = run(
        REFERENCE[loss],
        Problem(problem.x.double(), problem.labels, None, None, problem.keywords),
        None,
    )
    value, (grad,) = run(FUSED[loss], problem, None, backend=backend)
    torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(grad).all()


@EVERY
@pytest.mark.parametrize("reduction", ["mean", "mean_nonzero", "sum", "none"])
@pytest.mark.parametrize("case", ["no-rows", "no-references", "one-row", "neither"])
def test_no_terms_is_zero_and_attached(
    loss: str, options: dict[str, Any], reduction: str, case: str, backend: str
) -> None:
    rows = {"no-rows": 0, "no-references": 5, "one-row": 1, "neither": 0}[case]
    refs = {"no-rows": 4, "no-references": 0, "one-row": None, "neither": 0}[case]
    x = torch.randn(rows, 3, requires_grad=True)
    y = None if refs is None else torch.randn(refs, 3, requires_grad=True)
    ref_labels = None if refs is None else torch.zeros(refs, dtype=torch.int64)
    value, stats = FUSED[loss](
        x,
        torch.zeros(rows, dtype=torch.int64),
        y,
        ref_labels,
        reduction=reduction,
        backend=backend,
        return_stats="class_scores",
        **options,
    )
    assert value.shape == ((rows,) if reduction == "none" else ())
    assert value.sum() == 0
    assert value.requires_grad
    value.sum().backward()
    assert x.grad.shape == x.shape and not x.grad.any()
    if y is not None:
        assert y.grad.shape == y.shape and not y.grad.any()
    assert stats.constraints == 0 and stats.violated == 0 and stats.violation == 0
    assert torch.isnan(stats.mean_positive_distance)
    assert torch.isnan(stats.mean_negative_distance)
    assert stats.hardest_positive.tolist() == [-1] * rows
    assert stats.class_scores.classes.numel() == min(rows, 1)


@pytest.mark.parametrize("loss", FUSED)
@pytest.mark.parametrize("pattern", ["same", "different"])
@pytest.mark.parametrize("reduction", ["mean", "mean_nonzero", "sum", "none"])
def test_one_sided_label_sets(loss: str, pattern: str, reduction: str, backend: str) -> None:
    options = (("squared", False), ("active", "all")) if loss == "contrastive" else ()
    options = options or (("smooth", True), ("swap", True))
    case = Case(loss, 20, 5, pattern, reduction=reduction, options=options)
    problem = make_problem(case)
    compare(loss, problem, backend)
    compare_stats(loss, problem, backend)
    if loss == "triplet":
        value, (grad,) = run(fused_triplet_loss, problem, None, backend=backend)
        assert not value.any() and not grad.any()


@EVERY
def test_gradient_flows_only_where_it_is_asked_for(
    loss: str, options: dict[str, Any], backend: str
) -> None:
    problem = draw(refs=True, **options)
    _, (gx, gy) = run(FUSED[loss], problem, None, backend=backend)
    for wants_x, wants_y in ((True, False), (False, True), (False, False)):
        x = problem.x.clone().requires_grad_(wants_x)
        y = problem.y.clone().requires_grad_(wants_y)
        value = FUSED[loss](
            x, problem.labels, y, problem.ref_labels, backend=backend, **problem.keywords
        )
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
    loss: str, options: dict[str, Any], refs: bool, backend: str
) -> None:
    """reduction="none" is linear in the upstream gradient, zeros and negative ones included."""
    problem = draw(refs=refs, reduction="none", **options)
    g = torch.Generator().manual_seed(2)
    u, v = torch.randn(45, generator=g), torch.randn(45, generator=g)
    u[::3] = 0
    _, grads_u = run(FUSED[loss], problem, u, backend=backend)
    _, grads_v = run(FUSED[loss], problem, v, backend=backend)
    _, grads = run(FUSED[loss], problem, 2 * u - 3 * v, backend=backend)
    for a, b, both in zip(grads_u, grads_v, grads, strict=True):
        torch.testing.assert_close(2 * a - 3 * b, both, rtol=1e-4, atol=1e-5)
    one = torch.zeros(45)
    one[7] = 1.0
    x = problem.x.double().requires_grad_()
    y = None if problem.y is None else problem.y.double()
    truth = REFERENCE[loss](x, problem.labels, y, problem.ref_labels, **problem.keywords)[7]
    _, grads = run(FUSED[loss], problem, one, backend=backend)
    (true_grad,) = torch.autograd.grad(truth, x)
    torch.testing.assert_close(grads[0].double(), true_grad, rtol=1e-4, atol=1e-5)


@EVERY
def test_inputs_are_left_alone_and_results_do_not_share_memory(
    loss: str, options: dict[str, Any], backend: str
) -> None:
    problem = draw(refs=True, reduction="none", **options)
    before = [tensor.clone() for tensor in problem.args()]
    first, grads = run(FUSED[loss], problem, None, backend=backend)
    kept = [first.clone(), *(grad.clone() for grad in grads)]
    run(FUSED[loss], draw(rows=60, refs=True, reduction="none", **options), None, backend=backend)
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


def test_hard_distances_have_all_their_digits_in_tight_clusters(backend: str) -> None:
    """The chosen pairs are measured by differences: from norms and products they would be off by
    some hundred units in the last place here."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 64, generator=g).repeat_interleave(40, 0)
    x = centres + 0.15 * torch.randn(160, 64, generator=g)
    labels = torch.arange(160) // 2
    ours, true = (
        fused_triplet_loss(rows, labels, margin=5.0, reduction="none", backend=backend)
        for rows in (x, x.double())
    )
    assert (ours - true).abs().max() < 10 * torch.finfo(torch.float32).eps
