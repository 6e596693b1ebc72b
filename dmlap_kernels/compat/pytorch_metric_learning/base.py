"""What the losses share: which way a call takes, and what is said where there is none."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from dmlap_kernels import checks
from dmlap_kernels.backends.registry import NAMES as BACKENDS
from dmlap_kernels.compat.pytorch_metric_learning import lists
from dmlap_kernels.compat.pytorch_metric_learning.geometry import (
    Entry,
    NotFused,
    margin_geometry,
    pairs_of_anchors,
)
from dmlap_kernels.compat.pytorch_metric_learning.lazy import Mined
from dmlap_kernels.problem import compute_dtype

_warned: set[str] = set()


class Call(NamedTuple):
    """One call: rows in the dtype that we compute in, and who is left out of the pairs."""

    x: Tensor
    labels: Tensor
    y: Tensor
    ref_labels: Tensor
    alone: bool  # no references: the batch against itself
    skip: Tensor | None  # (B,) the reference that is the anchor itself, -1 for none

    def arguments(self) -> dict[str, Any]:
        """Of a fused loss."""
        given = {"embeddings": self.x, "labels": self.labels}
        if self.alone:
            return given
        refs = {"ref_embeddings": self.y, "ref_labels": self.ref_labels}
        return given | refs | {"self_index": self.skip}

    def counts(self) -> tuple[Tensor, Tensor]:
        """(B,) positives and (B,) negatives of each anchor."""
        positives, negatives = pairs_of_anchors(self.labels, self.ref_labels, self.alone)
        if self.alone or self.skip is None:
            return positives, negatives
        known = self.skip >= 0
        alike = self.ref_labels[self.skip.clamp(min=0)] == self.labels
        return positives - (known & alike).long(), negatives - (known & ~alike).long()

    def triplets(self) -> Tensor:
        positives, negatives = self.counts()
        return positives * negatives


class Fused:
    """Goes before a loss of pytorch-metric-learning, whose `forward` calls `compute_loss`.

    Reducers, regularisers, checks and records are theirs. Where all pairs count, the terms come
    from a fused loss; where an ``indices_tuple`` is given, from distances gathered for it.

    Args:
        strict: False hands what cannot be fused to pytorch-metric-learning, with one warning;
            True raises `NotFused`.
        backend, precision: as in the functions of `dmlap_kernels`.
    """

    strict: bool = True
    backend: str = "auto"
    precision: str | None = None
    inner_miner: Any = None
    distance: Any
    reducer: Any

    def __init__(
        self,
        *args: Any,
        strict: bool = True,
        backend: str = "auto",
        precision: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.strict = checks.flag("strict", strict)
        self.backend = checks.choice("backend", backend, BACKENDS)
        self.precision = checks.precision(precision)

    def explain(self) -> str:
        """One sentence that says what a call without an ``indices_tuple`` runs."""
        name = type(self).__name__
        try:
            ways = self._way()
        except NotFused as reason:
            end = "it is refused" if self.strict else "pytorch-metric-learning computes it"
            return f"{name}: {end}: {reason}"
        return f"{name}: {ways}"

    @abstractmethod
    def _way(self) -> str:
        """What runs, in words; `NotFused` with the reason where nothing of ours does."""

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Any,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Entry]:
        if self.inner_miner is not None:
            if indices_tuple is not None:
                raise ValueError(
                    "indices_tuple must be left out where the loss was fused with a miner, as it "
                    "mines by itself"
                )
            indices_tuple = self.inner_miner(
                embeddings, labels, *_references(embeddings, labels, ref_emb, ref_labels)
            )
        try:
            with torch.autocast(embeddings.device.type, enabled=False):
                found = self._ours(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        except NotFused as reason:
            if self.strict:
                raise
            _warn(f"{type(self).__name__} is computed by pytorch-metric-learning: {reason}")
            return super().compute_loss(  # type: ignore[misc]
                embeddings, labels, indices_tuple, ref_emb, ref_labels
            )
        if found is None:
            return self.zero_losses()  # type: ignore[attr-defined]
        self._record_norms(embeddings, ref_emb)
        if not torch.is_autocast_enabled(embeddings.device.type):
            _cast(found, embeddings.dtype)
        return found

    def _ours(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Any,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, Entry] | None:
        alone = ref_emb is embeddings and ref_labels is labels
        skip = None
        if not alone and labels is not None and ref_labels is labels:
            skip = torch.arange(len(labels), device=labels.device)  # theirs leaves (i, i) out too
        real = torch.promote_types(compute_dtype(embeddings.dtype), compute_dtype(ref_emb.dtype))
        x = embeddings.to(real)
        y = x if ref_emb is embeddings else ref_emb.to(real)
        call = Call(x, labels, y, ref_labels, alone, skip)  # type: ignore[arg-type]
        if isinstance(indices_tuple, Mined):
            if indices_tuple.is_of(embeddings, labels, ref_emb, ref_labels):
                if indices_tuple.skip is not None:
                    call = call._replace(skip=indices_tuple.skip)
                found = self._mined(call, indices_tuple)
                if found is not None:
                    return found
            indices_tuple = tuple(indices_tuple)
        if indices_tuple is None and labels is not None:
            return self._all(call)
        if indices_tuple is None:
            raise ValueError("labels and indices_tuple cannot both be None")
        return self._listed(call, indices_tuple)

    @abstractmethod
    def _all(self, call: Call) -> dict[str, Entry] | None:
        """Over all pairs of ``call``; None for their loss of zero."""

    def _mined(self, call: Call, mined: Mined) -> dict[str, Entry] | None:
        """With the miner inside of the sweep; None where the list must be made."""
        return self._all(call) if mined.everything else None

    @abstractmethod
    def _listed(self, call: Call, indices: Any) -> dict[str, Entry] | None:
        """Over the pairs or triplets of a list; None for their loss of zero."""

    def _options(self) -> dict[str, Any]:
        return {"backend": self.backend, "precision": self.precision}

    def _record_norms(self, embeddings: Tensor, ref_emb: Tensor) -> None:
        """What their distance keeps of the rows that it is given."""
        if not self.distance.collect_stats:
            return
        with torch.no_grad():
            self.distance.reset_stats()
            unit = self.distance.maybe_normalize
            self.distance.set_default_stats(embeddings, ref_emb, unit(embeddings), unit(ref_emb))


def _references(x: Tensor, labels: Any, y: Tensor, ref_labels: Any) -> tuple[Any, Any]:
    return (None, None) if y is x and ref_labels is labels else (y, ref_labels)


def _cast(entries: dict[str, Entry], dtype: torch.dtype) -> None:
    for entry in entries.values():
        if isinstance(entry["losses"], Tensor):
            entry["losses"] = entry["losses"].to(dtype)


def _warn(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        warnings.warn(text, UserWarning, stacklevel=6)


class PairFused(Fused):
    """Losses whose list is made of pairs."""

    # Theirs writes the pairs into masks, so that one listed twice counts once.
    once = False
    listed: Callable[..., Entry | None]

    def _listed(self, call: Call, indices: Any) -> dict[str, Entry] | None:
        indices = lmu.convert_to_pairs(indices, call.labels, call.ref_labels)
        indices = tuple(part.to(call.x.device) for part in indices)
        if all(len(part) <= 1 for part in indices):
            return None
        if self.once:
            indices = lists.without_repeats(indices, len(call.y))
        a1, p, a2, n = indices
        pairs = torch.cat((a1, a2)), torch.cat((p, n))
        distances = lists.gathered(self.distance, call.x, call.y, *pairs)
        pos, neg = distances.split((len(a1), len(a2)))
        found = type(self).listed(self, pos, neg, indices, len(call.x))
        return None if found is None else {"loss": found}


class TripletFused(Fused):
    """Losses whose list is made of triplets."""

    triplets_per_anchor: Any

    @abstractmethod
    def _every(self, call: Call) -> dict[str, Entry] | None:
        """All triplets, by a sweep."""

    def _mined(self, call: Call, mined: Mined) -> dict[str, Entry] | None:
        return self._every(call) if mined.everything else None

    def _few(self, call: Call) -> dict[str, Entry] | None:
        """A number of triplets an anchor, drawn by theirs, which looks at labels alone."""
        return self._listed(
            call,
            lmu.get_random_triplet_indices(
                call.labels,
                call.labels if call.alone else call.ref_labels,
                t_per_anchor=self.triplets_per_anchor,
            ),
        )

    def _triplets(self, call: Call, indices: Any) -> tuple[lists.Indices, Tensor, Tensor] | None:
        """Those listed, and both distances; None where there are none."""
        indices = lmu.convert_to_triplets(indices, call.labels, call.ref_labels, "all")
        a, p, n = (part.to(call.x.device) for part in indices)
        if len(a) == 0:
            return None
        pairs = torch.cat((a, a)), torch.cat((p, n))
        ap, an = lists.gathered(self.distance, call.x, call.y, *pairs).chunk(2)
        return (a, p, n), ap, an

    def _few_way(self) -> str | None:
        if self.triplets_per_anchor == "all":
            return None
        margin_geometry(self.distance)
        return f"a list of {self.triplets_per_anchor} random triplets an anchor"
