"""Triplets mined from the labels of a batch."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.losses import BatchHardTripletLossDistanceFunction
from torch import Tensor

from dmlap_kernels.compat.sentence_transformers.metrics import batch_distance, row_distances
from dmlap_kernels.functional import fused_contrastive_loss, fused_triplet_loss

_EUCLIDEAN = BatchHardTripletLossDistanceFunction.euclidean_distance


class BatchHardTripletLoss(losses.BatchHardTripletLoss):
    """``losses.BatchHardTripletLoss`` in one fused sweep."""

    def __init__(
        self, model: SentenceTransformer, distance_metric: Any = _EUCLIDEAN, margin: float = 5
    ) -> None:
        super().__init__(model, distance_metric, margin)
        batch_distance(type(self).__name__, distance_metric)

    def batch_hard_triplet_loss(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        distance = batch_distance(type(self).__name__, self.distance_metric)
        return _hardest(embeddings, labels, distance, self.triplet_margin, smooth=False)


class BatchHardSoftMarginTripletLoss(losses.BatchHardSoftMarginTripletLoss):
    """``losses.BatchHardSoftMarginTripletLoss`` in one fused sweep."""

    def __init__(self, model: SentenceTransformer, distance_metric: Any = _EUCLIDEAN) -> None:
        super().__init__(model, distance_metric)
        batch_distance(type(self).__name__, distance_metric)

    def batch_hard_triplet_soft_margin_loss(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        distance = batch_distance(type(self).__name__, self.distance_metric)
        return _hardest(embeddings, labels, distance, 0.0, smooth=True)


class BatchSemiHardTripletLoss(losses.BatchSemiHardTripletLoss):
    """``losses.BatchSemiHardTripletLoss`` in one fused sweep."""

    def __init__(
        self, model: SentenceTransformer, distance_metric: Any = _EUCLIDEAN, margin: float = 5
    ) -> None:
        super().__init__(model, distance_metric, margin)
        batch_distance(type(self).__name__, distance_metric)

    def batch_semi_hard_triplet_loss(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        distance = batch_distance(type(self).__name__, self.distance_metric)
        labels = labels.view(-1)
        # A GPU is waited for here, as the Trainer does itself at every step, to see that the loss
        # is a number.
        if bool((labels == labels[:1]).all()):
            # In a batch of one class the original takes 0 for the distance of the negative.
            loss = fused_contrastive_loss(
                embeddings,
                labels,
                pos_margin=-self.margin,
                distance=distance,
                normalize=False,
                reduction="mean",
            )
        else:
            loss = fused_triplet_loss(
                embeddings, labels, margin=self.margin, mining="semihard", distance=distance
            )
        return cast(Tensor, loss)


class BatchAllTripletLoss(losses.BatchAllTripletLoss):
    """``losses.BatchAllTripletLoss`` in one fused sweep."""

    def __init__(
        self, model: SentenceTransformer, distance_metric: Any = _EUCLIDEAN, margin: float = 5
    ) -> None:
        super().__init__(model, distance_metric, margin)
        batch_distance(type(self).__name__, distance_metric)

    def batch_all_triplet_loss(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        loss = fused_triplet_loss(
            embeddings,
            labels.view(-1),
            margin=self.triplet_margin,
            mining="all",
            distance=batch_distance(type(self).__name__, self.distance_metric),
            reduction="mean_nonzero",
        )
        return cast(Tensor, loss)


def _hardest(x: Tensor, labels: Tensor, distance: str, margin: float, *, smooth: bool) -> Tensor:
    """The mean over all rows, those without a triplet included, as the original has it.

    There a missing positive is at a distance of 0, and a missing negative, which all rows miss
    together, at that of the farthest row, which is then the hardest positive.
    """
    each, stats = fused_triplet_loss(
        x,
        labels.view(-1),
        margin=margin,
        smooth=smooth,
        distance=distance,
        reduction="none",
        return_stats=True,
    )
    no_positive, no_negative = stats.hardest_positive < 0, stats.hardest_negative < 0
    if each.device.type == "cpu" and not bool((no_positive | no_negative).any()):
        return each.mean()
    hinge = F.softplus if smooth else F.relu
    rows = x.to(each.dtype)
    nearest = rows[stats.hardest_negative.clamp(min=0)]
    each = torch.where(no_positive, hinge(margin - row_distances(rows, nearest, distance)), each)
    each = torch.where(no_negative, hinge(torch.full_like(each, margin)), each)
    return each.mean()
