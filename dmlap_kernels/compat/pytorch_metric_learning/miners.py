"""Miners under the names of theirs, which a fused loss takes into its sweep.

Called as theirs, they give an ``indices_tuple`` that is listed when somebody else looks at it.
"""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import miners as theirs
from pytorch_metric_learning.utils import common_functions as c_f
from torch import Tensor

from dmlap_kernels.compat.pytorch_metric_learning.lazy import Mined

# Elements of a block of distances of `DistanceWeightedMiner`: 8 MiB of float32.
_BLOCK = 2**21


class _Lazy:
    """Goes before a miner of theirs."""

    kind: str
    parts = 3  # of the tuple: triplets; 4 for pairs
    takes_everything = False
    collect_stats: bool

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Any:
        # Statistics are of the list.
        if self.collect_stats:
            return self.listed(embeddings, labels, ref_emb, ref_labels)
        c_f.check_shapes(embeddings, labels)
        labels = c_f.to_device(labels, embeddings)
        if ref_labels is not None:
            ref_labels = c_f.to_device(ref_labels, embeddings)
        return Mined(self, embeddings, labels, ref_emb, ref_labels)

    def listed(self, *asked: Any) -> tuple[Tensor, ...]:
        """The indices, as theirs makes them."""
        return super().forward(*asked)  # type: ignore[misc]


class BatchHardMiner(_Lazy, theirs.BatchHardMiner):
    """Their ``BatchHardMiner``; `TripletMarginLoss` takes it into its sweep."""

    kind = "BatchHardMiner"


class BatchEasyHardMiner(_Lazy, theirs.BatchEasyHardMiner):
    """Their ``BatchEasyHardMiner``; the strategies "hard" or "easy" and "hard", and "easy" and
    "semihard", are in the sweep of `TripletMarginLoss`, "all" and "all" in that of every loss, the
    others are listed."""

    kind = "BatchEasyHardMiner"
    parts = 4

    @property
    def picks(self) -> tuple[str, str] | None:
        """Both strategies, None where a range of distances is left out."""
        if self.allowed_pos_range is not None or self.allowed_neg_range is not None:
            return None
        return self.pos_strategy, self.neg_strategy

    @property
    def takes_everything(self) -> bool:  # type: ignore[override]
        return self.picks == ("all", "all")


class MultiSimilarityMiner(_Lazy, theirs.MultiSimilarityMiner):
    """Their ``MultiSimilarityMiner``; `MultiSimilarityLoss` takes it into its sweep."""

    kind = "MultiSimilarityMiner"
    parts = 4


class TripletMarginMiner(_Lazy, theirs.TripletMarginMiner):
    """Their ``TripletMarginMiner``; `TripletMarginLoss` takes it into its sweep."""

    kind = "TripletMarginMiner"


class PairMarginMiner(_Lazy, theirs.PairMarginMiner):
    """Their ``PairMarginMiner``; `ContrastiveLoss` takes it into its sweep."""

    kind = "PairMarginMiner"
    parts = 4


class DistanceWeightedMiner(_Lazy, theirs.DistanceWeightedMiner):
    """Their ``DistanceWeightedMiner``; `TripletMarginLoss` takes it into its sweep, for the others
    it draws a block of anchors at a time. Other draws than theirs, from the same distribution:
    each positive pair once with one negative, where theirs draws the positives as well."""

    kind = "DistanceWeightedMiner"

    def mine(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor
    ) -> tuple[Tensor, ...]:
        alone = ref_labels is labels
        x = torch.nn.functional.normalize(embeddings.float())
        y = torch.nn.functional.normalize(ref_emb.float())
        step, found = max(1, _BLOCK // max(len(y), 1)), []
        for start in range(0, len(x), step):
            rows = torch.arange(start, min(start + step, len(x)), device=x.device)
            same = labels[rows, None] == ref_labels
            weights = self._weights(torch.cdist(x[rows], y), same, x.shape[1])
            if alone:
                same[rows - start, rows] = False
            a, p = torch.where(same)
            some = weights.sum(1)[a] > 0
            a, p = a[some], p[some]
            if len(a):
                n = torch.multinomial(weights[a], 1, replacement=True).flatten()
                found.append((a + start, p, n))
        if not found:
            empty = torch.empty(0, dtype=torch.int64, device=x.device)
            return empty, empty.clone(), empty.clone()
        return tuple(torch.cat(part) for part in zip(*found, strict=True))

    def _weights(self, distances: Tensor, same: Tensor, features: int) -> Tensor:
        """Inverse to the density of distances on the unit sphere (1706.07567, section 4), scaled
        for each anchor by its largest; 0 at positives and beyond the cut."""
        d = distances.clamp(min=self.cutoff)
        log = (2.0 - features) * d.log() - (features - 3) / 2 * (1 - d.square() / 4).log()
        drawn = ~same & (d < self.nonzero_loss_cutoff) & log.isfinite()
        log = log.masked_fill(~drawn, -torch.inf)
        largest = log.amax(1, keepdim=True)
        return (log - torch.where(largest.isfinite(), largest, 0)).exp()
