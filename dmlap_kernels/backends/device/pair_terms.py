"""Losses with a term for each positive pair, made of log-sums over negatives."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels.backends.device.hardness import (
    NOTHING,
    Hardness,
    added,
    gradient_of_negatives,
    log_mean_weight,
    negative_lse,
)
from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import Both, Exponent, PairGradient
from dmlap_kernels.backends.device.terms import Call, Found, Group, PackedGradients, found
from dmlap_kernels.problem import PairProblem, PairSpec

Kept = tuple[Tensor, Tensor]
# In the place of the log-sum of an anchor without negatives, so that it may be subtracted.
_LOWEST = -1e30


class _PairTermLoss:
    """Keeps the log-sum over the negatives of each anchor, and what its terms' slopes by it add up
    to."""

    def groups(self, spec: PairSpec) -> int:
        return 1

    def kept_rows(self, spec: PairSpec, problem: PairProblem) -> int:
        return 2


class NTXent(_PairTermLoss):
    """log(1 + sum over N of e^((d_ip - d_in) / temperature))."""

    def forward(self, call: Call) -> Found:
        total, nonzero, kept = _nt_xent(call, call.sides, _temperature(call.spec))
        return found((Group(total, call.positives, nonzero),), kept)

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        temperature = _temperature(call.spec)
        return PackedGradients(*_nt_xent_gradient(call, call.sides, temperature, kept, weights[0]))


class NTXentHardness(_PairTermLoss):
    """NT-Xent whose negatives count by their hardness.

    Keeps both log-sums: their difference has the rounding of the larger one.
    """

    def kept_rows(self, spec: PairSpec, problem: PairProblem) -> int:
        return 3

    def forward(self, call: Call) -> Found:
        positive, by_hardness = self._exponents(call)
        weighted_lse, weight_lse = self._log_sums(call, positive, by_hardness)
        neg_lse = self._neg_lse(call, weighted_lse, weight_lse)
        terms = call.sweeps.pair_terms(call.sides, "nt_xent", positive, neg_lse, **_read(call))
        group = Group(terms.total, call.positives, terms.nonzero)
        return found((group,), (weighted_lse, weight_lse, terms.by_neg_lse))

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        (weighted_lse, weight_lse, by_neg_lse), (weight,) = kept, weights
        lses = self._neg_lse(call, weighted_lse, weight_lse), weighted_lse, weight_lse
        return PackedGradients(*self._gradient(call, lses, weight, weight * by_neg_lse))

    def _log_sums(
        self, call: Call, positive: Exponent, by_hardness: Hardness
    ) -> tuple[Tensor, Tensor]:
        """Of what is weighted, and of the weights."""
        weight_lse = negative_lse(call, call.sides, by_hardness.weight)
        return negative_lse(call, call.sides, by_hardness.weighted), weight_lse

    def _gradient(
        self, call: Call, lses: tuple[Tensor, Tensor, Tensor], weight: Tensor, push: Tensor
    ) -> Both:
        """``lses`` are `_neg_lse` and what it is made of, ``push`` the derivative by it."""
        sides, (positive, by_hardness) = call.sides, self._exponents(call)
        neg_lse, weighted_lse, weight_lse = lses
        of_terms = call.rows(neg_lse, weight, torch.zeros_like(weight))
        pair_gradient = PairGradient("nt_xent", of_terms, None, positive, NOTHING)
        parts = (
            gradient_of_negatives(call, sides, weighted_lse, push, by_hardness.weighted),
            gradient_of_negatives(call, sides, weight_lse, -push, by_hardness.weight),
        )
        return added(call.sweeps.gradient(sides, pair_gradient), *parts)

    def _neg_lse(self, call: Call, weighted_lse: Tensor, weight_lse: Tensor) -> Tensor:
        return (weighted_lse - log_mean_weight(call, weight_lse)).clamp(min=_LOWEST)

    def _exponents(self, call: Call) -> tuple[Exponent, Hardness]:
        temperature, hardness = call.spec.params
        return Exponent(1 / temperature), Hardness.of(-1 / temperature, hardness)


class NPairs(_PairTermLoss):
    """NT-Xent of temperature 1; in the self case between the first rows of all classes of two rows
    or more as anchors, and their second rows."""

    def __init__(self) -> None:
        self._plain = NTXent()

    def forward(self, call: Call) -> Found:
        if not call.sides.self_case:
            return self._plain.forward(call)
        # Kept with their panels for the backward half.
        sides, at = call.memo["pairs"] = _first_two(call.sides)
        total, nonzero, kept = _nt_xent(call, sides, 1.0)
        rows = call.sides.anchors
        group = Group(*(_spread(part, at, rows) for part in (total, sides.positives, nonzero)))
        return found((group,), F.pad(torch.stack(kept), (0, rows - sides.anchors)))

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        if not call.sides.self_case:
            return self._plain.backward(call, kept, weights)
        sides, at = call.memo.get("pairs") or _first_two(call.sides)
        rows, pairs = call.sides.anchors, sides.anchors
        weight = F.pad(weights[0], (0, 1))[at]
        gx, gy = _nt_xent_gradient(call, sides, 1.0, kept[:, :pairs], weight)
        assert gx is not None and gy is not None
        second = torch.where(at < rows, at + 1, rows)
        return PackedGradients(_spread(gx, at, rows) + _spread(gy, second, rows), None)


class LiftedStructureOriginal(_PairTermLoss):
    """[log(sum over N_i and N_p of e^(neg_margin - d)) + d_ip - pos_margin]+^2 / 2.

    The logarithm of a sum over nothing is -inf, and so the term of a pair without negatives 0.
    """

    def forward(self, call: Call) -> Found:
        positive, negative = self._exponents(call)
        neg_lse = call.sweeps.log_sums(call.sides, positive, negative, read=("neg_lse",)).neg_lse
        of_columns = self._of_columns(call, neg_lse)
        ends = neg_lse, of_columns
        terms = call.sweeps.pair_terms(call.sides, "lifted", positive, *ends, **_read(call))
        group = Group(terms.total, call.positives, terms.nonzero)
        return found((group,), torch.stack((neg_lse, terms.by_neg_lse)))

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        positive, negative = self._exponents(call)
        sides, (neg_lse, by_neg_lse), (weight,) = call.sides, kept, weights
        neg_lse = neg_lse.contiguous() if call.for_kernels else neg_lse
        of_columns = self._of_columns(call, neg_lse)
        ends = of_columns, neg_lse, weight.contiguous()
        as_columns = call.sweeps.pair_terms(
            sides.swapped(), "lifted", positive, *ends, **_read(call, "by_neg_lse")
        ).by_neg_lse
        columns = None
        if sides.self_case:
            own = torch.addcmul(as_columns, weight, by_neg_lse)
            anchors = call.rows(neg_lse, weight, own)
        else:
            anchors = call.rows(neg_lse, weight, weight * by_neg_lse)
            columns = call.rows(of_columns, torch.zeros_like(of_columns), as_columns)
        pair_gradient = PairGradient("lifted", anchors, columns, positive, negative)
        return PackedGradients(*call.sweeps.gradient(sides, pair_gradient))

    def _exponents(self, call: Call) -> tuple[Exponent, Exponent]:
        pos_margin, neg_margin = call.spec.params
        return Exponent(1.0, pos_margin), Exponent(-1.0, neg_margin)

    def _of_columns(self, call: Call, neg_lse: Tensor) -> Tensor:
        """The log-sums (N,) of the references over the anchors that differ in label."""
        sides = call.sides
        if sides.self_case:
            return neg_lse
        return call.sweeps.log_sums(
            sides.swapped(), *self._exponents(call), read=("neg_lse",)
        ).neg_lse


def _read(call: Call, *only: str) -> dict[str, Any]:
    """What `Sweeps.pair_terms` need not find."""
    if call.for_kernels or (call.counted and not only):
        return {}
    return {"read": only or ("total", "by_neg_lse")}


def _temperature(spec: PairSpec) -> float:
    return spec.params[0] if spec.loss == "nt_xent" else 1.0


def _exponents(temperature: float) -> tuple[Exponent, Exponent]:
    return Exponent(1 / temperature), Exponent(-1 / temperature)


def _nt_xent(call: Call, sides: Sides, temperature: float) -> tuple[Tensor, Tensor, Kept]:
    """Of each anchor of the sides: the sum of terms, the number of positive ones; and what is
    kept, (B,) each."""
    positive, negative = _exponents(temperature)
    neg_lse = call.sweeps.log_sums(sides, positive, negative, read=("neg_lse",)).neg_lse.clamp(
        min=_LOWEST
    )
    terms = call.sweeps.pair_terms(sides, "nt_xent", positive, neg_lse, **_read(call))
    return terms.total, terms.nonzero, (neg_lse, terms.by_neg_lse)


def _nt_xent_gradient(
    call: Call, sides: Sides, temperature: float, kept: Tensor, weight: Tensor
) -> Both:
    neg_lse, by_neg_lse = kept
    coefficients = call.rows(neg_lse, weight, weight * by_neg_lse)
    pair_gradient = PairGradient("nt_xent", coefficients, None, *_exponents(temperature))
    return call.sweeps.gradient(sides, pair_gradient)


def _first_two(sides: Sides) -> tuple[Sides, Tensor]:
    """As anchors and columns the first and the second row of each class of two rows or more.

    There are as many pairs as the rows allow for (B // 2,); of those that the classes do not fill
    the column does not exist. Also where each first row is, (B // 2,) int64, B for unfilled pairs.
    """
    rows = sides.anchors
    index = torch.arange(rows, device=sides.x.device)
    first = (index == sides.first) & (sides.last - sides.first >= 2)
    at = torch.where(first, index, rows).sort().values[: rows // 2]
    exists = at < rows
    own = torch.where(exists, at, 0)
    other = own + 1
    begin = torch.arange(len(at), dtype=torch.int32, device=at.device)
    runs = begin, begin + exists.int()
    return sides._replace(
        x=sides.x[own],
        y=sides.y[other],
        x_norms=sides.x_norms[own],
        y_norms=torch.where(exists, sides.y_norms[other], torch.inf),
        first=runs[0],
        last=runs[1],
        col_first=runs[0],
        col_last=runs[1],
        order_x=sides.order_x[own],
        order_y=sides.order_y[other],
        labels_x=begin,
        labels_y=torch.where(exists, begin, -1),
        self_case=False,
        partial=True,
    ), at


def _spread(values: Tensor, at: Tensor, rows: int) -> Tensor:
    """Values (k, ...) at rows ``at`` (k,) of zeros (rows, ...); those at ``rows`` are left out."""
    whole = values.new_zeros(rows + 1, *values.shape[1:])
    whole[at] = values
    return whole[:rows]
