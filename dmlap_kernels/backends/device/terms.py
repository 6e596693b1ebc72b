"""What a loss makes of its anchors, and how their terms are reduced."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from dmlap_kernels.backends.device.packing import TILE_WIDTH, Sides, pack
from dmlap_kernels.backends.device.sweeps import Extremes, Sweeps, UnorderedSweeps
from dmlap_kernels.problem import PairProblem, PairSpec


class Group(NamedTuple):
    """One group of terms: of each anchor (B,) their sum, how many there are, and how many are
    strictly positive, whole numbers or masks. The means of a batch divide by the sums of these.

    Without ``terms`` each anchor has one, and without ``nonzero`` no more than one.
    """

    total: Tensor
    terms: Tensor | None = None
    nonzero: Tensor | None = None

    @property
    def number(self) -> Tensor:
        return torch.ones_like(self.total, dtype=torch.bool) if self.terms is None else self.terms

    @property
    def positive(self) -> Tensor:
        return self.total > 0 if self.nonzero is None else self.nonzero


class Found(NamedTuple):
    """What the forward half of a loss finds; all in the order of `Sides`.

    ``kept``, rows (B,), are handed to the backward half, or None. ``statistics`` are made when they
    are asked for.
    """

    groups: tuple[Group, ...]
    kept: Tensor | tuple[Tensor, ...] | None
    statistics: Callable[[], Statistics]


class PackedGradients(NamedTuple):
    """Gradients at packed rows (B, Dp) and (N, Dp), at ``anchor_params`` (B,); None where none, or
    not wanted."""

    x: Tensor | None
    y: Tensor | None
    anchor_params: Tensor | None = None


class Statistics(NamedTuple):
    """Of each anchor (B,) how many terms there are, how many are positive, and their sum: what
    `PairStats` has of the call, and kernels of the panels that they go through."""

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
    for_kernels: bool = True
    _extremes: Extremes | None = field(default=None, repr=False)
    _nonfinite: Tensor | None = field(default=None, repr=False)
    _positives: Tensor | None = field(default=None, repr=False)
    _negatives: Tensor | None = field(default=None, repr=False)
    # What the forward half of a loss leaves for its backward half of the same call, if it likes.
    memo: dict[str, Any] = field(default_factory=dict, repr=False)
    groups: tuple[Group, ...] = field(default=(), repr=False)

    @staticmethod
    def of(
        spec: PairSpec,
        problem: PairProblem,
        sweeps: Sweeps,
        with_sums: bool = False,
        only_needed: bool = False,
        in_label_order: bool = True,
        for_kernels: bool = True,
    ) -> Call:
        """With ``only_needed`` backward leaves out the gradient of a side that needs none."""
        sides = pack(spec, problem, in_label_order, TILE_WIDTH if for_kernels else 1)
        if only_needed and problem.y is not None:
            needs = problem.x.requires_grad, problem.y.requires_grad
            sides = sides._replace(x_grad=needs[0], y_grad=needs[1])
        params = problem.anchor_params
        packed_params = None if params is None else sides.from_caller(params.detach())
        return Call(spec, sweeps, sides, packed_params, with_sums, for_kernels)

    @property
    def positives(self) -> Tensor:
        """(B,) int64, how many positive pairs each anchor has."""
        if self._positives is None:
            self._count()
        assert self._positives is not None
        return self._positives

    @property
    def negatives(self) -> Tensor:
        """(B,) int64, how many negative pairs each anchor has."""
        if self._negatives is None:
            self._count(negatives=True)
        assert self._negatives is not None
        return self._negatives

    def _count(self, negatives: bool = False) -> None:
        sides = self.sides
        if self._positives is None:
            if sides.in_label_order:
                self._positives = sides.positives
            else:
                self._positives = cast(UnorderedSweeps, self.sweeps).count_positives(sides)
        if not negatives:
            return
        if sides.itself is None:
            self._negatives = sides.columns - int(sides.self_case) - self._positives
        elif sides.in_label_order:
            self._negatives = sides.negatives
        else:
            exists = (sides.itself < 0).long() + (sides.columns - 1)
            self._negatives = exists - self._positives

    @property
    def nonfinite(self) -> Tensor:
        """0 float64, or NaN where an embedding is not finite."""
        if self._nonfinite is None:
            sides = self.sides
            # In float64 the sum of finite float32 numbers is finite.
            total = sides.x.sum(dtype=torch.float64)
            if not sides.self_case:
                total = total + sides.y.sum(dtype=torch.float64)
            self._nonfinite = total * 0
        return self._nonfinite

    @property
    def counted(self) -> bool:
        """Whether anyone reads how many terms are strictly positive."""
        return self.for_kernels or self.with_sums or self.spec.reduction == "mean_nonzero"

    def rows(self, *rows: Tensor | None) -> Tensor:
        """Rows (B,) as kernels read them, stacked; for others as they are, None among them."""
        if not self.for_kernels:
            return cast(Tensor, rows)
        some = next(row for row in rows if row is not None)
        return torch.stack([torch.zeros_like(some) if row is None else row for row in rows])

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


def anchor_group(term: Tensor, counted: Tensor | None) -> Group:
    """One term (B,) an anchor, which counts where the mask says so; everywhere if it is None."""
    return Group(term if counted is None else torch.where(counted, term, 0), counted)


def found(groups: tuple[Group, ...], kept: Tensor | tuple[Tensor, ...] | None) -> Found:
    """Terms that each are a constraint, and their own violation."""

    def statistics() -> Statistics:
        constraints = _sum([group.number.long() for group in groups])
        violated = _sum([group.positive.long() for group in groups])
        return Statistics(constraints, violated, _sum([group.total.double() for group in groups]))

    return Found(groups, kept, statistics)


def _sum(rows: list[Tensor]) -> Tensor:
    return functools.reduce(operator.add, rows)


def reduce(
    groups: tuple[Group, ...], reduction: str, nonfinite: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loss plus ``nonfinite``, and the weight (groups, B) of each anchor's sum in the loss.

    "mean_nonzero" is over the terms that are > 0: it leaves out anchors that have none, whose sum
    may be negative. An anchor of several terms has none that are.
    """
    total = _together([group.total for group in groups])
    if reduction == "none":
        counts = _together([group.number for group in groups])
        weights = counts.to(total.dtype).clamp(min=1).reciprocal()
        each = (total * weights).sum(0)
        return each if nonfinite is None else each + nonfinite, weights
    if reduction == "sum" or (reduction == "mean" and all(g.terms is None for g in groups)):
        equal = 1.0 if reduction == "sum" else 1 / max(1, total.shape[1])
        weights, value, scale = torch.full_like(total, equal), total, equal
    else:
        mean = reduction == "mean"
        terms = _together([group.number if mean else group.positive for group in groups])
        share = terms.sum(1, keepdim=True, dtype=total.dtype).clamp_(min=1).reciprocal_()
        weights = share.expand_as(total) if mean else torch.where(terms > 0, share, 0)
        value, scale = total * weights, 1.0
    value = value.sum(dtype=torch.float64)
    if nonfinite is None:
        nonfinite = torch.zeros_like(value)
    if torch.is_grad_enabled() and value.requires_grad:
        return torch.add(nonfinite, value, alpha=scale).to(total.dtype), weights
    # Rounded as it is written.
    return torch.add(nonfinite, value, alpha=scale, out=total.new_empty(())), weights


def parts(groups: tuple[Group, ...], reduction: str) -> Tensor:
    """Sums and numbers of the terms that a mean is over, stacked (2, groups) float64."""
    total = _together([group.total for group in groups]).double()
    if reduction == "mean":
        counts = _together([group.number for group in groups])
    else:
        counts = _together([group.positive for group in groups])
        total = total * (counts > 0)
    return torch.stack((total.sum(1), counts.sum(1).double()))


def _together(parts: list[Tensor]) -> Tensor:
    """Vectors (B,) as rows."""
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)


def filled(like: Tensor, number: Any) -> Tensor:
    """A tensor of one number, which may be a tensor (): to read it would wait for its device."""
    if isinstance(number, (int, float)):
        return torch.full_like(like, number)
    return torch.zeros_like(like) + number


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), which is x to the last bit of a float64 beyond 40."""
    return torch.nn.functional.softplus(x, threshold=40.0)


def add_rows(total: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Adds ``values`` (k, ...) to the rows (n, ...) at ``index`` (k,), which may repeat, in place
    and in a fixed order."""
    if total.device.type == "cpu":
        return total.index_add_(0, index, values)
    # index_put_ sorts before it adds there, and index_add_ does not.
    return total.index_put_((index,), values, accumulate=True)


def row_distances(a: Tensor, b: Tensor, distance: str) -> Tensor:
    """Distances (..., k) of packed rows (..., k, Dp) to rows, without gradient at distance 0."""
    if distance in ("cosine", "dot"):
        return float(distance == "cosine") - (a * b).sum(-1)
    if distance == "sqeuclidean":
        return (a - b).square().sum(-1)
    return torch.linalg.vector_norm(a - b, dim=-1)


def rows_at(rows: Tensor, columns: Tensor) -> Tensor:
    """The rows (B, ...) of a table (N, ...) at columns (B,); any row for -1, zeros if N is 0."""
    if rows.shape[0] == 0:
        return rows.new_zeros(columns.shape[0], *rows.shape[1:])
    return rows.index_select(0, columns.clamp(min=0).long())
