"""The rule of evidence: err(ours) <= 2 * err(eager PyTorch) + a stated epsilon.

Truth is the reference formula in float64 on the same (rounded) inputs. Eager is the same formula in
the dtype in which a loss is accumulated: float64 for float64, else float32. For float16 and
bfloat16 that is a harder bar than eager PyTorch in the half type, whose error would hide mistakes;
gradients are then allowed the rounding to the type they are returned in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import dmlap_kernels
from tests import reference
from tests.losses.cases import Problem

FUSED: dict[str, Callable[..., Any]] = {
    "triplet": dmlap_kernels.fused_triplet_loss,
    "contrastive": dmlap_kernels.fused_contrastive_loss,
}
REFERENCE: dict[str, Callable[..., Tensor]] = {
    "triplet": reference.triplet_hard,
    "contrastive": reference.contrastive,
}
# The stated epsilons, in units of the machine epsilon of the dtype of the loss.
VALUE_ULPS = 16
GRADIENT_ULPS = 64


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def run(
    loss: Callable[..., Tensor], problem: Problem, upstream: Tensor | None, **extra: Any
) -> tuple[Tensor, list[Tensor]]:
    """Value, and gradients of the embeddings and the references, of one call."""
    leaves = [t.detach().requires_grad_() for t in (problem.x, problem.y) if t is not None]
    y = leaves[1] if problem.y is not None else None
    value = loss(leaves[0], problem.labels, y, problem.ref_labels, **(problem.keywords | extra))
    upstream = torch.ones_like(value) if upstream is None else upstream.to(value.dtype)
    return value.detach(), list(torch.autograd.grad(value, leaves, upstream))


def cast(problem: Problem, dtype: torch.dtype) -> Problem:
    y = None if problem.y is None else problem.y.to(dtype)
    return Problem(problem.x.to(dtype), problem.labels, y, problem.ref_labels, problem.keywords)


def worst(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0


def largest_distance(problem: Problem) -> float:
    """Largest distance of a pair, at least 1: what absolute rounding errors scale with."""
    x = problem.x.double()
    y = x if problem.y is None else problem.y.double()
    if not len(x) or not len(y):
        return 1.0
    options = {name: problem.keywords[name] for name in ("distance", "normalize")}
    return max(1.0, reference.pair_distances(x, y, **options).max().item())


def value_epsilon(problem: Problem) -> float:
    """16 ulp of the largest distance, times the number of terms that a sum adds up."""
    keywords = problem.keywords
    largest = largest_distance(problem)
    if keywords.get("squared"):
        largest = max(1.0, largest + abs(keywords["neg_margin"])) ** 2
    if keywords["reduction"] == "sum":
        pairs = len(problem.x) * (len(problem.x) if problem.y is None else len(problem.y))
        largest *= pairs**0.5 if "pos_margin" in keywords else len(problem.x)
    return VALUE_ULPS * torch.finfo(compute_dtype(problem.x.dtype)).eps * largest


def gradient_epsilon(problem: Problem, truth: Tensor) -> float:
    """64 ulp of the largest entry, plus one rounding to the dtype of the gradient.

    The weight of a smooth hinge carries the absolute error of the distances as a relative one.
    """
    if not truth.numel():
        return 0.0
    dtype = problem.x.dtype
    info = torch.finfo(dtype)
    relative = GRADIENT_ULPS * torch.finfo(compute_dtype(dtype)).eps
    if problem.keywords.get("smooth"):
        relative *= largest_distance(problem)
    rounding = info.eps if dtype.itemsize == 2 else 0.0
    return (relative + rounding) * truth.abs().max().item() + info.smallest_normal * rounding


def compare(loss: str, problem: Problem, backend: str) -> None:
    """Assert the rule for the value and each gradient of one call."""
    dtype = problem.x.dtype
    upstream = None
    if problem.keywords["reduction"] == "none":
        g = torch.Generator().manual_seed(5)
        upstream = torch.randn(len(problem.x), generator=g)
    truth, truth_grads = run(REFERENCE[loss], cast(problem, torch.float64), upstream)
    eager, eager_grads = truth, truth_grads
    if dtype != torch.float64:
        eager, eager_grads = run(REFERENCE[loss], cast(problem, torch.float32), upstream)
    ours, our_grads = run(FUSED[loss], problem, upstream, backend=backend)

    assert ours.dtype == compute_dtype(dtype)
    assert ours.shape == truth.shape
    allowed = 2 * worst(eager, truth) + value_epsilon(problem)
    assert worst(ours, truth) <= allowed, f"value {ours} is not {truth} within {allowed:.3g}"
    for name, mine, plain, true in zip(
        ("embeddings", "ref_embeddings"), our_grads, eager_grads, truth_grads, strict=False
    ):
        assert mine.dtype == dtype
        assert mine.shape == true.shape
        allowed = 2 * worst(plain, true) + gradient_epsilon(problem, true)
        error = worst(mine, true)
        assert error <= allowed, f"gradient of {name} is off by {error:.3g} > {allowed:.3g}"


def compare_stats(loss: str, problem: Problem, backend: str) -> None:
    """Assert every statistic of one call, class scores included."""
    truth = reference.pair_stats(
        loss, *cast(problem, torch.float64).args(), **_without_reduction(problem.keywords)
    )
    value, stats = FUSED[loss](
        *problem.args(), backend=backend, return_stats="class_scores", **problem.keywords
    )
    plain = FUSED[loss](*problem.args(), backend=backend, **problem.keywords)
    assert torch.equal(value, plain), "statistics change the loss"

    for name in ("constraints", "violated"):
        got = getattr(stats, name)
        assert got.dtype == torch.int64 and got.shape == (), name
        assert got.item() == getattr(truth, name), name
    for name in ("hardest_positive", "hardest_negative"):
        got = getattr(stats, name)
        assert got.dtype == torch.int64, name
        assert got.tolist() == getattr(truth, name).tolist(), name
    epsilon = value_epsilon(Problem(*problem.args(), problem.keywords | {"reduction": "mean"}))
    for name in ("mean_positive_distance", "mean_negative_distance"):
        assert_close(name, getattr(stats, name), getattr(truth, name), epsilon)
    terms = max(1, truth.constraints)
    assert_close("violation", stats.violation, truth.violation, epsilon * terms)

    scores = stats.class_scores
    assert scores.classes.tolist() == truth.class_scores.classes.tolist()
    assert scores.ref_classes.tolist() == truth.class_scores.ref_classes.tolist()
    single = max(epsilon, VALUE_ULPS * torch.finfo(torch.float32).eps * _largest(truth))
    for name in ("mean_violation", "min_distance"):
        assert_close(name, getattr(scores, name), getattr(truth.class_scores, name), single)


def assert_close(name: str, got: Tensor, truth: Tensor, epsilon: float) -> None:
    torch.testing.assert_close(
        got.double(),
        truth.double(),
        rtol=1e-6,
        atol=epsilon,
        equal_nan=True,
        msg=lambda text: f"{name}: {text}",
    )


def _largest(truth: Any) -> float:
    finite = truth.class_scores.min_distance[truth.class_scores.min_distance.isfinite()]
    return max(1.0, finite.max().item() if finite.numel() else 0.0)


def _without_reduction(keywords: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keywords.items() if key != "reduction"}
