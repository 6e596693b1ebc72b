"""Which of our distances a function of sentence-transformers is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers import util
from sentence_transformers.sentence_transformer.losses import BatchHardTripletLossDistanceFunction
from torch import Tensor

_BATCH = BatchHardTripletLossDistanceFunction
_SIMILARITIES = {
    util.cos_sim: "cosine",
    util.pytorch_cos_sim: "cosine",
    util.dot_score: "dot",
    util.euclidean_sim: "euclidean",
}


def batch_distance(loss: str, metric: Any) -> str:
    """The distance that a function of `BatchHardTripletLossDistanceFunction` takes.

    Raises:
        ValueError: it is another function.
    """
    given, squared = metric, False
    if isinstance(metric, functools.partial) and not metric.args:
        if set(metric.keywords) <= {"squared"}:
            metric, squared = metric.func, bool(metric.keywords.get("squared", False))
    if metric == _BATCH.euclidean_distance:
        return "sqeuclidean" if squared else "euclidean"
    if metric == _BATCH.cosine_distance and not squared:
        return "cosine"
    raise ValueError(
        f"{loss} computes BatchHardTripletLossDistanceFunction.euclidean_distance (also as "
        "functools.partial with squared=True) and cosine_distance, got "
        f"distance_metric={given!r}; take the class of sentence-transformers for another function"
    )


def similarity(loss: str, function: Any) -> str:
    """The distance whose negative, up to a constant, is the similarity of ``function``.

    Raises:
        ValueError: it is another function.
    """
    try:
        return _SIMILARITIES[function]
    except (KeyError, TypeError):
        raise ValueError(
            f"{loss} computes util.cos_sim, util.dot_score and util.euclidean_sim, got "
            f"similarity_fct={function!r}; take the class of sentence-transformers for another "
            "function"
        ) from None


def row_distances(x: Tensor, y: Tensor, distance: str) -> Tensor:
    """(B,) distances of the rows of ``x`` (B, D) from those of ``y``, 0 derivative at 0."""
    if distance == "cosine":
        return 1 - row_similarities(x, y, distance)
    difference = x - y
    if distance == "sqeuclidean":
        return difference.square().sum(1)
    return torch.linalg.vector_norm(difference, dim=1)


def row_similarities(x: Tensor, y: Tensor, distance: str) -> Tensor:
    """(B,) cosines or inner products of the rows of ``x`` (B, D) and ``y``."""
    if distance == "cosine":
        x, y = F.normalize(x), F.normalize(y)
    return (x * y).sum(1)


Similarity = Callable[[Tensor, Tensor], Tensor]
