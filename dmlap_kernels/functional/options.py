"""What every loss function does with its arguments: check them, and run the sweep."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels import checks
from dmlap_kernels.backends.registry import NAMES as BACKENDS
from dmlap_kernels.match import Match
from dmlap_kernels.problem import (
    DISTANCES,
    NONNEGATIVE_DISTANCES,
    REDUCTIONS,
    PairProblem,
    PairSpec,
    PairStats,
    compute_dtype,
)
from dmlap_kernels.sweep import pair_loss

# Losses of distances, of any similarity, and of similarities that grow with the inner product.
DISTANCE = NONNEGATIVE_DISTANCES
SIMILARITY = DISTANCES
INNER_PRODUCT = ("cosine", "dot")

Result = Tensor | tuple[Tensor, PairStats]
Number = float | Tensor


def run(
    loss: str,
    params: tuple[Number | bool, ...],
    problem: PairProblem,
    distance: Any,
    accepted: tuple[str, ...],
    normalize: Any,
    reduction: Any,
    backend: Any,
    precision: Any,
    return_stats: Any,
    *,
    match: Match | None = None,
) -> Result:
    """The loss named ``loss`` over ``problem``, once the options that all losses share are fine.

    Of ``params`` a bool is a flag; a number may be a tensor ().
    """
    if return_stats is not False and return_stats is not True and return_stats != "class_scores":
        raise ValueError(
            f"return_stats must be True, False or 'class_scores', got {return_stats!r}"
        )
    given, numbers = _operands(params, problem.x)
    options = (loss, given, distance, accepted, normalize, reduction, backend, precision)
    try:
        # Under torch.compile they are checked while tracing.
        spec = _spec(*options) if torch.compiler.is_compiling() else _remembered_spec(*options)
    except TypeError:  # raised by options that have no hash as well
        spec = _spec(*options)
    if match is not None:
        if return_stats == "class_scores":
            raise ValueError('return_stats must be True or False with match, got "class_scores"')
        spec = spec._replace(match=match)
    if numbers is not None:
        problem = problem.changed(numbers=numbers)
    if return_stats is False:
        return pair_loss(spec, problem, backend)[0]
    value, stats = pair_loss(
        spec, problem, backend, stats=True, scores=return_stats == "class_scores"
    )
    assert stats is not None
    return value, stats


def run_exponents(
    loss: str,
    number: Number,
    problem: PairProblem,
    distance: Any,
    accepted: tuple[str, ...],
    normalize: Any,
    *others: Any,
    more: tuple[Number, ...] = (),
    match: Match | None = None,
) -> Result:
    """`run` of a loss whose first number is the temperature or the scale of its exponents; ``more``
    are the others.

    Such a loss only sees the quotient or product with the distance, less what is the same for all
    pairs of an anchor. So a tensor can go to the rows, on any backend and wherever it lies: its
    gradient is that of an ordinary multiplication.
    """
    if not isinstance(number, Tensor):
        params = number, *more
        return run(loss, params, problem, distance, accepted, normalize, *others, match=match)
    scale = number if loss == "proxy_nca" else 1 / number
    distance = checks.choice("distance", distance, accepted)
    unit = checks.flag("normalize", normalize) or distance == "cosine"
    x = _scaled(problem.x, scale, distance, unit)
    y = None if problem.y is None else _scaled(problem.y, scale, distance, unit)
    raw = "dot" if distance == "cosine" else distance
    problem = problem.changed(rows=(x, y))
    result = run(loss, (1.0, *more), problem, raw, accepted, False, *others, match=match)
    if isinstance(result, Tensor):
        return result
    return result[0], _unscaled(result[1], scale.detach(), distance)


def _scaled(rows: Tensor, scale: Tensor, distance: str, unit: bool) -> Tensor:
    real = compute_dtype(rows.dtype)
    rows, scale = rows.to(real), scale.to(rows.device, real)
    rows = F.normalize(rows, eps=1e-12) if unit else rows
    return rows * (scale if distance == "euclidean" else scale.sqrt())


def _unscaled(stats: PairStats, scale: Tensor, distance: str) -> PairStats:
    """The distances of ``stats`` as the caller sees them."""
    start, scale = most_similar(distance), scale.to(stats.violation)
    scores = stats.class_scores
    if scores is not None:
        scores = replace(
            scores,
            mean_violation=scores.mean_violation / scale,
            min_distance=start + scores.min_distance / scale,
        )
    return replace(
        stats,
        mean_positive_distance=start + stats.mean_positive_distance / scale,
        mean_negative_distance=start + stats.mean_negative_distance / scale,
        class_scores=scores,
    )


def operand(number: Number) -> Number:
    """``number`` as something to add to: under `torch.compile` a tensor, as older releases of
    PyTorch compile the sum of two Python numbers anew for each value."""
    if isinstance(number, Tensor) or not torch.compiler.is_compiling():
        return number
    return torch.ones((), dtype=torch.float64, device="cpu") * number


def _operands(
    params: tuple[Number | bool, ...], x: Tensor
) -> tuple[tuple[Any, ...], Tensor | None]:
    """``params`` as floats, None for those that are operands instead, and these as a tensor.

    Operands are the numbers that are tensors; and under `torch.compile` all, so that another value
    is no other graph.
    """
    if not torch.compiler.is_compiling():
        tensors = [p for p in params if isinstance(p, Tensor)]
        if not tensors:
            return params, None
        return (
            tuple(None if isinstance(p, Tensor) else float(p) for p in params),
            torch.stack(_alike(tensors, x)),
        )
    numbers = [p for p in params if not isinstance(p, bool)]
    if not numbers:
        return params, None
    return tuple(p if isinstance(p, bool) else None for p in params), torch.stack(
        _alike(numbers, x)
    )


def _alike(numbers: Sequence[Number], x: Tensor) -> list[Tensor]:
    """As float64 tensors () on the CPU; on the device of the embeddings if one of them lies on a
    device. One that lies on another is moved with its gradient."""
    if not x.is_meta:
        for p in numbers:
            if isinstance(p, Tensor):
                checks.with_data("a number of the loss", p)
    on_cpu = all(p.device.type == "cpu" for p in numbers if isinstance(p, Tensor))
    device = torch.device("cpu") if on_cpu else x.device
    dtype = torch.float64 if device.type in ("cpu", "cuda") else compute_dtype(x.dtype)
    # A product, because torch.compile takes another Python number for another operand only there.
    one = x.new_ones((), dtype=dtype, device=device)
    return [p.to(device, dtype) if isinstance(p, Tensor) else one * p for p in numbers]


def _spec(
    loss: str,
    params: tuple[Any, ...],
    distance: Any,
    accepted: tuple[str, ...],
    normalize: Any,
    reduction: Any,
    backend: Any,
    precision: Any,
) -> PairSpec:
    checks.choice("backend", backend, BACKENDS)
    return PairSpec(
        loss,
        tuple(None if p is None else float(p) for p in params),
        checks.choice("distance", distance, accepted),
        checks.flag("normalize", normalize),
        checks.choice("reduction", reduction, REDUCTIONS),
        checks.precision(precision),
    )


# A training loop asks for the same options at every step. Typed: 1 is not True.
_remembered_spec = functools.lru_cache(maxsize=256, typed=True)(_spec)


def most_similar(distance: str) -> float:
    """What minus the distance is added to for the similarity: 1 for cosine, whose d = 1 - cos."""
    return 1.0 if distance == "cosine" else 0.0
