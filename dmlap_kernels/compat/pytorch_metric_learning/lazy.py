"""What a miner of this package gives: an ``indices_tuple`` that is only listed if someone looks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from dmlap_kernels.compat.pytorch_metric_learning.geometry import NotFused, geometry


class Mined:
    """An ``indices_tuple`` that remembers what was asked of which miner.

    A fused loss reads the question. For anybody else it is the tuple of indices, which the miner
    lists the first time that it is looked at.

    Attributes:
        miner: that was called, None for all pairs.
        skip: (B,) the reference that is the anchor itself, -1 for none; a miner never pairs them.
    """

    def __init__(
        self,
        miner: Any,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> None:
        self.miner, self.skip = miner, skip
        self._asked = tuple(
            None if t is None else t.detach() for t in (embeddings, labels, ref_emb, ref_labels)
        )
        self._versions = tuple(None if t is None else t._version for t in self._asked)
        self._listed: tuple[Tensor, ...] | None = None

    @property
    def everything(self) -> bool:
        """Whether every pair and every triplet is taken."""
        return self.miner is None or getattr(self.miner, "takes_everything", False)

    def is_of(
        self, embeddings: Tensor, labels: Tensor | None, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> bool:
        """Whether the miner saw these very tensors, as they are now."""
        x, known, y, ref_known = self._asked
        if self._versions != tuple(None if t is None else t._version for t in self._asked):
            return False
        if not (_same(x, embeddings) and _same(known, labels)):
            return False
        if y is None:
            return ref_emb is embeddings and ref_labels is labels
        return _same(y, ref_emb) and _same(ref_known, ref_labels)

    def is_kind(self, kind: str, distance: Any) -> bool:
        """Whether the miner is of that class, and measures as ``distance`` does."""
        if self.miner is None or self.miner.kind != kind:
            return False
        try:
            return geometry(self.miner.distance) == geometry(distance)
        except NotFused:
            return False

    def indices(self) -> tuple[Tensor, ...]:
        if self._listed is None:
            self._listed = self._all() if self.miner is None else self.miner.listed(*self._asked)
            if self.skip is not None:
                self._listed = without(self._listed, self.skip)
        return self._listed

    def _all(self) -> tuple[Tensor, ...]:
        _, labels, _, ref_labels = self._asked
        return lmu.get_all_pairs_indices(labels, ref_labels)

    def __len__(self) -> int:
        return 4 if self.miner is None else self.miner.parts

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.indices())

    def __getitem__(self, at: Any) -> Any:
        return self.indices()[at]


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
        and one.device == other.device
    )


def without(indices: tuple[Tensor, ...], skip: Tensor) -> tuple[Tensor, ...]:
    """``indices`` without positive pairs of an anchor and itself, nor triplets of such a pair."""
    keep = skip[indices[0]].ne(indices[1])
    if len(indices) == 3:
        return tuple(part[keep] for part in indices)
    a1, p, a2, n = indices
    return a1[keep], p[keep], a2, n
