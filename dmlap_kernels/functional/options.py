"""What every loss function does with its arguments: check them, and run the sweep."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels import checks
from dmlap_kernels.backends.registry import NAMES as BACKENDS
from dmlap_kernels.problem import (
    DISTANCES,
    NONNEGATIVE_DISTANCES,
    REDUCTIONS,
    PairProblem,
    PairSpec,
    PairStats,
)
from dmlap_kernels.sweep import pair_loss

# Losses of distances, of any similarity, and of similarities that grow with the inner product.
DISTANCE = NONNEGATIVE_DISTANCES
SIMILARITY = DISTANCES
INNER_PRODUCT = ("cosine", "dot")

Result = Tensor | tuple[Tensor, PairStats]


def run(
    loss: str,
    params: tuple[float, ...],
    problem: PairProblem,
    *,
    distance: Any,
    accepted: tuple[str, ...],
    normalize: Any,
    reduction: Any,
    backend: Any,
    precision: Any,
    return_stats: Any,
) -> Result:
    """The loss named ``loss`` over ``problem``, once the options that all losses share are fine."""
    options = (loss, params, distance, accepted, normalize, reduction, backend, precision)
    try:
        # Under torch.compile they are checked while tracing.
        spec = _spec(*options) if torch.compiler.is_compiling() else _remembered_spec(*options)
    except TypeError:  # raised by options that have no hash as well
        spec = _spec(*options)
    if return_stats is False:
        return pair_loss(spec, problem, backend)[0]
    if return_stats is not True and return_stats != "class_scores":
        raise ValueError(
            f"return_stats must be True, False or 'class_scores', got {return_stats!r}"
        )
    value, stats = pair_loss(
        spec, problem, backend, stats=True, scores=return_stats == "class_scores"
    )
    assert stats is not None
    return value, stats


def _spec(
    loss: str,
    params: tuple[float, ...],
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
        params,
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
