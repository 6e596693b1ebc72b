"""Distances and reducers of pytorch-metric-learning in our terms, and why some have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pytorch_metric_learning import distances, reducers
from pytorch_metric_learning.reducers import per_anchor_reducer
from torch import Tensor

# Their distances are modules without types; a `loss_dict` is a dict of what their reducers read.
Entry = dict[str, Any]


class NotFused(ValueError):
    """What was asked for cannot be expressed by the fused losses; the message says why.

    With ``strict=False`` pytorch-metric-learning computes it instead.
    """


class Geometry(NamedTuple):
    """How rows are compared: `distance` and `normalize` of a fused loss."""

    distance: str
    normalize: bool

    @property
    def inverted(self) -> bool:
        return self.distance in ("cosine", "dot")

    def bound(self, value: Any) -> Any:
        """A bound in units of their distance, which for cosine is the similarity, in ours."""
        return 1 - value if self.inverted else value


def geometry(distance: Any) -> Geometry:
    """Of one of their distances, or `NotFused`."""
    kind, power, unit = type(distance), getattr(distance, "power", 1), True
    if kind is distances.LpDistance:
        unit = bool(distance.normalize_embeddings)
        if distance.p == 2 and power in (1, 2):
            return Geometry("euclidean" if power == 1 else "sqeuclidean", unit)
        raise NotFused(
            f"LpDistance is fused for p=2 and power 1 or 2, got p={distance.p} and power={power}"
        )
    if kind in (distances.CosineSimilarity, distances.DotProductSimilarity):
        if distance.p != 2 or power != 1:
            raise NotFused(
                f"{kind.__name__} is fused for p=2 and power=1, got p={distance.p} and "
                f"power={power}"
            )
        if kind is distances.CosineSimilarity:
            return Geometry("cosine", False)
        return Geometry("dot", bool(distance.normalize_embeddings))
    raise NotFused(
        "distances are fused for LpDistance, CosineSimilarity and DotProductSimilarity, got "
        f"{kind.__name__}"
    )


def margin_geometry(distance: Any) -> Geometry:
    """For losses of distances, which know products of unit rows as cosines and no others."""
    found = geometry(distance)
    if found.distance != "dot":
        return found
    if found.normalize:
        return Geometry("cosine", False)
    raise NotFused(
        "losses of margins are fused for distances and for similarities of unit rows, got "
        "DotProductSimilarity(normalize_embeddings=False)"
    )


SIMPLE = {
    reducers.MeanReducer: "mean",
    reducers.AvgNonZeroReducer: "mean_nonzero",
    reducers.SumReducer: "sum",
}


def reducer_of(reducer: Any, name: str) -> Any:
    """The reducer that gets the sub-loss ``name``."""
    if type(reducer) is not reducers.MultipleReducers:
        return reducer
    return reducer.reducers[name] if name in reducer.reducers else reducer.default_reducer


def simple(reducer: Any) -> str | None:
    """``reduction`` of a fused loss that equals ``reducer``, None if there is none."""
    if type(reducer) is reducers.ThresholdReducer and reducer.low == 0 and reducer.high is None:
        return "mean_nonzero"
    return SIMPLE.get(type(reducer))


def reduced(value: Tensor) -> Entry:
    return {"losses": value, "indices": None, "reduction_type": "already_reduced"}


def of_anchors(values: Tensor) -> Entry:
    indices = torch.arange(len(values), device=values.device)
    return {"losses": values, "indices": indices, "reduction_type": "element"}


def many_terms(
    reducer: Any,
    sweep: Callable[[str], Tensor],
    labels: Tensor,
    counts: Callable[[], Tensor],
    pairs: bool = True,
) -> Entry:
    """The entry of a loss with several terms an anchor, which are never listed.

    Args:
        reducer: theirs.
        sweep: the fused loss by reduction.
        labels: (B,) of the anchors.
        counts: (B,), the terms of each anchor.
        pairs: whether a term is a pair; `PerAnchorReducer` takes no triplets.
    """
    reduction = simple(reducer)
    if reduction is not None:
        return reduced(sweep(reduction))
    if type(reducer) is reducers.ClassWeightedReducer:
        values, terms = sweep("none"), counts()
        weights = reducer.weights.to(values)[labels]
        return reduced((values * weights * terms).sum() / terms.sum().clamp(min=1))
    if type(reducer) is reducers.PerAnchorReducer and pairs:
        if reducer.aggregation_func is per_anchor_reducer.aggregation_func:
            return of_anchors(sweep("none"))  # the mean of each anchor, which theirs reduces
    raise NotFused(
        f"{_named(reducer)} needs the term of every {'pair' if pairs else 'triplet'}, and a fused "
        "loss does not list them: give an indices_tuple, or MeanReducer, AvgNonZeroReducer, "
        f"SumReducer{', PerAnchorReducer' if pairs else ''} or ClassWeightedReducer"
    )


def _named(reducer: Any) -> str:
    low, high = getattr(reducer, "low", None), getattr(reducer, "high", None)
    bounds = f"(low={low}, high={high})" if type(reducer) is reducers.ThresholdReducer else ""
    return type(reducer).__name__ + bounds


def pairs_of_anchors(labels: Tensor, ref_labels: Tensor, itself: bool) -> tuple[Tensor, Tensor]:
    """How many positives and how many negatives each anchor has, (B,) each.

    ``itself``: every anchor is among the references, and no pair with itself counts.
    """
    ordered = ref_labels.sort().values
    first = torch.searchsorted(ordered, labels.contiguous())
    alike = torch.searchsorted(ordered, labels.contiguous(), right=True) - first
    return alike - int(itself), len(ref_labels) - alike
