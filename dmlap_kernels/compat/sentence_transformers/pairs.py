"""Labelled pairs, row i of one column with row i of the other."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer import losses
from torch import Tensor


class OnlineContrastiveLoss(losses.OnlineContrastiveLoss):
    """``losses.OnlineContrastiveLoss`` by masks in the place of selections.

    A selection has as many rows as the data say, for which a GPU is waited for.
    """

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        one, other = embeddings[:2]
        labels = labels.view(-1)
        if len(labels) != len(one):
            raise ValueError(
                f"{type(self).__name__} takes one label a pair, got {len(labels)} labels for "
                f"{len(one)} pairs"
            )
        positive, negative = labels == 1, labels == 0
        if not self._checked_labels:
            self._checked_labels = True
            if not bool((positive | negative).all()):
                warnings.warn(
                    "OnlineContrastiveLoss leaves out pairs whose label is neither 0 nor 1",
                    UserWarning,
                    stacklevel=4,
                )
        distances = self.distance_metric(one, other)
        known = distances.detach()
        farthest = known.masked_fill(~positive, -torch.inf).amax()
        nearest = known.masked_fill(~negative, torch.inf).amin()
        below = torch.where(positive.any(), farthest, _mean(known, negative))
        above = torch.where(negative.any(), nearest, _mean(known, positive))
        pulls = distances.masked_fill(~(positive & (known > above)), 0)
        pushes = F.relu(self.margin - distances).masked_fill(~(negative & (known < below)), 0)
        return pulls.square().sum() + pushes.square().sum()


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask, 0).sum() / mask.sum()
