"""The rule of evidence: err(ours) <= 2 * err(eager PyTorch) + a stated epsilon.

Truth is the reference formula in float64 on the same (rounded) inputs. Eager is the same formula in
the dtype in which a loss is accumulated: float64 for float64, else float32. For float16 and
bfloat16 that is a harder bar than eager PyTorch in the half type, whose error would hide mistakes;
gradients are then allowed the rounding to the type they are returned in.

The epsilons follow from the rounding error of a distance, a few ulp of the largest one, times the
slope of a term (`Row.slope`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tests import reference
from tests.losses.cases import Problem
from tests.losses.losses_table import LOSSES

# The stated epsilons, in units of the machine epsilon of the dtype of the loss.
VALUE_ULPS = 16
GRADIENT_ULPS = 64


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def run(
    loss: Callable[..., Tensor], problem: Problem, upstream: Tensor | None = None, **extra: Any
) -> tuple[Tensor, list[Tensor]]:
    """Value, and gradients of embeddings, references and parameters, of one call."""
    keywords = dict(problem.keywords)
    leaves = [t.detach().requires_grad_() for t in (problem.x, problem.y) if t is not None]
    y = leaves[1] if problem.y is not None else None
    for name in problem.parameters():
        keywords[name] = keywords[name].detach().clone().requires_grad_()
        leaves.append(keywords[name])
    value = loss(leaves[0], problem.labels, y, problem.ref_labels, **(keywords | extra))
    upstream = torch.ones_like(value) if upstream is None else upstream.to(value.dtype)
    return value.detach(), list(torch.autograd.grad(value, leaves, upstream))


@dataclass(frozen=True)
class Known:
    """A loss and a problem, equal if all their numbers are: backends share what is true of one, and
    tests that come one after the other."""

    loss: str
    numbers: tuple[Any, ...]
    problem: Problem = field(compare=False)


def known(loss: str, problem: Problem) -> Known:
    tensors = dict(zip("x labels y ref_labels".split(), problem.args(), strict=True))
    everything = tensors | problem.keywords
    return Known(loss, tuple((name, _plain(value)) for name, value in everything.items()), problem)


def _plain(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return type(value), value
    return value.dtype, value.shape, _bytes(value)


def _bytes(tensor: Tensor) -> bytes:
    # A clone, as what has one entry may have any stride.
    flat = tensor.detach().flatten().clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().tobytes()


def upstream_of(loss: str, problem: Problem) -> Tensor | None:
    """Gradients of the values of anchors, where there are several values."""
    if problem.keywords["reduction"] != "none":
        return None
    g = torch.Generator().manual_seed(5)
    return torch.randn(len(problem.y if loss == "proxy_anchor" else problem.x), generator=g)


@functools.lru_cache(maxsize=16)
def formula(call: Known, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """`run_reference` with the gradients that `compare` goes by."""
    return run_reference(call.loss, call.problem, dtype, upstream_of(call.loss, call.problem))


@functools.lru_cache(maxsize=16)
def true_stats(call: Known) -> Any:
    named = call.problem.cast(torch.float64).named()
    return LOSSES[call.loss].stats(*named.args(), **call.problem.keywords)


def run_reference(
    loss: str, problem: Problem, dtype: torch.dtype, upstream: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """`run` of the formula in a dtype."""
    cast = problem.cast(dtype).named()
    for name in cast.parameters():
        cast.keywords = cast.keywords | {name: cast.keywords[name].to(dtype)}
    return run(LOSSES[loss].reference, cast, upstream)


def worst(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0


def largest_distance(loss: str, problem: Problem) -> float:
    """Largest distance of a pair, at least 1: what absolute rounding errors scale with."""
    return _largest_distance(known(loss, problem))


@functools.lru_cache(maxsize=16)
def _largest_distance(call: Known) -> float:
    loss, problem = call.loss, call.problem
    x = problem.x.double()
    y = x if problem.y is None else problem.y.double()
    if not len(x) or not len(y):
        return 1.0
    geometry = LOSSES[loss].geometry(problem.keywords)
    return max(1.0, reference.pair_distances(x, y, **geometry).abs().max().item())


def slopes(loss: str, problem: Problem) -> tuple[float, float]:
    """Largest slope of a term with respect to a distance, and of the weights of pairs."""
    return LOSSES[loss].slope(problem.keywords, largest_distance(loss, problem))


def value_epsilon(loss: str, problem: Problem) -> float:
    """16 ulp of the largest distance as a term sees it; for a sum, times its size in such terms."""
    largest = largest_distance(loss, problem) * max(1.0, slopes(loss, problem)[0])
    if LOSSES[loss].summed:
        largest *= len(problem.x if problem.y is None else problem.y) ** 0.5
    if problem.keywords["reduction"] == "sum":
        largest *= max(1, true_stats(known(loss, problem)).constraints) ** 0.5
        largest *= len(problem.x) ** 0.5
    return VALUE_ULPS * torch.finfo(compute_dtype(problem.x.dtype)).eps * largest


def gradient_epsilon(loss: str, problem: Problem, truth: Tensor) -> float:
    """64 ulp of the largest entry, plus one rounding to the dtype of the gradient.

    The weight of a pair in a smooth loss carries the absolute error of its distance as a relative
    one, times the slope of the logarithm of the weight. The gradient of a parameter is a sum of
    weights of both signs, up to one each; where the weights of pairs cancel likewise, what rounding
    leaves of them stays.
    """
    if not truth.numel():
        return 0.0
    dtype = problem.x.dtype
    info = torch.finfo(dtype)
    relative = GRADIENT_ULPS * torch.finfo(compute_dtype(dtype)).eps
    relative *= max(1.0, slopes(loss, problem)[1] * largest_distance(loss, problem))
    rounding = info.eps if dtype.itemsize == 2 else 0.0
    largest = max(truth.abs().max().item(), 1.0 if truth.ndim < 2 else 0.0)
    absolute = info.smallest_normal * rounding
    if LOSSES[loss].cancels:
        share = len(problem.x) if problem.keywords["reduction"].startswith("mean") else 1
        slope = slopes(loss, problem)[0]
        absolute += VALUE_ULPS * torch.finfo(compute_dtype(dtype)).eps * slope / share
    return (relative + rounding) * largest + absolute


def compare(loss: str, problem: Problem, backend: str) -> None:
    """Assert the rule for the value and each gradient of one call."""
    dtype = problem.x.dtype
    call = known(loss, problem)
    truth, truth_grads = formula(call, torch.float64)
    eager, eager_grads = truth, truth_grads
    if dtype != torch.float64:
        eager, eager_grads = formula(call, torch.float32)
    upstream = upstream_of(loss, problem)
    ours, our_grads = run(LOSSES[loss].fused, problem, upstream, backend=backend)

    assert ours.dtype == compute_dtype(dtype)
    assert ours.shape == truth.shape
    allowed = 2 * worst(eager, truth) + value_epsilon(loss, problem)
    assert worst(ours, truth) <= allowed, f"value {ours} is not {truth} within {allowed:.3g}"
    given = [t for t in (problem.x, problem.y) if t is not None]
    given += [problem.keywords[name] for name in problem.parameters()]
    for index, (leaf, mine, plain, true) in enumerate(
        zip(given, our_grads, eager_grads, truth_grads, strict=True)
    ):
        assert mine.dtype == leaf.dtype
        assert mine.shape == true.shape
        allowed = 2 * worst(plain, true) + gradient_epsilon(loss, problem, true)
        error = worst(mine, true)
        assert error <= allowed, f"gradient {index} is off by {error:.3g} > {allowed:.3g}"


def compare_stats(loss: str, problem: Problem, backend: str) -> None:
    """Assert every statistic of one call, class scores included."""
    row = LOSSES[loss]
    truth = true_stats(known(loss, problem))
    value, stats = row.fused(
        *problem.args(), backend=backend, return_stats="class_scores", **problem.keywords
    )
    plain = row.fused(*problem.args(), backend=backend, **problem.keywords)
    assert torch.equal(value, plain), "statistics change the loss"

    epsilon = value_epsilon(
        loss, replace(problem, keywords=problem.keywords | {"reduction": "mean"})
    )
    for name in ("constraints", "violated"):
        got = getattr(stats, name)
        assert got.dtype == torch.int64 and got.shape == (), name
    assert stats.constraints.item() == truth.constraints
    # A term below rounding may be lost, none may be invented.
    surely = int((truth.violations > epsilon).sum())
    assert surely <= stats.violated.item() <= truth.violated, "violated"
    for name, sign in (("hardest_positive", 1), ("hardest_negative", -1)):
        assert_hardest(name, getattr(stats, name), getattr(truth, name), sign * truth.d, epsilon)
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


def assert_hardest(name: str, got: Tensor, truth: Tensor, d: Tensor, epsilon: float) -> None:
    """The same column, or one whose distance differs by no more than rounding."""
    assert got.dtype == torch.int64, name
    assert got.shape == truth.shape, name
    assert torch.equal(got < 0, truth < 0), name
    rows = (truth >= 0).nonzero()[:, 0]
    assert bool((d[rows, got[rows]] >= d[rows, truth[rows]] - epsilon).all()), name


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
    return max(1.0, finite.abs().max().item() if finite.numel() else 0.0)
