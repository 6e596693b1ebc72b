"""What a loss makes of its anchors, and how their terms are reduced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides, pack
from dmlap_kernels.backends.device.sweeps import Extremes, Sweeps
from dmlap_kernels.problem import PairProblem, PairSpec


class Group(NamedTuple):
    """One group of terms: of each anchor (B,) their sum, and int64 how many there are and
    how many are strictly positive. The means of a batch divide by the sums of these numbers."""

    total: Tensor
    terms: Tensor
    nonzero: Tensor


class Found(NamedTuple):
    """What the forward half of a loss finds; all in the order of `Sides`.

    ``kept`` (rows, B) is handed to the backward half, or None. ``statistics`` are made when they
    are asked for.
    """

    groups: tuple[Group, ...]
    kept: Tensor | None
    statistics: Callable[[], Statistics]


class PackedGradients(NamedTuple):
    """Gradients at packed rows (B, Dp) and (N, Dp), at ``anchor_params`` (B,); None where none, or
    not wanted."""

    x: Tensor | None
    y: Tensor | None
    anchor_params: Tensor | None = None


class Statistics(NamedTuple):
    """Numbers of terms and of positive ones, and their sum, for `PairStats`; all ()."""

    constraints: Tensor
    violated: Tensor
    violation: Tensor


@dataclass
class Call:
    """One call as losses see it, in the order of `Sides`."""

    spec: PairSpec
    sweeps: Sweeps
    sides: Sides
    anchor_params: Tensor | None
    with_sums: bool = False
    _extremes: Extremes | None = field(default=None, repr=False)
    _poison: Tensor | None = field(default=None, repr=False)

    @staticmethod
    def of(
        spec: PairSpec,
        problem: PairProblem,
        sweeps: Sweeps,
        with_sums: bool = False,
        only_needed: bool = False,
    ) -> Call:
        """With ``only_needed`` backward leaves out the gradient of a side that needs none."""
        sides = pack(spec, problem)
        if only_needed and problem.y is not None:
            needs = problem.x.requires_grad, problem.y.requires_grad
            sides = sides._replace(x_grad=needs[0], y_grad=needs[1])
        params = problem.anchor_params
        sorted_params = None if params is None else params.detach()[sides.order_x]
        return Call(spec, sweeps, sides, sorted_params, with_sums)

    @property
    def poison(self) -> Tensor:
        """0, or NaN where an embedding is not finite."""
        if self._poison is None:
            sides = self.sides
            poison = sides.x.mul(0).sum()
            self._poison = poison if sides.self_case else poison + sides.y.mul(0).sum()
        return self._poison

    @property
    def extremes(self) -> Extremes:
        """Found once, when first asked for."""
        if self._extremes is None:
            self._extremes = self.sweeps.extremes(self.sides, self.with_sums)
        return self._extremes


class Family(Protocol):
    """Losses that are computed alike."""

    def groups(self, spec: PairSpec) -> int:
        """How many groups the terms come in."""

    def kept_rows(self, spec: PairSpec, problem: PairProblem) -> int:
        """Rows of `Found.kept`."""

    def forward(self, call: Call) -> Found: ...

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        """The gradient of the sum of weights (groups, B) times the totals of each anchor."""


def anchor_group(term: Tensor, counted: Tensor) -> Group:
    """One term (B,) an anchor, which counts where the mask says so."""
    term = torch.where(counted, term, 0)
    return Group(term, counted.long(), (term > 0).long())


def found(groups: tuple[Group, ...], kept: Tensor | None) -> Found:
    """Terms that each are a constraint, and their own violation."""


    def statistics() -> Statistics:
        constraints = torch.stack([group.terms for group in groups]).sum()
        violated = torch.stack([group.nonzero for group in groups]).sum()
        violation = torch.stack([group.total for group in groups]).double().sum()
        return Statistics(constraints, violated, violation)

    return Found(groups, kept, statistics)


def reduce(groups: tuple[Group, ...], reduction: str) -> tuple[Tensor, Tensor]:
    """The loss, and the weight (groups, B) of each anchor's sum in it.

    "mean_nonzero" is over the terms that are > 0: it leaves out anchors that have none, whose sum
    may be negative. An anchor of several terms has none that are.
    """
    total, count, nonzero = (torch.stack(parts) for parts in zip(*groups, strict=True))
    if reduction == "none":
        weights = 1 / count.clamp(min=1).to(total.dtype)
        return (total * weights).sum(0), weights
    if reduction == "sum":
        weights = torch.ones_like(total)
    else:
        terms = count if reduction == "mean" else nonzero
        share = 1 / terms.sum(1, keepdim=True).clamp(min=1).to(total.dtype)
        weights = share.expand_as(total).contiguous()
        if reduction == "mean_nonzero":
            weights = torch.where(nonzero > 0, weights, 0)
    return (total.double() * weights.double()).sum().to(total.dtype), weights


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x); `torch.nn.functional.softplus` drops the exponential beyond 20."""
    return -torch.nn.functional.logsigmoid(-x)


def add_rows(total: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Adds ``values`` (k, ...) to the rows (n, ...) at ``index`` (k,), which may repeat, in place
    and in a fixed order."""
    if total.device.type == "cpu":
        return total.index_add_(0, index, values)
    # index_put_ sorts before it adds there, and index_add_ does not.
    return total.index_put_((index,), values, accumulate=True)


def row_distances(a: Tensor, b: Tensor, distance: str) -> Tensor:
    """Distances (k,) of packed rows (k, Dp) to rows (k, Dp), without gradient at distance 0."""
    if distance in ("cosine", "dot"):
        return float(distance == "cosine") - (a * b).sum(1)
    squared = (a - b).square().sum(1)
    if distance == "sqeuclidean":
        return squared
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1).sqrt(), squared)


def rows_at(rows: Tensor, columns: Tensor) -> Tensor:
    """The rows (B, ...) of a table (N, ...) at columns (B,); any row for -1, zeros if N is 0."""
    if rows.shape[0] == 0:
        return rows.new_zeros(columns.shape[0], *rows.shape[1:])
    return rows[columns.clamp(min=0).long()]
