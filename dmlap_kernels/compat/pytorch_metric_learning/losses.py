"""Losses of pairs and triplets under the names, constructors and calls of theirs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from pytorch_metric_learning import losses as theirs
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from dmlap_kernels import functional
from dmlap_kernels.compat.pytorch_metric_learning import lists
from dmlap_kernels.compat.pytorch_metric_learning.base import (
    Call,
    Fused,
    PairFused,
    TripletFused,
)
from dmlap_kernels.compat.pytorch_metric_learning.cross_batch import CrossBatchMemory
from dmlap_kernels.compat.pytorch_metric_learning.geometry import (
    Entry,
    NotFused,
    geometry,
    many_terms,
    margin_geometry,
    of_anchors,
    reduced,
    reducer_of,
    simple,
)
from dmlap_kernels.compat.pytorch_metric_learning.lazy import Mined
from dmlap_kernels.compat.pytorch_metric_learning.mined import (
    hard_triplets,
    pairs_within,
    triplets_within,
)
from dmlap_kernels.compat.pytorch_metric_learning.proxy_losses import (
    ArcFaceLoss,
    CosFaceLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SoftTripleLoss,
)

__all__ = [
    "AngularLoss",
    "ArcFaceLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "CosFaceLoss",
    "CrossBatchMemory",
    "GeneralizedLiftedStructureLoss",
    "LiftedStructureLoss",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NPairsLoss",
    "NTXentLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SoftTripleLoss",
    "SupConLoss",
    "TripletMarginLoss",
]

# Bounds that leave the hinges of one sign at 0, whatever the rows.
_NO_POSITIVES, _NO_NEGATIVES = 1e30, -1e30
Sweep = Callable[[str], Tensor]


class TripletMarginLoss(TripletFused, theirs.TripletMarginLoss):
    """Their ``TripletMarginLoss``, all triplets by one sweep."""

    margin: Any
    swap: bool
    smooth_loss: bool

    def _way(self) -> str:
        few = self._few_way()
        if few is not None:
            return few
        return f"fused_triplet_loss(mining='all') on {margin_geometry(self.distance).distance}"

    def sweep(self, call: Call, **own: Any) -> Any:
        kind = margin_geometry(self.distance)
        if self.swap and not call.alone:
            raise NotFused(
                "swap is fused without references, since theirs looks up the distance of positive "
                "and negative among the anchors"
            )
        options = {"margin": self.margin, "smooth": self.smooth_loss, "swap": self.swap}
        options |= {"distance": kind.distance, "normalize": kind.normalize} | self._options() | own
        return functional.fused_triplet_loss(**call.arguments(), **options)

    def _all(self, call: Call) -> dict[str, Entry] | None:
        return self._few(call) if self.triplets_per_anchor != "all" else self._every(call)

    def _every(self, call: Call) -> dict[str, Entry] | None:
        def sweep(reduction: str) -> Tensor:
            return self.sweep(call, mining="all", reduction=reduction)

        return {"loss": many_terms(self.reducer_, sweep, call.labels, call.triplets, pairs=False)}

    @property
    def reducer_(self) -> Any:
        return reducer_of(self.reducer, "loss")

    def _mined(self, call: Call, mined: Mined) -> dict[str, Entry] | None:
        found = hard_triplets(self, call, mined) or triplets_within(self, call, mined)
        if found is None:
            return super()._mined(call, mined)
        return {"loss": found}

    def _listed(self, call: Call, indices: Any) -> dict[str, Entry] | None:
        found = self._triplets(call, indices)
        if found is None:
            return None
        indices, ap, an = found
        if self.swap:
            pn = lists.gathered(self.distance, call.x, call.y, indices[1], indices[2])
            an = self.distance.smallest_dist(an, pn)
        violation = self.distance.margin(ap, an) + self.margin
        function = torch.nn.functional.softplus if self.smooth_loss else torch.relu
        losses = function(violation)
        return {"loss": {"losses": losses, "indices": indices, "reduction_type": "triplet"}}


class ContrastiveLoss(PairFused, theirs.ContrastiveLoss):
    """Their ``ContrastiveLoss``, all pairs by one sweep; by two where positives and negatives have
    different reducers, or one that weighs anchors."""

    pos_margin: Any
    neg_margin: Any

    def _way(self) -> str:
        return f"fused_contrastive_loss on {margin_geometry(self.distance).distance}"

    def sweep(self, call: Call, **own: Any) -> Any:
        kind = margin_geometry(self.distance)
        options = {
            "pos_margin": kind.bound(self.pos_margin),
            "neg_margin": kind.bound(self.neg_margin),
        }
        options |= {"distance": kind.distance, "normalize": kind.normalize} | self._options() | own
        return functional.fused_contrastive_loss(**call.arguments(), **options)

    def positives(self, call: Call, **own: Any) -> Any:
        return self.sweep(call, neg_margin=_NO_NEGATIVES, **own)

    def negatives(self, call: Call, **own: Any) -> Any:
        return self.sweep(call, pos_margin=_NO_POSITIVES, **own)

    def reducers(self) -> tuple[Any, Any]:
        return reducer_of(self.reducer, "pos_loss"), reducer_of(self.reducer, "neg_loss")

    def _all(self, call: Call) -> dict[str, Entry] | None:
        pos, neg = self.reducers()
        if simple(pos) is not None and simple(pos) == simple(neg):
            return {"pos_loss": reduced(self.sweep(call, reduction=simple(pos)))}

        def positives(reduction: str) -> Tensor:
            return self.positives(call, reduction=reduction)

        def negatives(reduction: str) -> Tensor:
            return self.negatives(call, reduction=reduction)

        return {
            "pos_loss": many_terms(pos, positives, call.labels, lambda: call.counts()[0]),
            "neg_loss": many_terms(neg, negatives, call.labels, lambda: call.counts()[1]),
        }

    def _mined(self, call: Call, mined: Mined) -> dict[str, Entry] | None:
        return pairs_within(self, call, mined) or super()._mined(call, mined)

    def _listed(self, call: Call, indices: Any) -> dict[str, Entry] | None:
        indices = lmu.convert_to_pairs(indices, call.labels, call.ref_labels)
        indices = tuple(part.to(call.x.device) for part in indices)
        if all(len(part) <= 1 for part in indices):
            return None
        a1, p, a2, n = indices
        pairs = torch.cat((a1, a2)), torch.cat((p, n))
        distances = lists.gathered(self.distance, call.x, call.y, *pairs)
        return self._compute_loss(*distances.split((len(a1), len(a2))), indices)


class MarginLoss(TripletFused, theirs.MarginLoss):
    """Their ``MarginLoss``, all triplets by one sweep."""

    margin: Any
    beta: Tensor
    nu: Any
    learn_beta: bool

    def _way(self) -> str:
        few = self._few_way()
        if few is not None:
            return few
        self._reduction()
        return f"fused_margin_loss on {margin_geometry(self.distance).distance}"

    def _reduction(self) -> str:
        reducer = reducer_of(self.reducer, "margin_loss")
        if type(reducer) is theirs.margin_loss.DivisorReducer:
            return "mean_nonzero"
        reduction = simple(reducer)
        if reduction in ("mean", "sum"):
            return reduction
        raise NotFused(
            "MarginLoss over all triplets is fused for DivisorReducer (the default), MeanReducer "
            f"and SumReducer, got {type(reducer).__name__}: give an indices_tuple"
        )

    def sweep(self, call: Call, reduction: str) -> Tensor:
        kind = margin_geometry(self.distance)
        beta = kind.bound(self.beta.to(call.x.device))
        result = functional.fused_margin_loss(
            **call.arguments(),
            margin=self.margin,
            beta=beta,
            distance=kind.distance,
            normalize=kind.normalize,
            reduction=reduction,
            **self._options(),
        )
        assert isinstance(result, Tensor)
        return result

    def _all(self, call: Call) -> dict[str, Entry] | None:
        return self._few(call) if self.triplets_per_anchor != "all" else self._every(call)

    def _every(self, call: Call) -> dict[str, Entry] | None:
        value = self.sweep(call, self._reduction())
        return {
            "margin_loss": reduced(value),
            "beta_reg_loss": self._regularised(call),
        }

    def _regularised(self, call: Call) -> Entry:
        """nu times the boundary of every triplet, which is that of its anchor's class."""
        if not self.learn_beta or (self.nu == 0 and len(self.beta) > 1):
            return self.zero_loss()
        beta = self.beta.to(call.x.device)
        if len(beta) == 1:
            return reduced(beta * self.nu)
        counts = call.triplets()
        total = (beta[call.labels] * counts).sum() * self.nu
        reduction = self._reduction()
        if reduction == "mean":
            total = total / counts.sum().clamp(min=1)
        elif reduction == "mean_nonzero":  # over as many as the sum has hinges above 0
            with torch.no_grad():
                mean, whole = self.sweep(call, "mean_nonzero"), self.sweep(call, "sum")
                divisor = torch.where(mean > 0, whole / mean.clamp(min=1e-30), torch.inf).round()
            total = total / divisor
        return reduced(total)

    def _listed(self, call: Call, indices: Any) -> dict[str, Entry] | None:
        found = self._triplets(call, indices)
        if found is None:
            return None
        indices, ap, an = found
        beta = self.beta.to(call.x)
        if len(beta) > 1:
            beta = beta[call.labels[indices[0]]]
        pos = torch.relu(self.distance.margin(ap, beta) + self.margin)
        neg = torch.relu(self.distance.margin(beta, an) + self.margin)
        divisor = (pos > 0).sum() + (neg > 0).sum()
        terms = {"losses": pos + neg, "indices": indices, "reduction_type": "triplet"}
        return {
            "margin_loss": terms | {"divisor": divisor},
            "beta_reg_loss": self.compute_reg_loss(beta, indices[0], divisor),
        }


class _OfAnchors(PairFused):
    """One term an anchor: reducers of any kind get all of them."""

    once = True

    @abstractmethod
    def sweep(self, call: Call, **own: Any) -> Tensor:
        """The terms (B,) of the anchors, by the fused loss with the options ``own``."""

    def _all(self, call: Call) -> dict[str, Entry] | None:
        return {"loss": of_anchors(self.sweep(call))}


class MultiSimilarityLoss(_OfAnchors, theirs.MultiSimilarityLoss):
    """Their ``MultiSimilarityLoss`` by one sweep, `MultiSimilarityMiner` included."""

    listed = staticmethod(lists.multi_similarity)
    alpha: Any
    beta: Any
    base: Any

    def _way(self) -> str:
        return f"fused_multi_similarity_loss on {geometry(self.distance).distance}"

    def sweep(self, call: Call, **own: Any) -> Any:
        options = {"alpha": self.alpha, "beta": self.beta, "base": self.base, "reduction": "none"}
        options |= geometry(self.distance)._asdict() | self._options() | own
        return functional.fused_multi_similarity_loss(**call.arguments(), **options)

    def _mined(self, call: Call, mined: Mined) -> dict[str, Entry] | None:
        if mined.is_kind("MultiSimilarityMiner", self.distance):
            return {"loss": of_anchors(self.sweep(call, epsilon=float(mined.miner.epsilon)))}
        return super()._mined(call, mined)


class GeneralizedLiftedStructureLoss(_OfAnchors, theirs.GeneralizedLiftedStructureLoss):
    """Their ``GeneralizedLiftedStructureLoss`` by one sweep."""

    listed = staticmethod(lists.generalized_lifted)

    def _way(self) -> str:
        kind = margin_geometry(self.distance)
        return f"fused_lifted_structure_loss(form='generalized') on {kind.distance}"

    def sweep(self, call: Call, **own: Any) -> Any:
        kind = margin_geometry(self.distance)
        margins = {name: kind.bound(getattr(self, name)) for name in ("pos_margin", "neg_margin")}
        options = margins | {"form": "generalized", "reduction": "none"} | kind._asdict()
        return functional.fused_lifted_structure_loss(
            **call.arguments(), **options, **self._options()
        )


class SupConLoss(_OfAnchors, theirs.SupConLoss):
    """Their ``SupConLoss`` by one sweep: 0 for a batch of one class, as theirs has it."""

    listed = staticmethod(lists.sup_con)
    temperature: Any

    def _way(self) -> str:
        return f"fused_sup_con_loss on {geometry(self.distance).distance}"

    def sweep(self, call: Call, **own: Any) -> Any:
        values: Any = functional.fused_sup_con_loss(
            **call.arguments(),
            temperature=self.temperature,
            reduction="none",
            **geometry(self.distance)._asdict(),
            **self._options(),
        )
        label = call.labels[:1]
        others = (call.ref_labels != label).any() | (call.labels != label).any()
        return torch.where(others, values, torch.zeros_like(values))


class CircleLoss(_OfAnchors, theirs.CircleLoss):
    """Their ``CircleLoss`` by one sweep."""

    listed = staticmethod(lists.circle)
    m: Any
    gamma: Any

    def _way(self) -> str:
        kind = geometry(self.distance)
        if kind.distance != "cosine":
            raise NotFused(f"CircleLoss is fused on cosines, got {kind.distance}")
        return "fused_circle_loss on cosine"

    def sweep(self, call: Call, **own: Any) -> Any:
        self._way()
        options = {"m": self.m, "gamma": self.gamma, "reduction": "none"} | self._options()
        return functional.fused_circle_loss(**call.arguments(), **options)


class NTXentLoss(PairFused, theirs.NTXentLoss):
    """Their ``NTXentLoss`` by one sweep."""

    listed = staticmethod(lists.nt_xent)
    temperature: Any

    def _way(self) -> str:
        return f"fused_nt_xent_loss on {geometry(self.distance).distance}"

    def _all(self, call: Call) -> dict[str, Entry] | None:
        def sweep(reduction: str) -> Any:
            return functional.fused_nt_xent_loss(
                **call.arguments(),
                temperature=self.temperature,
                reduction=reduction,
                **geometry(self.distance)._asdict(),
                **self._options(),
            )

        reducer = reducer_of(self.reducer, "loss")
        return {"loss": many_terms(reducer, sweep, call.labels, lambda: call.counts()[0])}


class LiftedStructureLoss(PairFused, theirs.LiftedStructureLoss):
    """Their ``LiftedStructureLoss``: one sweep without references, a list of all pairs with them.

    With references theirs takes row numbers of references for row numbers of anchors, and so does
    the list.
    """

    listed = staticmethod(lists.lifted)

    def _way(self) -> str:
        kind = margin_geometry(self.distance)
        return (
            f"fused_lifted_structure_loss on {kind.distance}; with references a list of all pairs"
        )

    def _all(self, call: Call) -> dict[str, Entry] | None:
        if not call.alone:
            ref_labels = call.labels if call.skip is not None else call.ref_labels
            return self._listed(call, lmu.get_all_pairs_indices(call.labels, ref_labels))
        kind = margin_geometry(self.distance)
        margins = {name: kind.bound(getattr(self, name)) for name in ("pos_margin", "neg_margin")}

        def sweep(reduction: str) -> Any:
            return functional.fused_lifted_structure_loss(
                **call.arguments(),
                **margins,
                reduction=reduction,
                **kind._asdict(),
                **self._options(),
            )

        reducer = reducer_of(self.reducer, "loss")
        return {"loss": many_terms(reducer, sweep, call.labels, lambda: call.counts()[0])}

    def _mined(self, call: Call, mined: Mined) -> dict[str, Entry] | None:
        return self._all(call) if mined.everything and call.alone else None


class AngularLoss(Fused, theirs.AngularLoss):
    """Their ``AngularLoss``, in chunks of positive pairs: products with the rows of all references,
    which theirs leaves at their length, as no fused loss does."""

    def _way(self) -> str:
        return "chunks of positive pairs against all references"

    def _ours(self, embeddings: Tensor, labels: Any, *rest: Any) -> Any:
        theirs.angular_loss.c_f.labels_required(labels)
        return super()._ours(embeddings, labels, *rest)

    def _all(self, call: Call) -> dict[str, Entry] | None:
        skip = torch.arange(len(call.x), device=call.x.device) if call.alone else call.skip
        pairs = lists.positive_pairs(call.labels, call.ref_labels, skip)
        if len(pairs[0]) == 0 or not (call.counts()[1] > 0).any():
            return None
        return self._of(call, pairs)

    def _listed(self, call: Call, indices: Any) -> dict[str, Entry] | None:
        a1, p, a2, _ = lmu.convert_to_pairs(indices, call.labels, call.ref_labels)
        if len(a1) == 0 or len(a2) == 0:
            return None
        return self._of(call, (a1.to(call.x.device), p.to(call.x.device)))

    def _of(self, call: Call, pairs: lists.Indices) -> dict[str, Entry]:
        if self.collect_stats:
            keep = call.labels[pairs[0]][:, None] != call.ref_labels
            rows = call.x[pairs[0]], call.y[pairs[1]]
            self.set_stats(*map(self.distance.normalize, rows), call.x, call.y, keep)
        return {"loss": lists.angular(self, call.x, call.y, pairs, call.labels, call.ref_labels)}


class NPairsLoss(Fused, theirs.NPairsLoss):
    """Their ``NPairsLoss``: one pair a class, by a fused cross entropy of the pairs."""

    def _way(self) -> str:
        return f"one pair a class, fused_nt_xent_loss on {geometry(self.distance).distance}"

    def _ours(self, embeddings: Tensor, labels: Any, indices_tuple: Any, *refs: Any) -> Any:
        theirs.n_pairs_loss.c_f.labels_required(labels)
        theirs.n_pairs_loss.c_f.ref_not_supported(embeddings, labels, *refs)
        return super()._ours(embeddings, labels, indices_tuple, *refs)

    def _all(self, call: Call) -> dict[str, Entry] | None:
        """The first two rows of each class that has two."""
        order = call.labels.argsort(stable=True)
        ordered = call.labels[order]
        same = ordered[1:] == ordered[:-1]
        first = torch.cat((same.new_ones(1), ~same))[:-1] if len(same) else same
        starts = (same & first).nonzero().flatten()
        return self._of(call, order[starts], order[starts + 1])

    def _listed(self, call: Call, indices: Any) -> dict[str, Entry] | None:
        pairs = lmu.convert_to_pos_pairs_with_unique_labels(indices, call.labels)
        return self._of(call, *(part.to(call.x.device) for part in pairs))

    def _of(self, call: Call, anchors: Tensor, positives: Tensor) -> dict[str, Entry] | None:
        self.num_pairs = len(anchors)
        if self.num_pairs == 0:
            return None
        ids = torch.arange(self.num_pairs, device=call.x.device)
        values = functional.fused_nt_xent_loss(
            call.x[anchors],
            ids,
            call.x[positives],
            ids,
            temperature=1.0,
            reduction="none",
            **geometry(self.distance)._asdict(),
            **self._options(),
        )
        return {"loss": {"losses": values, "indices": anchors, "reduction_type": "element"}}
