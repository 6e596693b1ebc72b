"""In-batch negatives: the softmax of a query over documents, in all directions.

Every direction is a log-sum over rows. With references of which exactly one, the positive, has the
label of an anchor, NT-Xent is ``log(sum of all e^s / e^s(positive))``: what a direction adds, up to
the positive's similarity, which is the same for both sides of a pair.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer, util
from sentence_transformers.sentence_transformer import losses
from torch import Tensor

from dmlap_kernels.compat.sentence_transformers.metrics import (
    Similarity,
    row_similarities,
    similarity,
)
from dmlap_kernels.functional import fused_nt_xent_loss
from dmlap_kernels.problem import compute_dtype


class MultipleNegativesRankingLoss(losses.MultipleNegativesRankingLoss):
    """``losses.MultipleNegativesRankingLoss`` in one fused sweep for each side of the pairs.

    A direction that leaves out several documents of an anchor, and hardness weighting, take a sweep
    for each column of documents. No matrix of similarities is kept.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity_fct: Similarity = util.cos_sim,
        gather_across_devices: bool = False,
        directions: Any = ("query_to_doc",),
        partition_mode: Any = "joint",
        hardness_mode: Any = None,
        hardness_strength: float = 0.0,
    ) -> None:
        super().__init__(
            model,
            scale,
            similarity_fct,
            gather_across_devices,
            directions,
            partition_mode,
            hardness_mode,
            hardness_strength,
        )
        self._distance()

    def _distance(self) -> str:
        name = type(self).__name__
        distance = similarity(name, self.similarity_fct)
        if distance == "euclidean" and ("doc_to_doc" in self.directions or self._hardness()):
            raise ValueError(
                f"{name} computes doc_to_doc and hardness weighting for util.cos_sim and "
                "util.dot_score, got util.euclidean_sim; take the class of sentence-transformers"
            )
        return distance

    def _hardness(self) -> str | None:
        return self.hardness_mode if self.hardness_strength > 0 else None

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None
    ) -> Tensor:
        if len(embeddings) < 2:
            raise ValueError(
                f"{type(self).__name__} takes a column of queries and at least one of documents, "
                f"got {len(embeddings)} column(s)"
            )
        rows, first = len(embeddings[0]), 0
        if self.gather_across_devices:
            embeddings = [util.all_gather_with_grad(column) for column in embeddings]
            first = util.get_rank() * rows
        queries, *columns = embeddings
        own = torch.arange(first, first + rows, device=queries.device)
        batch = _Batch(queries, columns, own, self.scale, self._distance())
        kept, beside = self._query_side(batch)
        backwards, beside_documents = self._document_side(batch)
        if self.partition_mode == "joint":
            return _log_total(kept + backwards, beside + beside_documents).mean()
        directions = [_log_total(kept, beside), *backwards]
        return torch.stack(directions).mean()

    def _query_side(self, batch: _Batch) -> tuple[list[Tensor], list[Tensor]]:
        """What query_to_doc and query_to_query add; see `_log_total`."""
        queries = batch.queries[batch.own]
        between = "query_to_query" in self.directions
        hardness = self._hardness()
        if hardness is None or (hardness == "hard_negatives" and len(batch.columns) == 1):
            others = [*batch.columns[1:], batch.queries] if between else batch.columns[1:]
            return [batch.softmax(queries, batch.columns[0], others, last=between)], []
        harder = self.scale + self.hardness_strength
        elsewhere = self.scale if hardness == "hard_negatives" else harder
        beside = [batch.beside(queries, column, elsewhere) for column in batch.columns]
        if between:
            beside.append(batch.beside(queries, batch.queries, self.scale))
        positive = self.scale * batch.positive
        kept = [torch.zeros_like(positive)]
        for column in batch.columns[1:]:
            query, document = batch.real(queries, column[batch.own])
            negative = row_similarities(query, document, batch.distance)
            added = 0 if hardness == "in_batch_negatives" else self.hardness_strength
            kept.append(self.scale * negative + added * negative.detach() - positive)
        return kept, beside

    def _document_side(self, batch: _Batch) -> tuple[list[Tensor], list[Tensor]]:
        """What doc_to_query and doc_to_doc add; see `_log_total`."""
        documents = batch.columns[0][batch.own]
        back, between = ("doc_to_query" in self.directions, "doc_to_doc" in self.directions)
        kept, columns = [], batch.columns if between else []
        if back:
            kept.append(batch.softmax(documents, batch.queries, columns[:1], last=between))
            columns = columns[1:]
        return kept, [batch.beside(documents, column, self.scale) for column in columns]


@dataclass(frozen=True)
class _Batch:
    """Queries and columns of documents (W, D) of all devices; ``own``: the rows (B,) of this one.

    The first column are the positives, the others hard negatives.
    """

    queries: Tensor
    columns: list[Tensor]
    own: Tensor
    scale: float
    distance: str

    def real(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Both in the dtype of the loss."""
        real = compute_dtype(torch.promote_types(self.queries.dtype, self.columns[0].dtype))
        return one.to(real), other.to(real)

    @property
    def positive(self) -> Tensor:
        """(B,) similarities of the pairs."""
        query, document = self.real(self.queries[self.own], self.columns[0][self.own])
        return row_similarities(query, document, self.distance)

    def softmax(
        self, anchors: Tensor, positives: Tensor, others: list[Tensor], *, last: bool
    ) -> Tensor:
        """(B,) ``log(sum e^(s - positive))`` over ``positives`` and ``others``.

        ``last``: the last of ``others`` holds the anchors themselves, which are left out.
        """
        world = torch.arange(len(positives), device=anchors.device)
        count = sum(map(len, others))
        labels = torch.cat((world, world.new_full((count,), -1))) if others else world
        references = torch.cat((positives, *others)) if others else positives
        loss = fused_nt_xent_loss(
            anchors,
            self.own,
            references,
            labels,
            self_index=self.own + len(labels) - len(others[-1]) if last else None,
            temperature=1 / self.scale,
            distance=self.distance,
            reduction="none",
        )
        return cast(Tensor, loss)

    def beside(self, anchors: Tensor, references: Tensor, scale: float) -> Tensor:
        """(B,) ``log(1 + sum e^(scale s - self.scale positive))`` over the references (W, D) but
        each anchor's own one.

        Of a larger ``scale`` the part above ``self.scale`` has no derivative (2503.04812, eq. 5).
        One row more is the positive of all anchors: in a feature of its own it has a 1 and each
        anchor the similarity of its pair.
        """
        anchors, references = self.real(anchors, references)
        if self.distance == "cosine":
            anchors, references = F.normalize(anchors), F.normalize(references)
        share = self.scale / scale
        if scale is not self.scale:
            anchors, references = _damped(anchors, share), _damped(references, share)
        anchors = torch.cat((anchors, share * self.positive[:, None]), dim=1)
        references = F.pad(references, (0, 1, 0, 1))
        references[-1, -1] = 1
        labels = self.own.new_ones(len(references))
        labels[-1] = 0
        loss = fused_nt_xent_loss(
            anchors,
            torch.zeros_like(self.own),
            references,
            labels,
            self_index=self.own,
            temperature=1 / scale,
            distance="dot",
            reduction="none",
        )
        return cast(Tensor, loss)


def _damped(rows: Tensor, share: float) -> Tensor:
    """``rows``, whose gradient is ``share`` of what arrives."""
    return rows.detach() + share * (rows - rows.detach())


def _log_total(kept: list[Tensor], beside: list[Tensor]) -> Tensor:
    """(B,) ``log(sum e^kept + sum (e^beside - 1))``; of ``kept`` one at least is not negative."""
    if len(kept) == 1 and not beside:
        return kept[0]
    most = torch.stack([one.detach() for one in (*kept, *beside)]).amax(0)
    total = torch.stack([torch.exp(one - most) for one in (*kept, *beside)]).sum(0)
    return most + torch.log(total - len(beside) * torch.exp(-most))


class CachedMultipleNegativesRankingLoss(losses.CachedMultipleNegativesRankingLoss):
    """``losses.CachedMultipleNegativesRankingLoss``: the texts in mini-batches, as there; the loss
    of the whole batch at once, without a matrix of similarities."""

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity_fct: Similarity = util.cos_sim,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        gather_across_devices: bool = False,
        directions: Any = ("query_to_doc",),
        partition_mode: Any = "joint",
        show_progress_bar: bool = False,
        hardness_mode: Any = None,
        hardness_strength: float = 0.0,
    ) -> None:
        super().__init__(
            model,
            scale,
            similarity_fct,
            mini_batch_size,
            mini_batch_num_tokens,
            gather_across_devices,
            directions,
            partition_mode,
            show_progress_bar,
            hardness_mode,
            hardness_strength,
        )
        self.loss = MultipleNegativesRankingLoss(
            model,
            scale,
            similarity_fct,
            gather_across_devices,
            directions,
            partition_mode,
            hardness_mode,
            hardness_strength,
        )

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        columns = [torch.cat(parts) for parts in reps]
        loss = self.loss.compute_loss_from_embeddings(columns, cast(Tensor, labels))
        if not with_backward:
            return loss
        loss.backward()
        return loss.detach()


# Deprecated since 6.0, and still there: a subclass repeats the warning when it is defined.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)

    class MultipleNegativesSymmetricRankingLoss(
        losses.MultipleNegativesSymmetricRankingLoss, MultipleNegativesRankingLoss
    ):
        """``losses.MultipleNegativesSymmetricRankingLoss`` in two fused sweeps."""

    class CachedMultipleNegativesSymmetricRankingLoss(
        losses.CachedMultipleNegativesSymmetricRankingLoss, CachedMultipleNegativesRankingLoss
    ):
        """``losses.CachedMultipleNegativesSymmetricRankingLoss`` in two fused sweeps."""
