"""Pair weights, d loss / d d, as `dmlap_kernels.backends.device.sweeps.PairGradient` says."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dmlap_kernels.backends.device.sweeps import Exponent, PairGradient
from dmlap_kernels.backends.panels.exponents import exponent_of, lifted, slope_of
from dmlap_kernels.backends.panels.panel import Panel


def of(panel: Panel, pair_gradient: PairGradient) -> Tensor:
    """(b, N); in the self case the part of the anchor's end alone."""
    ends = []
    rows = columns = None
    if pair_gradient.anchors is not None:
        rows = [row[:, None] for row in pair_gradient.anchors[:, panel.at]]
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
    panel: Panel, pair_gradient: PairGradient, own: Sequence[Tensor], other: Sequence[Tensor] | None
) -> Tensor:
    """The part of one end of the pairs, whose coefficients are (b, 1) or (N,) each."""
    d, kind = panel.d, pair_gradient.kind
    unlike, alike, sign = panel.unlike, panel.alike, 1
    if kind == "hinge":
        pull, push, sign = (d > own[0]) * own[2], (d < own[1]) * own[3], -1
    elif kind == "squared_hinge":
        pull, push = (d - own[0]).relu_() * (2 * own[2]), (d - own[1]).clamp_(max=0) * (2 * own[3])
    elif kind in ("exponential", "mined"):
        if kind == "mined":
            unlike, alike = unlike | (d <= own[5]), alike | (d >= own[6])
        pe, ne = pair_gradient.positive, pair_gradient.negative
        pull = _of_log_sum(pe, d, own[0], own[2], own[4])
        push = _of_log_sum(ne, d, own[1], own[3])
    elif kind == "logistic":
        pull, push = (
            exponent_of(e, d).sigmoid_() * (own[0] * slope_of(e, d))
            for e in (pair_gradient.positive, pair_gradient.negative)
        )
    else:
        e, slope = exponent_of(pair_gradient.positive, d), slope_of(pair_gradient.positive, d)
        if kind == "lifted":
            assert other is not None
            _, by_exponent, _ = lifted(e, own[0], other[0], unlike)
        else:
            by_exponent = (e + own[0]).sigmoid_()
        pull = by_exponent * (own[1] * slope)
        push = _of_log_sum(pair_gradient.negative, d, own[0], own[2])
    return pull.masked_fill_(unlike, 0).add_(push.masked_fill_(alike, 0), alpha=sign)


def _of_log_sum(
    exponent: Exponent, d: Tensor, log_sum: Tensor, by: Tensor, by_exponent: Tensor | None = None
) -> Tensor:
    """(by e^(e(d) - log_sum) + by_exponent) slope(d)."""
    slope = slope_of(exponent, d)
    share = (exponent_of(exponent, d) - log_sum).exp_()
    if exponent.side:
        share.mul_(by)
        return (share if by_exponent is None else share.add_(by_exponent)).mul_(slope)
    share.mul_(by * slope)
    return share if by_exponent is None else share.add_(by_exponent * slope)
