"""Losses of proxies under the names, constructors, parameters and calls of theirs."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as theirs
from pytorch_metric_learning import reducers
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dmlap_kernels import checks, functional
from dmlap_kernels.compat.pytorch_metric_learning.base import Call, Fused
from dmlap_kernels.compat.pytorch_metric_learning.geometry import (
    Entry,
    NotFused,
    geometry,
    reduced,
    reducer_of,
    simple,
)

# Elements of a block of similarities to proxies.
_BLOCK = 2**21


class _Proxies(Fused):
    """No references; an ``indices_tuple`` weighs the rows by how often it names them."""

    num_classes: int
    # Whether only the anchors of an indices_tuple count.
    anchors_only = False

    def _ours(self, embeddings: Tensor, labels: Any, indices_tuple: Any, *refs: Any) -> Any:
        c_f.labels_required(labels)
        c_f.ref_not_supported(embeddings, labels, *refs)
        self.cast_types(embeddings.dtype, embeddings.device)  # type: ignore[attr-defined]
        weights = None
        if indices_tuple is not None:
            weights = lmu.convert_to_weights(
                tuple(indices_tuple), labels, embeddings.dtype, using_ref=self.anchors_only
            )
        real = torch.promote_types(embeddings.dtype, torch.float32)
        x = embeddings.to(real)
        call = Call(x, labels, x, labels, True, None)
        found = self._weighed(call, weights)
        self.add_weight_regularization_to_loss_dict(  # type: ignore[attr-defined]
            found, self._weights()
        )
        return found

    def _weights(self) -> Tensor:
        return self.proxies  # type: ignore[attr-defined]

    @abstractmethod
    def _weighed(self, call: Call, weights: Tensor | None) -> dict[str, Entry]:
        """The loss with weights (B,) of the anchors, None for ones."""


def _of_rows(values: Tensor, weights: Tensor | None, rows: Tensor | None = None) -> Entry:
    values = values if weights is None else values * weights
    indices = torch.arange(len(values), device=values.device)
    if rows is not None:
        values, indices = values[rows], indices[rows]
    return {"losses": values, "indices": indices, "reduction_type": "element"}


class ProxyNCALoss(_Proxies, theirs.ProxyNCALoss):
    """Their ``ProxyNCALoss`` by one sweep over the proxies."""

    anchors_only = True
    softmax_scale: Any
    proxies: Tensor

    def _way(self) -> str:
        return f"fused_proxy_nca_loss on {geometry(self.distance).distance}"

    def _weighed(self, call: Call, weights: Tensor | None) -> dict[str, Entry]:
        values = functional.fused_proxy_nca_loss(
            call.x,
            call.labels,
            self.proxies,
            self.proxy_labels.to(call.x.device),
            softmax_scale=self.softmax_scale,
            reduction="none",
            **geometry(self.distance)._asdict(),
            **self._options(),
        )
        assert isinstance(values, Tensor)
        known = (call.labels >= 0) & (call.labels < len(self.proxies))
        return {"loss": _of_rows(values, weights, known)}


class SoftTripleLoss(_Proxies, theirs.SoftTripleLoss):
    """Their ``SoftTripleLoss``, whose parameter ``fc`` is (embedding_size, centres)."""

    fc: Tensor

    def _way(self) -> str:
        return f"fused_soft_triple_loss on {geometry(self.distance).distance}"

    def _weights(self) -> Tensor:
        return self.fc.t()

    def _weighed(self, call: Call, weights: Tensor | None) -> dict[str, Entry]:
        kind = geometry(self.distance)
        if not kind.inverted:
            raise NotFused(f"SoftTripleLoss is fused on similarities, got {kind.distance}")
        checks.classes_known("fc", self.num_classes, call.labels)
        classes = torch.arange(self.num_classes, device=call.x.device)
        values = functional.fused_soft_triple_loss(
            call.x,
            call.labels,
            self.fc.t().contiguous(),
            classes.repeat_interleave(self.centers_per_class),
            la=self.la,
            gamma=1 / self.gamma,
            margin=self.margin,
            reduction="none",
            **kind._asdict(),
            **self._options(),
        )
        assert isinstance(values, Tensor)
        return {"loss": _of_rows(values, weights)}


class _Margin(_Proxies):
    """A softmax whose weights ``W`` are (embedding_size, num_classes)."""

    W: Tensor
    margin: Any
    scale: Any
    fused: Any

    def _way(self) -> str:
        return f"{self.fused.__name__} on cosines"

    def _weights(self) -> Tensor:
        return self.W.t()

    def _margin(self) -> Any:
        """As ours takes it."""
        return self.margin

    def _weighed(self, call: Call, weights: Tensor | None) -> dict[str, Entry]:
        checks.classes_known("W", self.num_classes, call.labels)
        proxies = self.W.t().contiguous()
        if self.collect_stats:  # type: ignore[attr-defined]
            with torch.no_grad():
                own = F.cosine_similarity(call.x, proxies[call.labels])
                self.get_angles(own)  # type: ignore[attr-defined]
        values = self.fused(
            call.x,
            call.labels,
            proxies,
            margin=self._margin(),
            scale=self.scale,
            reduction="none",
            **self._options(),
        )
        return {"loss": _of_rows(values, weights)}


class CosFaceLoss(_Margin, theirs.CosFaceLoss):
    """Their ``CosFaceLoss``, whose parameter ``W`` is (embedding_size, num_classes)."""

    fused = staticmethod(functional.fused_cosface_loss)


class ArcFaceLoss(_Margin, theirs.ArcFaceLoss):
    """Their ``ArcFaceLoss``, whose parameter ``W`` is (embedding_size, num_classes)."""

    fused = staticmethod(functional.fused_arcface_loss)

    def _margin(self) -> Any:
        return self.margin * (180 / math.pi)  # theirs turned it into radians


class ProxyAnchorLoss(_Proxies, theirs.ProxyAnchorLoss):
    """Their ``ProxyAnchorLoss`` by one sweep over the proxies; with an ``indices_tuple``, whose
    weights are in the exponents, by blocks of proxies."""

    proxies: Tensor
    alpha: Any
    margin: Any

    def _way(self) -> str:
        self._reduction()
        return f"fused_proxy_anchor_loss on {self._kind().distance}"

    def _kind(self) -> Any:
        kind = geometry(self.distance)
        if not kind.inverted:
            raise NotFused(f"ProxyAnchorLoss is fused on similarities, got {kind.distance}")
        return kind

    def _reduction(self) -> str | None:
        """None where the terms of each proxy are needed."""
        pos, neg = (reducer_of(self.reducer, name) for name in ("pos_loss", "neg_loss"))
        both = {type(pos), type(neg)}
        if both == {reducers.DivisorReducer}:
            return "mean"
        if both == {reducers.MeanReducer}:
            return "sum"
        found = {simple(pos), simple(neg)}
        return found.pop() if len(found) == 1 else None

    def _weighed(self, call: Call, weights: Tensor | None) -> dict[str, Entry]:
        checks.classes_known("proxies", self.num_classes, call.labels)
        reduction = self._reduction()
        if reduction is None or weights is not None:
            return self._of_proxies(call, weights)
        value = functional.fused_proxy_anchor_loss(
            call.x,
            call.labels,
            self.proxies,
            margin=self.margin,
            alpha=self.alpha,
            reduction=reduction,
            **self._kind()._asdict(),
            **self._options(),
        )
        assert isinstance(value, Tensor)
        if type(reducer_of(self.reducer, "pos_loss")) is reducers.MeanReducer:
            value = value / self.num_classes  # theirs counts proxies without positives as well
        return {"pos_loss": reduced(value)}

    def _of_proxies(self, call: Call, weights: Tensor | None) -> dict[str, Entry]:
        """Both terms of every proxy, (C,) each."""
        self._kind()
        extra = 0 if weights is None else (weights.to(call.x) - 1)[:, None]

        def block(classes: Tensor) -> Tensor:
            proxies = self.proxies.to(call.x.dtype)[classes]
            similarity = self.distance(call.x, proxies)
            positive = call.labels[:, None] == classes
            terms = [
                self.alpha * (self.margin - similarity) + extra,
                self.alpha * (self.margin + similarity) + extra,
            ]
            sums = []
            for keep, exponents in zip((positive, ~positive), terms, strict=True):
                exponents = exponents.masked_fill(~keep, c_f.neg_inf(exponents.dtype))
                lse = torch.logsumexp(F.pad(exponents, (0, 0, 0, 1)), 0)
                sums.append(lse.masked_fill(~keep.any(0), 0))
            return torch.stack(sums)

        classes = torch.arange(self.num_classes, device=call.x.device)
        step = max(1, _BLOCK // max(len(call.x), 1))
        pos, neg = torch.cat(
            [
                checkpoint(block, part, use_reentrant=False, preserve_rng_state=False)
                for part in classes.split(step)
            ],
            1,
        )
        entry = {"indices": classes, "reduction_type": "element"}
        present = len(call.labels.unique())
        return {
            "pos_loss": entry | {"losses": pos, "divisor": present},
            "neg_loss": entry | {"losses": neg, "divisor": self.num_classes},
        }
