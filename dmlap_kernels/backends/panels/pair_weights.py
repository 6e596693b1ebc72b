"""Pair weights, d loss / d d, as `dmlap_kernels.backends.device.sweeps.PairGradient` says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.device.sweeps import Exponent, PairGradient
from dmlap_kernels.backends.panels.exponents import bracket_of, exponent_of, lifted
from dmlap_kernels.backends.panels.panel import Panel


def of(panel: Panel, pair_gradient: PairGradient) -> Tensor:
    """(b, N); in the self case the part of the anchor's end alone."""
    ends = []
    rows = columns = None
    if pair_gradient.anchors is not None:
        rows = [
            row[panel.at, None] if isinstance(row, Tensor) and row.ndim else row
            for row in pair_gradient.anchors
        ]
    if pair_gradient.columns is not None:
        columns = list(pair_gradient.columns)
    elif panel.sides.self_case and pair_gradient.anchors is not None:
        columns = list(pair_gradient.anchors)
    if rows is not None:
        ends.append(_end(panel, pair_gradient, rows, columns))
    if pair_gradient.columns is not None and columns is not None:
        ends.append(_end(panel, pair_gradient, columns, rows))
    return ends[0] if len(ends) == 1 else ends[0] + ends[1]


def _end(
    panel: Panel, pair_gradient: PairGradient, own: Sequence[Any], other: Sequence[Any] | None
) -> Tensor:
    """The part of one end of the pairs, whose coefficients are (b, 1) or (N,) each."""
    d, kind = panel.d, pair_gradient.kind
    pe, ne = pair_gradient.positive, pair_gradient.negative
    if kind == "hinge":
        pull, push = (d > own[0]) * own[2], (d < own[1]) * -own[3]
    elif kind == "squared_hinge":
        pull, push = (d - own[0]).relu_() * (2 * own[2]), (d - own[1]).clamp_(max=0) * (2 * own[3])
    elif kind in ("exponential", "mined"):
        return _of_log_sums(panel, pair_gradient, own)
    elif kind == "logistic":
        pull = exponent_of(pe, d).sigmoid_().mul_(own[0] * pe.rate)
        push = exponent_of(ne, d).sigmoid_().mul_(own[0] * ne.rate)
    else:
        if kind == "lifted":
            assert other is not None
            by_exponent, _ = lifted(exponent_of(pe, d), own[0], other[0])
        else:
            by_exponent = exponent_of(pe, d, own[0]).sigmoid_()
        pull = by_exponent.mul_(own[1] * pe.rate)
        push = exponent_of(ne, d, -own[0]).exp_().mul_(own[2] * ne.rate)
    return panel.set_left_out(torch.where(panel.alike, pull, push), 0)


def _of_log_sums(panel: Panel, pair_gradient: PairGradient, own: Sequence[Any]) -> Tensor:
    """(by e^(e(d) - log_sum) + by_exponent) slope(d), of positives and of negatives at once."""
    d, pe, ne = panel.d, pair_gradient.positive, pair_gradient.negative
    pos_lse, neg_lse, by_pos_lse, by_neg_lse, by_exponent, *bounds = own
    if pe is ne and not pe.side and not bounds:
        return _of_one_exponent(panel, pe, own)
    # Once for the exponent and for the slope.
    brackets = bracket_of(pe, d), bracket_of(ne, d)
    pull = exponent_of(pe, d, -pos_lse, brackets[0])
    push = exponent_of(ne, d, -neg_lse, brackets[1])
    if bounds:
        pull.masked_fill_(d <= bounds[0], -torch.inf)
        push.masked_fill_(d >= bounds[1], -torch.inf)
    share = panel.set_left_out(torch.where(panel.alike, pull, push), -torch.inf).exp_()
    slopes = _times(by_pos_lse * pe.rate, brackets[0]), _times(by_neg_lse * ne.rate, brackets[1])
    share.mul_(torch.where(panel.alike, *slopes))
    if by_exponent is not None:
        plus = _times(by_exponent * pe.rate, bracket_of(pe, d))
        if bounds:
            plus = torch.where(d <= bounds[0], 0, plus)
        share.add_(panel.positives_of(plus, 0))
    return share


def _of_one_exponent(panel: Panel, exponent: Exponent, own: Sequence[Any]) -> Tensor:
    """The same where positives and negatives have one exponent of one rate."""
    alike = panel.alike
    pos_lse, neg_lse, by_pos_lse, by_neg_lse, by_exponent = own
    less = torch.where(alike, pos_lse, neg_lse).neg_()
    share = panel.set_left_out(exponent_of(exponent, panel.d, less), -torch.inf).exp_()
    share.mul_(torch.where(alike, by_pos_lse, by_neg_lse))
    if by_exponent is not None:
        share.add_(panel.positives_of(by_exponent, 0))
    return share.mul_(exponent.rate)


def _times(rows: Tensor, bracket: Tensor | None) -> Tensor:
    return rows if bracket is None else bracket.mul_(rows)
