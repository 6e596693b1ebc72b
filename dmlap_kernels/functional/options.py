"""What every loss function does with its arguments: check them, and run the sweep."""

from __future__ import annotations

from typing import Any

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
    checks.choice("backend", backend, BACKENDS)
    spec = PairSpec(
        loss,
        params,
        checks.choice("distance", distance, accepted),
        checks.flag("normalize", normalize),
        checks.choice("reduction", reduction, REDUCTIONS),
        checks.precision(precision),
    )
    if not isinstance(return_stats, bool) and return_stats != "class_scores":
        raise ValueError(
            f"return_stats must be True, False or 'class_scores', got {return_stats!r}"
        )
    scores = return_stats == "class_scores"
    value, stats = pair_loss(spec, problem, backend, stats=bool(return_stats), scores=scores)
    return (value, stats) if stats is not None else value


def most_similar(distance: str) -> float:
    """What minus the distance is added to for the similarity: 1 for cosine, whose d = 1 - cos."""
    return 1.0 if distance == "cosine" else 0.0
