"""What a policy makes of a block, and how the terms of all blocks are reduced."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """One group of terms: for each anchor (b,) their sum and numbers, of all and of positive ones.

    The means of the batch divide by the sums of these numbers. ``positive`` is the sum of the
    positive terms, None where no term can be negative.
    """

    total: Tensor
    terms: Tensor
    nonzero: Tensor
    positive: Tensor | None = None

    def sum_for(self, reduction: str) -> Tensor:
        """The sum (b,) of the terms that a reduction takes."""
        if reduction == "mean_nonzero" and self.positive is not None:
            return self.positive
        return self.total


class Terms(NamedTuple):
    """Some terms of the anchors of a block, and what they add to the statistics."""

    groups: tuple[Group, ...]
    constraints: Tensor
    violated: Tensor
    violation: Tensor


def anchor_terms(*groups: tuple[Tensor, Tensor], hinge: Tensor | None = None) -> Terms:
    """One term (b,) an anchor in each group, which counts where the second tensor says so.

    ``hinge`` is what the statistics take for the term.
    """
    made = []
    for term, counted in groups:
        term = torch.where(counted, term, 0)
        positive = term > 0
        made.append(Group(term, counted, positive, torch.where(positive, term, 0)))
    if hinge is None:
        return _with_statistics(made)
    hinge = torch.where(groups[0][1], hinge, 0)
    return Terms(tuple(made), made[0].terms.sum(), (hinge > 0).sum(), hinge.sum())


def matrix_terms(*groups: tuple[Tensor, Tensor]) -> Terms:
    """A term (b, N), never negative, for each pair of a mask (b, N), in each group."""
    made = []
    for term, pairs in groups:
        term = torch.where(pairs, term, 0)
        made.append(Group(term.sum(1), pairs.sum(1), (term > 0).sum(1)))
    return _with_statistics(made)


def listed_terms(
    anchors: int,
    rows: Tensor,
    term: Tensor,
    *,
    exists: Tensor | None = None,
    hinge: Tensor | None = None,
) -> Terms:
    """A term (k,), or (k, N) where it exists, for each of k pairs with their anchors ``rows``.

    No term is negative. ``hinge`` is what the statistics take for the term.
    """
    if exists is None:
        exists = torch.ones_like(term, dtype=torch.bool)
    term = torch.where(exists, term, 0)
    hinge = term if hinge is None else torch.where(exists, hinge, 0)

    def of_anchors(values: Tensor) -> Tensor:
        values = values if values.ndim == 1 else values.sum(1)
        return values.new_zeros(anchors).index_add(0, rows, values)

    group = Group(of_anchors(term), of_anchors(exists.long()), of_anchors((term > 0).long()))
    return Terms((group,), exists.sum(), (hinge > 0).sum(), hinge.sum())


def _with_statistics(groups: list[Group]) -> Terms:
    """Every term is a constraint and its violation."""
    return Terms(
        tuple(groups),
        _sum_of([g.terms for g in groups]),
        _sum_of([g.nonzero for g in groups]),
        _sum_of([g.sum_for("mean_nonzero") for g in groups]),
    )


def _sum_of(parts: list[Tensor]) -> Tensor:
    return torch.stack([part.sum() for part in parts]).sum()


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x); `torch.nn.functional.softplus` drops the exponential beyond 20."""
    return torch.logaddexp(x, torch.zeros_like(x))


def log_sum_exp(values: Tensor, mask: Tensor, dim: int = 1) -> Tensor:
    """log of the sum of e^values over the mask along ``dim``; -inf, without gradient, if empty."""
    kept = values.masked_fill(~mask, -torch.inf)
    top = kept.detach().amax(dim, keepdim=True)
    top = torch.where(top > -torch.inf, top, 0)
    total = (kept - top).exp().sum(dim)
    some = total > 0
    return torch.where(some, torch.where(some, total, 1).log() + top.squeeze(dim), -torch.inf)


class GroupSums:
    """The terms' sums of every anchor. Filled in place: small tensors kept between the large ones
    of successive blocks would leave the allocator with holes of no use."""

    def __init__(self, x: Tensor, groups: int, reduction: str) -> None:
        self.reduction = reduction
        shape = (x.shape[0], groups)
        self.total = x.new_zeros(shape)
        self.count = torch.zeros(shape, dtype=torch.int64, device=x.device)
        self.nonzero = torch.zeros_like(self.count)
        self.constraints = self.count.new_zeros(())
        self.violated = self.count.new_zeros(())
        self.violation = x.new_zeros((), dtype=torch.float64)

    def add(self, at: slice, terms: Terms) -> None:
        for g, group in enumerate(terms.groups):
            self.total[at, g] += group.sum_for(self.reduction)
            self.count[at, g] += group.terms
            self.nonzero[at, g] += group.nonzero
        self.constraints += terms.constraints
        self.violated += terms.violated
        self.violation += terms.violation

    def reduce(self) -> tuple[Tensor, Tensor]:
        """The loss, and the weight (B, groups) of each anchor's sum in it."""
        real, reduction = self.total.dtype, self.reduction
        if reduction == "none":
            weights = 1 / self.count.clamp(min=1).to(real)
            return (self.total * weights).sum(1), weights
        if reduction == "sum":
            weights = torch.ones_like(self.total)
        else:
            terms = self.count if reduction == "mean" else self.nonzero
            weights = (1 / terms.sum(0).clamp(min=1).to(real)).expand_as(self.total).contiguous()
        return (self.total.double() * weights.double()).sum().to(real), weights
