"""Losses, one formula each; differentiable."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tests.reference.distances import pair_distances, pair_masks


class HardTriplets(NamedTuple):
    """Per anchor: hardest positive and negative (-1: none), their distances, [B] each."""

    positive: Tensor
    negative: Tensor
    d_ap: Tensor
    d_an: Tensor
    valid: Tensor


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


def mine_hard(
    x: Tensor,
    labels: Tensor,
    y: Tensor | None,
    ref_labels: Tensor | None,
    *,
    swap: bool,
    distance: str,
    normalize: bool,
) -> HardTriplets:
    refs = x if y is None else y
    names = labels if ref_labels is None else ref_labels
    d = pair_distances(x, refs, distance=distance, normalize=normalize)
    positives, negatives = pair_masks(labels, ref_labels)
    p = first_extreme(d, positives, names, largest=True)
    n = first_extreme(d, negatives, names, largest=False)
    valid = (p >= 0) & (n >= 0)
    rows = torch.arange(len(labels))
    if len(refs) == 0:
        nothing = d.sum(dim=1)
        return HardTriplets(p, n, nothing, nothing, valid)
    d_ap = d[rows, p.clamp_min(0)]
    d_an = d[rows, n.clamp_min(0)]
    if swap:
        between = pair_distances(refs, refs, distance=distance, normalize=normalize)
        d_an = torch.minimum(d_an, between[p.clamp_min(0), n.clamp_min(0)])
    return HardTriplets(p, n, d_ap, d_an, valid)


def group_mean(terms: Tensor, group: Tensor, *, nonzero: bool) -> Tensor:
    """Mean of the terms in a group; of the strictly positive ones if ``nonzero``; 0 if empty."""
    counted = group & (terms > 0) if nonzero else group
    total = torch.where(group, terms, torch.zeros_like(terms)).sum()
    return total / counted.sum().clamp_min(1)


def triplet_hard(
    x: Tensor,
    labels: Tensor,
    y: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    margin: float = 0.2,
    smooth: bool = False,
    swap: bool = False,
    distance: str = "euclidean",
    normalize: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """[max_P d - min_N d + margin]+ over the anchors that have both (arXiv 1703.07737)."""
    t = mine_hard(x, labels, y, ref_labels, swap=swap, distance=distance, normalize=normalize)
    argument = t.d_ap - t.d_an + margin
    terms = torch.nn.functional.softplus(argument) if smooth else argument.clamp_min(0)
    terms = torch.where(t.valid, terms, torch.zeros_like(terms))
    if reduction == "none":
        return terms
    if reduction == "sum":
        return terms.sum()
    return group_mean(terms, t.valid, nonzero=reduction == "mean_nonzero")


def contrastive(
    x: Tensor,
    labels: Tensor,
    y: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    squared: bool = False,
    distance: str = "euclidean",
    normalize: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """[d - pos_margin]+ over positive, [neg_margin - d]+ over negative pairs (Hadsell 2006)."""
    refs = x if y is None else y
    d = pair_distances(x, refs, distance=distance, normalize=normalize)
    positives, negatives = pair_masks(labels, ref_labels)
    pull = (d - pos_margin).clamp_min(0)
    push = (neg_margin - d).clamp_min(0)
    if squared:
        pull, push = pull.square(), push.square()
    pull = torch.where(positives, pull, torch.zeros_like(pull))
    push = torch.where(negatives, push, torch.zeros_like(push))
    if reduction == "none":
        return pull.sum(1) / positives.sum(1).clamp_min(1) + push.sum(1) / negatives.sum(
            1
        ).clamp_min(1)
    if reduction == "sum":
        return pull.sum() + push.sum()
    nonzero = reduction == "mean_nonzero"
    return group_mean(pull, positives, nonzero=nonzero) + group_mean(
        push, negatives, nonzero=nonzero
    )
