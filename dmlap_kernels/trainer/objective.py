"""What a step minimises, apart from the proximal term."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dmlap_kernels.losses import LOSSES
from dmlap_kernels.problem import PairStats


class AlternatingObjective(nn.Module):
    """Constraints between representatives and samples, plus the ordinary in-batch loss.

    Args:
        loss: a name in `dmlap_kernels.losses.LOSSES`.
        options: keywords of that loss; ``reduction`` is ``"mean_nonzero"`` unless they say other,
            so that the constraints that are still violated keep their pull when they are few.
        in_batch_weight: weight of the loss over all pairs of the batch.
        side: side of the representatives, ``"references"`` (the samples are the anchors),
            ``"anchors"``, or ``"both"``: the mean of the two.
        between_weight: weight of the loss over the pairs of representatives. With one of each
            class they are negative pairs, which some losses do not constrain alone.
    """

    def __init__(
        self,
        loss: str,
        options: dict[str, Any],
        *,
        in_batch_weight: float = 0.1,
        side: str = "references",
        between_weight: float = 0.0,
    ) -> None:
        super().__init__()
        options = {"reduction": "mean_nonzero", **options}
        self.relaxed = LOSSES[loss](**options, return_stats=True)
        self.in_batch = LOSSES[loss](**options)
        self.in_batch_weight = in_batch_weight
        self.side = side
        self.between_weight = between_weight

    def forward(
        self, embeddings: Tensor, labels: Tensor, representatives: int
    ) -> tuple[Tensor, PairStats]:
        """Loss and statistics of a batch whose first rows are representatives.

        Args:
            embeddings: (B, D).
            labels: (B,) int64.
            representatives: how many rows lead the batch as representatives. 0: the in-batch loss
                alone, unweighted.

        Returns:
            The loss () and the statistics of the constraints between representatives and samples
            (of all pairs when there are no representatives), with the samples as anchors for
            ``side="both"``.
        """
        if not representatives:
            return self.relaxed(embeddings, labels)
        leading = embeddings[:representatives], labels[:representatives]
        samples = embeddings[representatives:], labels[representatives:]
        if self.side == "anchors":
            loss, stats = self.relaxed(*leading, *samples)
        else:
            loss, stats = self.relaxed(*samples, *leading)
        if self.side == "both":
            loss = (loss + self.in_batch(*leading, *samples)) / 2
        if self.between_weight:
            loss = loss + self.between_weight * self.in_batch(*leading)
        if self.in_batch_weight:
            loss = loss + self.in_batch_weight * self.in_batch(embeddings, labels)
        return loss, stats
