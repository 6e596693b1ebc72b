"""Primitives that see more than pairs, over whole cubes in float64, from packed rows."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides, pack_rows
from dmlap_kernels.backends.device.sweeps import Triplets
from tests.cuda import formulas
from tests.reference.triplets import uniform01


def sides_of_classes(
    anchors: list[int], references: list[int] | None, features: int, distance: str
) -> Sides:
    """Random sides of which so many anchors (and references, None: the same rows) have the labels
    0, 1, ..."""
    g = torch.Generator().manual_seed(sum(anchors) + features)

    def draw(sizes: list[int]) -> tuple[Tensor, Tensor]:
        labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        return torch.randn(len(labels), features, generator=g), labels

    x, labels = draw(anchors)
    y, ref_labels = (None, None) if references is None else draw(references)
    return pack_rows(x, y, (labels, ref_labels), distance, distance == "cosine", "highest")


def leaves_of(sides: Sides) -> list[Tensor]:
    """x and y, which are one in the self case, as float64 leaves."""
    rows = (sides.x,) if sides.self_case else (sides.x, sides.y)
    return [row.double().requires_grad_() for row in rows]


def triplet_distances(sides: Sides, leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, N) and, between the references, (N, N)."""
    x, y = leaves[0], leaves[-1]
    among = sides._replace(x=sides.y, self_case=True)
    return formulas.distances(sides, x, y), formulas.distances(among, y)


def excess(sides: Sides, triplets: Triplets, leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
    """d_ap - d_an (B, N, N) of anchors, positives, negatives, and the mask of the triplets."""
    d, among = triplet_distances(sides, leaves)
    positives, _ = formulas.masks(sides)
    d_an = torch.minimum(d[:, None, :], among[None]) if triplets.swap else d[:, None, :]
    chosen = positives[:, :, None] & _mined(sides, triplets, d.detach())
    return d[:, :, None] - d_an, chosen


def _mined(sides: Sides, triplets: Triplets, d: Tensor) -> Tensor:
    """(B, N, N), of which those of positives count."""
    positives, negatives = formulas.masks(sides)
    every = negatives[:, None, :].expand(-1, d.shape[1], -1)
    if triplets.mining == "all":
        return every
    if triplets.mining == "semihard":
        beyond = every & (d[:, None, :] > d[:, :, None])
        nearest = torch.where(beyond, d[:, None, :], torch.inf).argmin(2)
        farthest = torch.where(every, d[:, None, :], -torch.inf).argmax(2)
        column = torch.where(beyond.any(2), nearest, farthest)
        return every & (torch.arange(d.shape[1]) == column[:, :, None])
    square = {"euclidean": d.square(), "cosine": 2 * d, "sqeuclidean": d}[sides.distance]
    clipped = square.clamp(min=triplets.cutoff**2)
    log_w = (2 - sides.features) / 2 * clipped.log()
    log_w = log_w + (3 - sides.features) / 2 * (1 - clipped / 4).clamp(min=0).log()
    possible = negatives & (square < triplets.beyond**2) & (clipped < 4)
    running = torch.where(possible, log_w.exp(), 0).cumsum(1)
    drawn = torch.zeros_like(every)
    for i, p in positives.nonzero().tolist():
        k = int(positives[i, :p].sum())
        bound = uniform01(triplets.seed, int(sides.order_x[i]), k) * running[i, -1]
        if running[i, -1] > 0:
            drawn[i, p, (running[i] > bound).int().argmax()] = True
    return drawn


def margin_apart(lead: Tensor, chosen: Tensor) -> float:
    """A margin that some hinges of d_ap - d_an are active with, and none is near its kink with."""
    found = lead.detach()[chosen].sort().values
    if len(found) < 2:
        return 0.3
    middle = found[len(found) // 3 : 2 * len(found) // 3 + 2]
    gap = middle.diff().argmax()
    return -float((middle[gap] + middle[gap + 1]) / 2)


def triplet_sums(lead: Tensor, chosen: Tensor, triplets: Triplets) -> Tensor:
    """(B, 5) as `Sweeps.triplet_sums` has them; differentiable."""
    violation = lead + triplets.margin
    hinge = violation.relu()
    term = torch.nn.functional.softplus(violation, threshold=1e9) if triplets.smooth else hinge
    columns = (term, (term > 0).double(), hinge, (hinge > 0).double(), torch.ones_like(term))
    return torch.stack([torch.where(chosen, column, 0).sum((1, 2)) for column in columns], 1)


def angular_terms(sides: Sides, tangent: float, leaves: list[Tensor]) -> Tensor:
    """(B, N): the terms of positive pairs, 0 elsewhere."""
    d, among = triplet_distances(sides, leaves)
    positives, negatives = formulas.masks(sides)
    t = tangent**2
    exponents = 4 * t * (2 - d[:, None, :] - among[None]) - 2 * (1 + t) * (1 - d[:, :, None])
    exponents = torch.where(negatives[:, None, :], exponents, -torch.inf)
    terms = torch.nn.functional.softplus(exponents.logsumexp(2), threshold=1e9)
    return torch.where(positives & negatives.any(1, keepdim=True), terms, 0)


def soft_triple_terms(
    sides: Sides, la: float, gamma: float, margin: float, leaves: list[Tensor]
) -> Tensor:
    """(B,)"""
    s = -formulas.distances(sides, leaves[0], leaves[-1])
    logits = []
    for label in sides.labels_y.unique():
        of_class = s[:, sides.labels_y == label]
        logits.append(la * ((of_class / gamma).softmax(1) * of_class).sum(1))
    own = sides.labels_x[:, None] == sides.labels_y.unique()
    logit = torch.stack(logits, 1) - la * margin * own
    others = torch.where(own, -torch.inf, logit).logsumexp(1)
    terms = torch.nn.functional.softplus(others - (logit * own).sum(1), threshold=1e9)
    return torch.where(own.any(1) & ~own.all(1), terms, 0)
