"""What a step minimises, apart from the proximal term."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dmlap_kernels.distributed import of_all_ranks
from dmlap_kernels.losses import LOSSES, PROXY_LOSSES
from dmlap_kernels.problem import PairStats
from dmlap_kernels.trainer import defaults

SIDES = ("references", "anchors", "both")


class AlternatingObjective(nn.Module):
    """Constraints between representatives and samples, plus the ordinary in-batch loss.

    With a loss of proxies the representatives are the proxies of those constraints, and the
    in-batch loss has learnable ones of its own.

    Args:
        loss: a name in `dmlap_kernels.losses.LOSSES` or ``PROXY_LOSSES``.
        options: keywords of that loss; ``reduction`` is ``"mean_nonzero"`` unless they say other,
            so that the constraints that are still violated keep their pull when they are few, and
            ``normalize`` is False (proxy_nca aside) and ``form`` ``"generalized"``.
        in_batch_weight: weight of the loss over all pairs of the batch.
        side: side of the representatives, ``"references"`` (the samples are the anchors),
            ``"anchors"``, or ``"both"``: the mean of the two. References where they are proxies.
        between_weight: weight of the loss over the pairs of representatives, 0 where they are
            proxies. With one of each class they are negative pairs, which some losses do not
            constrain alone.
        num_classes, embedding_dim: shape of the learnable proxies; for losses of proxies only.

    Raises:
        TypeError, ValueError: options that the loss does not take, or a form that proxies have not.
    """

    def __init__(
        self,
        loss: str,
        options: dict[str, Any],
        *,
        in_batch_weight: float = defaults.IN_BATCH_WEIGHT,
        side: str = defaults.SIDE,
        between_weight: float = defaults.BETWEEN_WEIGHT,
        num_classes: int | None = None,
        embedding_dim: int | None = None,
    ) -> None:
        super().__init__()
        options = defaults.loss_options(loss, options)
        self.in_batch_weight = in_batch_weight
        self.side = side
        self.between_weight = between_weight
        self.relaxed: nn.Module
        self.in_batch: nn.Module
        if loss in PROXY_LOSSES:
            if side != "references" or between_weight:
                raise ValueError(
                    f"loss {loss!r} has representatives as proxies, so their side must be "
                    f"'references' and between_weight 0, got {side!r} and {between_weight}"
                )
            if num_classes is None or embedding_dim is None:
                raise ValueError(f"loss {loss!r} needs num_classes and embedding_dim")
            with torch.device("cpu"):  # equal seeds give equal proxies
                self.in_batch = PROXY_LOSSES[loss](num_classes, embedding_dim, **options)
            self.relaxed = _Against(self.in_batch, return_stats=True)
            return
        with torch.device("cpu"):
            self.relaxed = LOSSES[loss](**options, return_stats=True)
            self.in_batch = LOSSES[loss](**options)
        if options.get("learn_beta"):
            self.in_batch.beta = self.relaxed.beta

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        representatives: int,
        *,
        pinned: bool | None = None,
    ) -> tuple[Tensor, PairStats]:
        """Loss and statistics of a batch whose first rows are representatives.

        Args:
            embeddings: (B, D).
            labels: (B,) int64.
            representatives: how many rows lead the batch as representatives. 0: the in-batch loss
                alone, unweighted.
            pinned: in a `global_batch`, whether any rank has representatives; None: as this one.

        Returns:
            The loss () and the statistics of the constraints between representatives and samples
            (of all pairs when there are no representatives), with the samples as anchors for
            ``side="both"``.
        """
        if not (representatives if pinned is None else pinned):
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


class _Against(nn.Module):
    """A loss of proxies with others in their place, or its own if none are given."""

    def __init__(self, loss: Any, **options: Any) -> None:
        super().__init__()
        self._loss = (loss,)  # in a tuple: its parameters are registered once
        self._options = options

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        proxies: Tensor | None = None,
        proxy_labels: Tensor | None = None,
    ) -> tuple[Tensor, PairStats]:
        (loss,) = self._loss
        if proxies is None:
            proxies, proxy_labels = loss.proxies, loss.proxy_labels
        else:
            assert proxy_labels is not None
            # Losses take proxies for parameters, which all ranks have; these lie on one each.
            proxies, proxy_labels = of_all_ranks(proxies, proxy_labels)
        options = {**loss.keywords(), **self._options}
        return type(loss).function(embeddings, labels, proxies, proxy_labels, **options)
