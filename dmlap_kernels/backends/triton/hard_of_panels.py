"""Batch-hard triplets out of panels: as `dmlap_kernels.backends.device.hard`, but with the mined
distances of the sweep, and weights of pairs in the place of single rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.device.hard import term_of
from dmlap_kernels.backends.device.sweeps import PairGradient
from dmlap_kernels.backends.device.terms import (
    Call,
    Found,
    PackedGradients,
    Statistics,
    anchor_group,
)
from dmlap_kernels.problem import PairProblem, PairSpec

# Losses of one mined triplet an anchor.
HARD = ("triplet_hard", "triplet_easy_positive", "triplet_easy_positive_semihard")


class HardOfPanels:
    """The losses `HARD`. Keeps the mined columns and the term's slope."""

    def groups(self, spec: PairSpec) -> int:
        return 1

    def kept_rows(self, spec: PairSpec, problem: PairProblem) -> int:
        return 3

    def forward(self, call: Call) -> Found:
        margin, smooth, swap = call.spec.params
        positive, negative, columns, counted = _mined(call)
        third: tuple[Any, ...] = ()
        if swap:
            # A sweep that there is for panels alone.
            sweeps: Any = call.sweeps
            third = d_an, d_pn = sweeps.of_mined(*columns)
            negative = torch.where(d_pn > d_an, d_an, d_pn)
        with torch.enable_grad():
            excess = (positive - negative + margin).detach().requires_grad_()
            group = anchor_group(term_of(excess, smooth), counted)
        hinge: Any = torch.where(counted, excess.relu(), 0)
        told = Statistics(counted, hinge > 0, hinge)
        return Found((group,), (*columns, excess, group.total, *third), lambda: told)

    def backward(self, call: Call, kept: Any, weights: Tensor) -> PackedGradients:
        positive, negative, excess, total, *third = kept
        (slope,) = torch.autograd.grad((total,), (excess,), (weights[0],))
        rows, kind = [positive, negative, slope], "hard"
        if third:
            d_an, d_pn = third
            # Equal ones have a half each, as of `torch.minimum`.
            share = torch.where(d_an > d_pn, 0.0, torch.where(d_pn > d_an, 1.0, 0.5))
            rows, kind = [*rows, slope * share, slope * (1.0 - share), d_pn], "hard_swap"
        coefficients = torch.stack(rows)
        return PackedGradients(*call.sweeps.gradient(call.sides, PairGradient(kind, coefficients)))


def _mined(call: Call) -> tuple[Any, Any, tuple[Any, Any], Any]:
    """Distances of the positives and the negatives, their columns, and where there are both."""
    if call.spec.loss == "triplet_hard":
        found = call.extremes
        columns = found.positive_column, found.negative_column
        return found.positive, found.negative, columns, (call.positives > 0) & (call.negatives > 0)
    sweeps: Any = call.sweeps
    if call.spec.loss == "triplet_easy_positive":
        positive, p, negative, n, *_ = sweeps.nearest_pairs(call.sides)
    else:
        positive, p = sweeps.nearest_positive(call.sides)
        negative, n = sweeps.nearest_negative_beyond(call.sides, positive)
    counted: Any = (p >= 0) & (n >= 0)
    # The nearest of none is at inf, and the difference of two such is not a number.
    positive, negative = (torch.where(counted, d, 0.0) for d in (positive, negative))
    return positive, negative, (p, n), counted
