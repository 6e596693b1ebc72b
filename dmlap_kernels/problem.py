"""What is asked of a backend: the pair problem, its options and its statistics.

Imports nothing of the package, so that every other module may import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

# "dot" is minus the inner product: the one distance that can be negative, for similarity losses.
DISTANCES = ("euclidean", "sqeuclidean", "cosine", "dot")
NONNEGATIVE_DISTANCES = DISTANCES[:3]
REDUCTIONS = ("mean", "mean_nonzero", "sum", "none")
PRECISIONS = ("highest", "high", "medium")
EMBEDDING_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class PairSpec(NamedTuple):
    """A loss over pairs, apart from its tensors.

    ``params`` are the numbers of the policy named by ``loss``, in the order in which the policy
    declares them (``csrc/include/dmlap/policies``); flags are 0 or 1. One that is None is the next
    entry of `PairProblem.numbers`. A ``precision`` of None follows PyTorch's own setting at the
    time the sweep runs. With a ``match``, a `dmlap_kernels.match.Match`, the positive pairs are
    those that it names, and labels are not compared; it is not part of what `encode` writes.
    """

    loss: str
    params: tuple[Any, ...]
    distance: str = "euclidean"
    normalize: bool = False
    reduction: str = "mean"
    precision: str | None = None
    match: Any = None

    def encode(self) -> str:
        """As one line, which custom operators take; params that are None stay None."""
        flags = (self.loss, self.distance, str(int(self.normalize)), self.reduction)
        params = ",".join("*" if p is None else repr(float(p)) for p in self.params)
        return ";".join((*flags, self.precision or "", params))

    @staticmethod
    def decode(text: str) -> PairSpec:
        loss, distance, normalize, reduction, precision, params = text.split(";")
        found = tuple(None if p == "*" else float(p) for p in params.split(",") if p)
        return PairSpec(loss, found, distance, normalize == "1", reduction, precision or None)

    def filled(self, numbers: Sequence[float | Tensor]) -> PairSpec:
        """The same with ``numbers`` in the place of the params that are None."""
        left = iter(numbers)
        return self._replace(params=tuple(next(left) if p is None else p for p in self.params))

    @property
    def unit_rows(self) -> bool:
        """Whether rows are L2-normalised before distances are taken."""
        return self.normalize or self.distance == "cosine"


class PairProblem(NamedTuple):
    """The tensors of a call.

    Anchors (B, D) and their labels (B,) int64; references (N, D) and theirs, or None; a learnable
    number of each anchor (B,) in the compute dtype, or None where the loss has none; with
    references, the index (B,) int64 of the one that is the anchor itself, -1 for none, or None
    where no anchor is among them: that pair is neither positive nor negative; the params of the
    loss that were given as tensors (P,), to which the gradient flows, or None.
    """

    x: Tensor
    labels: Tensor
    y: Tensor | None
    ref_labels: Tensor | None
    anchor_params: Tensor | None = None
    self_index: Tensor | None = None
    numbers: Tensor | None = None

    def changed(
        self,
        *,
        rows: tuple[Tensor, Tensor | None] | None = None,
        anchor_params: Tensor | None = None,
        numbers: Tensor | None = None,
    ) -> PairProblem:
        """The same with other ``rows`` (anchors, references), anchor_params or numbers.

        By the constructor: PyTorch 2.8 cannot trace `_replace`.
        """
        x, y = (self.x, self.y) if rows is None else rows
        return PairProblem(
            x,
            self.labels,
            y,
            self.ref_labels,
            self.anchor_params if anchor_params is None else anchor_params,
            self.self_index,
            self.numbers if numbers is None else numbers,
        )

    @property
    def num_refs(self) -> int:
        return self.x.shape[0] if self.y is None else self.y.shape[0]

    @property
    def ref_side(self) -> tuple[Tensor, Tensor]:
        """The tensors of the reference side: the anchors themselves in the self case."""
        if self.y is None or self.ref_labels is None:
            return self.x, self.labels
        return self.y, self.ref_labels


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a loss is accumulated and returned."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class ClassScores:
    """Negative constraints between classes, of the classes present in a call.

    Attributes:
        classes: (Ca,) int64, the anchors' labels in ascending order.
        ref_classes: (Cr,) int64, the references' labels in ascending order.
        mean_violation: (Ca, Cr), mean over i in c and j in c' of ``[m_i - d_ij]+``; 0 where the
            labels are equal. ``m_i`` is the threshold of the loss: the negative margin for
            contrastive, beta plus the margin for margin; else the anchor's hardest positive
            distance (plus the margin for triplets), and an anchor without positives adds 0.
        min_distance: (Ca, Cr), smallest distance between the classes; inf where labels are equal.
    """

    classes: Tensor
    ref_classes: Tensor
    mean_violation: Tensor
    min_distance: Tensor


@dataclass(frozen=True)
class PairStats:
    """Statistics of one loss call; detached tensors on the device of the embeddings.

    Anchors are the embeddings, references the references, the proxies, or else the embeddings
    again; for proxy_anchor the anchors are the proxies and the references the embeddings.

    Attributes:
        constraints: () int64, number of terms of the loss: triplets, (positive) pairs or anchors;
            for margin the pairs of the anchors that have both a positive and a negative.
        violated: () int64, how many of them are strictly positive (the hinges of smooth triplets).
        violation: (), their sum; of the hinges, neither squared nor smoothed, for triplet,
            contrastive and margin.
        mean_positive_distance: (), over all positive pairs; nan when there are none.
        mean_negative_distance: (), over all negative pairs; nan when there are none.
        hardest_positive: (B,) int64, farthest positive of each anchor as an index into the
            references, -1 if there is none.
        hardest_negative: (B,) int64, nearest negative, likewise.
        class_scores: `ClassScores`, when they were asked for.
    """

    constraints: Tensor
    violated: Tensor
    violation: Tensor
    mean_positive_distance: Tensor
    mean_negative_distance: Tensor
    hardest_positive: Tensor
    hardest_negative: Tensor
    class_scores: ClassScores | None = None

    def packed(self) -> tuple[Tensor, Tensor]:
        """Counts and indices (2 + 2 B,) int64, and the three values; `unpack` reads them back."""
        counts = torch.stack((self.constraints, self.violated))
        values = (self.violation, self.mean_positive_distance, self.mean_negative_distance)
        indices = (self.hardest_positive, self.hardest_negative)
        return torch.cat((counts, *indices)), torch.stack(values)

    @staticmethod
    def unpack(
        counts: Tensor, values: Tensor, class_scores: ClassScores | None = None
    ) -> PairStats:
        positive, negative = counts[2:].chunk(2) if counts.numel() > 2 else (counts[2:],) * 2
        return PairStats(
            counts[0], counts[1], values[0], values[1], values[2], positive, negative, class_scores
        )


class Nearest(NamedTuple):
    """Distances (Q, k), ascending, and int64 indices (Q, k) of the nearest references."""

    distances: Tensor
    indices: Tensor


class HardClasses(NamedTuple):
    """Classes (C,), and for each its k hardest others: labels, scores and distances (C, k)."""

    classes: Tensor
    neighbors: Tensor
    scores: Tensor
    distances: Tensor


class Gradients(NamedTuple):
    """What a backend's backward sweep returns, each of the shape and dtype of its input.

    At the anchors, at the references (None in the self case) and at ``anchor_params`` (None if
    there are none); None also where the eager call knows that anchors or references need none.
    """

    x: Tensor | None
    y: Tensor | None
    anchor_params: Tensor | None = None


class Forward(NamedTuple):
    """What a backend's forward sweep returns.

    ``saved`` is handed back to its backward sweep. So is ``context`` where the two belong to one
    eager call: whatever saves the backward work and can be done without.
    """

    loss: Tensor
    saved: Tensor
    stats: PairStats | None = None
    context: Any = None
