"""The pairs of a problem as matrices, and what is made of them: terms, in groups."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.reference.distances import distances_as_they_are, normalize_rows, pair_masks


@dataclass(frozen=True)
class Pairs:
    """Anchors x [B, D], references y [N, D] (unit rows if asked for), and every pair [B, N].

    ``y`` is ``x`` in the self case, in which the pair (i, i) is neither positive nor negative.
    ``numbers`` [B] are those by which anchors draw: the index among the references of an anchor
    that is one, else its row.
    """

    x: Tensor
    labels: Tensor
    y: Tensor
    ref_labels: Tensor
    d: Tensor
    positives: Tensor
    negatives: Tensor
    distance: str
    self_case: bool
    numbers: list[int]

    @property
    def zero_similarity(self) -> float:
        """c0 in "similarity = c0 - d"."""
        return 1.0 if self.distance == "cosine" else 0.0

    def among_references(self) -> Tensor:
        """Distances [N, N] between references."""
        return distances_as_they_are(self.y, self.y, self.distance)

    def hardest_positive(self) -> Tensor:
        return first_extreme(self.d, self.positives, self.ref_labels, largest=True)

    def hardest_negative(self) -> Tensor:
        return first_extreme(self.d, self.negatives, self.ref_labels, largest=False)

    def farthest(self) -> Tensor:
        """Distance of the hardest positive of each anchor, -inf if there is none."""
        return extreme(self.d, self.positives, largest=True)


def make_pairs(
    x: Tensor,
    labels: Tensor,
    y: Tensor | None,
    ref_labels: Tensor | None,
    *,
    distance: str,
    normalize: bool,
    self_index: Tensor | None = None,
) -> Pairs:
    positives, negatives = pair_masks(labels, ref_labels)
    numbers = torch.arange(len(labels))
    if self_index is not None:
        numbers = torch.where(self_index >= 0, self_index, numbers)
        assert ref_labels is not None
        others = self_index[:, None] != torch.arange(len(ref_labels))
        positives, negatives = positives & others, negatives & others
    if normalize or distance == "cosine":
        x = normalize_rows(x)
        y = None if y is None else normalize_rows(y)
    refs = x if y is None else y
    names = labels if ref_labels is None else ref_labels
    d = distances_as_they_are(x, refs, distance)
    sides = x, labels, refs, names
    return Pairs(*sides, d, positives, negatives, distance, y is None, numbers.tolist())


def first_extreme(d: Tensor, mask: Tensor, ref_labels: Tensor, *, largest: bool) -> Tensor:
    """Per row the masked column of extreme distance, -1 if there is none.

    Ties go to the lower label, then to the lower index: the first in the order of the columns.
    """
    if d.shape[1] == 0:
        return torch.full((len(d),), -1)
    order = torch.argsort(ref_labels, stable=True)
    values = torch.where(mask, -d.detach() if largest else d.detach(), torch.inf)[:, order]
    first = (values == values.amin(dim=1, keepdim=True)).int().argmax(dim=1)
    return torch.where(mask.any(dim=1), order[first], -1)


def extreme(d: Tensor, mask: Tensor, *, largest: bool) -> Tensor:
    """Per row the extreme of the masked entries; -inf or inf if there are none."""
    nothing = -torch.inf if largest else torch.inf
    if d.shape[1] == 0:
        return torch.full((len(d),), nothing, dtype=d.dtype)
    filled = d.masked_fill(~mask, nothing)
    return filled.amax(1) if largest else filled.amin(1)


@dataclass
class Group:
    """Terms of one kind: value of each, which of them count; row i holds those of anchor i.

    A term stands for ``weight`` equal ones. ``hinges`` are the violations behind the values, where
    the values are not those themselves.
    """

    values: Tensor
    counted: Tensor
    weight: Tensor | float = 1.0
    hinges: Tensor | None = None

    def violations(self) -> Tensor:
        found = self.values if self.hinges is None else self.hinges
        return found[self.counted].detach()


@dataclass
class Terms:
    """What a loss is the mean, the sum ... of.

    ``kinks`` are quantities at whose zeros a choice changes: a test must keep away from these by
    more than rounding. ``thresholds`` [B] are those of the class scores (default: the farthest
    positive). ``pooled`` groups share the divisor of the mean over positive terms. ``soft`` terms
    are positive however small, instead of cut off at 0.
    """

    groups: list[Group]
    kinks: list[Tensor] = field(default_factory=list)
    thresholds: Tensor | None = None
    pooled: bool = False
    soft: bool = False


def reduce_terms(terms: Terms, reduction: str) -> Tensor:
    """The groups' means ("mean": of counted, "mean_nonzero": of positive terms) or sums, added.

    "none" is, per anchor, the mean of its counted terms of each group, the groups added.
    """
    per_group = []
    for group in terms.groups:
        weight = group.counted * group.weight
        if reduction == "mean_nonzero":
            weight = weight * (group.values > 0)
        values = torch.where(group.counted, group.values, torch.zeros_like(group.values))
        per_group.append(((values * weight).flatten(1), weight.to(values.dtype).flatten(1)))
    if reduction == "none":
        return sum(v.sum(1) / w.sum(1).clamp_min(1) for v, w in per_group)
    if reduction == "sum":
        return sum(v.sum() for v, _ in per_group)
    if terms.pooled and reduction == "mean_nonzero":
        return sum(v.sum() for v, _ in per_group) / sum(w.sum() for _, w in per_group).clamp_min(1)
    return sum(v.sum() / w.sum().clamp_min(1) for v, w in per_group)


def log_sum_exp(values: Tensor, mask: Tensor) -> Tensor:
    """log of the sum of exp over the masked entries of the last dimension; 0 if there are none."""
    some = mask.any(-1, keepdim=True)
    filled = torch.where(mask, values, -torch.inf)
    filled = torch.where(some, filled, torch.zeros_like(filled))
    return torch.where(some[..., 0], torch.logsumexp(filled, -1), 0.0)


def log_one_plus_sum_exp(values: Tensor, mask: Tensor) -> Tensor:
    """log(1 + the sum of exp over the masked entries of the last dimension)."""
    return softplus(log_sum_exp(values, mask)) * mask.any(-1)


def softplus(values: Tensor) -> Tensor:
    """log(1 + e^v); torch's own is linear above 20."""
    return torch.logaddexp(values, torch.zeros_like(values))


def hinge(values: Tensor) -> Tensor:
    """[v]+, whose slope at 0 is 0 (that of `clamp_min` is 1)."""
    return values.relu()
