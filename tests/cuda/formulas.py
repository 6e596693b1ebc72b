"""The primitives of `dmlap_kernels.backends.device.sweeps` over whole matrices, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides, pack_rows
from dmlap_kernels.backends.device.sweeps import Exponent, PairGradient


def make_sides(
    rows: int,
    columns: int | None,
    features: int,
    distance: str,
    *,
    classes: int = 5,
    precision: str = "highest",
    spread: float = 1.0,
    seed: int = 0,
) -> Sides:
    """Random sides; ``columns`` None is the self case."""
    g = torch.Generator().manual_seed(seed + rows + features)
    x = torch.randn(rows, features, generator=g)
    labels = torch.randint(0, classes, (rows,), generator=g)
    y = ref_labels = None
    if columns is not None:
        y = torch.randn(columns, features, generator=g) * spread
        ref_labels = torch.randint(0, classes, (columns,), generator=g)
    return pack_rows(x, y, (labels, ref_labels), distance, distance == "cosine", precision)


def masks(sides: Sides) -> tuple[Tensor, Tensor]:
    """Positive and negative pairs (B, N)."""
    columns = torch.arange(sides.columns)
    same = (columns >= sides.first[:, None]) & (columns < sides.last[:, None])
    exists = torch.ones_like(same)
    if sides.self_case:
        exists.fill_diagonal_(False)
    return same & exists, ~same


def distances(sides: Sides, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
    """(B, N) float64; differentiable by rows that are given."""
    x = sides.x.double() if x is None else x
    y = x if sides.self_case else sides.y.double() if y is None else y
    if sides.distance in ("cosine", "dot"):
        return float(sides.distance == "cosine") - x @ y.T
    squared = (x[:, None] - y[None]).square().sum(2)
    if sides.distance == "sqeuclidean":
        return squared
    return torch.where(squared > 0, squared.clamp_min(1e-300).sqrt(), 0)


def slope(e: Exponent, d: Tensor) -> Tensor:
    if e.side == 0:
        return torch.full_like(d, e.rate)
    return e.rate * ((d - e.pivot) * e.side).relu()


def exponent(e: Exponent, d: Tensor) -> Tensor:
    return slope(e, d) * (d - e.zero)


def log_sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, -torch.inf).logsumexp(1)


def weights(pair_gradient: PairGradient, sides: Sides) -> Tensor:
    """(B, N) float64: the weight of each pair, 0 where there is none."""
    d = distances(sides)
    positives, negatives = masks(sides)
    columns = pair_gradient.anchors if sides.self_case else pair_gradient.columns
    ends = []
    if pair_gradient.anchors is not None:
        ends.append(pair_gradient.anchors.double()[:, :, None])
    if columns is not None:
        ends.append(columns.double()[:, None, :])
    total = torch.zeros_like(d)
    if pair_gradient.kind == "lifted":
        neg_lse = torch.logaddexp(ends[0][0], ends[1][0])
        h = (exponent(pair_gradient.positive, d) + neg_lse).relu() * slope(
            pair_gradient.positive, d
        )
        total += torch.where(positives, (ends[0][1] + ends[1][1]) * h, 0)
    for end in ends:
        at_positive, at_negative = _part(pair_gradient, end, d)
        total += torch.where(positives, at_positive, 0) + torch.where(negatives, at_negative, 0)
    return total


def _part(pair_gradient: PairGradient, end: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """What one end adds at positives and at negatives."""
    kind, e_p, e_n = pair_gradient.kind, pair_gradient.positive, pair_gradient.negative
    if kind in ("hinge", "squared_hinge"):
        pb, nb, sp, sn = end
        if kind == "hinge":
            return sp * (d > pb), -sn * (d < nb)
        return 2 * sp * (d - pb).relu(), -2 * sn * (nb - d).relu()
    if kind in ("exponential", "mined"):
        pos_lse, neg_lse, by_pos_lse, by_neg_lse, by_exponent = end[:5]
        p = (by_pos_lse * (exponent(e_p, d) - pos_lse).exp() + by_exponent) * slope(e_p, d)
        n = by_neg_lse * (exponent(e_n, d) - neg_lse).exp() * slope(e_n, d)
        if kind == "mined":
            p, n = p * (d > end[5]), n * (d < end[6])
        return p, n
    if kind == "logistic":
        return tuple(end[0] * exponent(e, d).sigmoid() * slope(e, d) for e in (e_p, e_n))
    neg_lse, weight, by_neg_lse = end
    n = by_neg_lse * (exponent(e_n, d) - neg_lse).exp() * slope(e_n, d)
    if kind == "lifted":
        return torch.zeros_like(d), n
    return weight * torch.sigmoid(exponent(e_p, d) + neg_lse) * slope(e_p, d), n


def gradients(sides: Sides, pair_weights: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradient of the sum of d times constant weights, at x and at y.

    In the self case the matrix holds each pair twice, with the parts of both ends.
    """
    if sides.self_case:
        pair_weights = pair_weights / 2
    x = sides.x.double().requires_grad_()
    y = None if sides.self_case else sides.y.double().requires_grad_()
    (distances(sides, x, y) * pair_weights).sum().backward()
    return x.grad, None if y is None else y.grad
