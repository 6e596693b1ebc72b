"""Triplet losses: one function for each way of mining."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.reference.distances import pair_distances
from tests.reference.pairs import Group, Pairs, Terms, first_extreme, hinge, softplus

MASK64 = 2**64 - 1


def triplet_hard(
    pairs: Pairs, *, margin: float = 0.2, smooth: bool = False, swap: bool = False
) -> Terms:
    """[max_P d - min_N d + margin]+ over the anchors that have both (1703.07737)."""
    p, n = pairs.hardest_positive()[:, None], pairs.hardest_negative()[:, None]
    valid = (p >= 0) & (n >= 0)
    kinks = [_lead(pairs.d, pairs.positives, p, valid), _lead(pairs.d, pairs.negatives, n, valid)]
    return _terms(pairs, p, n, valid, kinks, margin=margin, smooth=smooth, swap=swap)


def triplet_easy_positive(
    pairs: Pairs, *, margin: float = 0.2, smooth: bool = False, swap: bool = False
) -> Terms:
    """[min_P d - min_N d + margin]+ over the anchors that have both (1904.04370, EPHN)."""
    p, n = _nearest(pairs, pairs.positives), _nearest(pairs, pairs.negatives)
    valid = (p >= 0) & (n >= 0)
    kinks = [_lead(pairs.d, pairs.positives, p, valid), _lead(pairs.d, pairs.negatives, n, valid)]
    return _terms(pairs, p, n, valid, kinks, margin=margin, smooth=smooth, swap=swap)


def triplet_easy_positive_semihard(
    pairs: Pairs, *, margin: float = 0.2, smooth: bool = False, swap: bool = False
) -> Terms:
    """The same with the nearest negative beyond the positive, where there is one (EPSHN)."""
    d, p = pairs.d.detach(), _nearest(pairs, pairs.positives)
    if d.shape[1] == 0:
        return _terms(pairs, p, p, p >= 0, [], margin=margin, smooth=smooth, swap=swap)
    d_ap = d.gather(1, p.clamp_min(0))
    beyond = pairs.negatives & (p >= 0) & (d > d_ap)
    n = _nearest(pairs, beyond)
    valid = n >= 0
    kinks = [_lead(d, pairs.positives, p, p >= 0), _lead(d, beyond, n, valid)]
    kinks.append((d - d_ap)[pairs.negatives & (p >= 0)])
    return _terms(pairs, p, n, valid, kinks, margin=margin, smooth=smooth, swap=swap)


def triplet_semihard(
    pairs: Pairs, *, margin: float = 0.2, smooth: bool = False, swap: bool = False
) -> Terms:
    """Each (i, p) with the nearest negative beyond d_ip, or else the farthest (1503.03832)."""
    d = pairs.d.detach()
    count = d.shape[1]
    valid = pairs.positives & pairs.negatives.any(1, keepdim=True)
    beyond = pairs.negatives[:, None, :] & (d[:, None, :] > d[:, :, None])  # [B, P, N]
    n = torch.full(d.shape, -1)
    kinks = []
    for i in range(len(d)):
        everyone = d[i].expand(count, count)
        nearest = first_extreme(everyone, beyond[i], pairs.ref_labels, largest=False)
        negatives = pairs.negatives[i].expand(count, count)
        farthest = first_extreme(everyone, negatives, pairs.ref_labels, largest=True)
        n[i] = torch.where(nearest >= 0, nearest, farthest)
        chosen = d[i][n[i].clamp_min(0)]
        others = negatives & valid[i][:, None]
        kinks.append((everyone - d[i][:, None])[others])
        others = others & (torch.arange(count) != n[i][:, None])
        kinks.append((everyone - chosen[:, None])[others])
    p = torch.arange(count).expand(d.shape)
    return _terms(pairs, p, n, valid, kinks, margin=margin, smooth=smooth, swap=swap)


def triplet_all(
    pairs: Pairs, *, margin: float = 0.2, smooth: bool = False, swap: bool = False
) -> Terms:
    """[d_ip - d_in + margin]+ of every triplet (1503.03832)."""
    d_ap, d_an = pairs.d[:, :, None], pairs.d[:, None, :]
    valid = pairs.positives[:, :, None] & pairs.negatives[:, None, :]
    kinks = []
    if swap:
        between = pairs.among_references()[None]
        kinks.append((between - d_an)[valid])
        d_an = torch.minimum(d_an, between)
    return _hinged(pairs, d_ap - d_an + margin, valid, kinks, margin=margin, smooth=smooth)


def triplet_distance_weighted(
    pairs: Pairs,
    *,
    seed: int,
    margin: float = 0.2,
    smooth: bool = False,
    swap: bool = False,
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
) -> Terms:
    """Each (i, p) with a negative drawn with probability ~ 1 / density(d) (1706.07567)."""
    weights = negative_weights(pairs, cutoff, nonzero_loss_cutoff)
    n = draw_negatives(pairs, weights, seed)
    p = torch.arange(pairs.d.shape[1]).expand(pairs.d.shape)
    kinks = [pairs.d.new_tensor(_doubt(pairs, weights, seed))]
    d = between_unit_rows(pairs)[pairs.negatives]
    kinks.append(d - nonzero_loss_cutoff)
    return _terms(
        pairs, p, n, pairs.positives & (n >= 0), kinks, margin=margin, smooth=smooth, swap=swap
    )


def negative_weights(pairs: Pairs, cutoff: float, nonzero_loss_cutoff: float) -> Tensor:
    """Weight [B, N] float64 of each negative at the Euclidean distance of the unit rows.

    Up to a factor for each anchor, which the draw does not see.
    """
    features = pairs.x.shape[1]
    d = between_unit_rows(pairs)
    clipped = d.clamp_min(cutoff)
    log_w = (2 - features) * clipped.log() - (features - 3) / 2 * (1 - clipped**2 / 4).log()
    possible = pairs.negatives & log_w.isfinite() & (d < nonzero_loss_cutoff)
    log_w = log_w.masked_fill(~possible, -torch.inf)
    if d.shape[1] == 0:
        return log_w
    return (log_w - log_w.amax(1, keepdim=True)).exp().masked_fill(~possible, 0.0)


def between_unit_rows(pairs: Pairs) -> Tensor:
    """Euclidean distances, of which cosine distances are half the square."""
    if pairs.distance == "cosine":
        return (2 * pairs.d.detach().double()).clamp_min(0).sqrt()
    return pair_distances(pairs.x, pairs.y).detach().double()


def draw_negatives(pairs: Pairs, weights: Tensor, seed: int) -> Tensor:
    """[B, N]: for each positive pair (i, p) the negative drawn for it, -1 where there is none.

    The k-th positive of i gets the first negative in (label, index) order at which the running sum
    of the weights exceeds uniform01(seed, number of i, k) of their total.
    """
    order = torch.argsort(pairs.ref_labels, stable=True)
    drawn = torch.full(weights.shape, -1)
    for i, row in enumerate(weights):
        running = row[order].cumsum(0)
        if len(running) == 0 or running[-1] == 0:
            continue
        for k, p in enumerate(pairs.positives[i].nonzero()[:, 0].tolist()):
            beyond = running > uniform01(seed, pairs.numbers[i], k) * running[-1]
            drawn[i, p] = order[beyond.int().argmax()]
    return drawn


def uniform01(seed: int, i: int, k: int) -> float:
    """The number in [0, 1) that belongs to the k-th positive of the anchor of number i."""
    z = splitmix64(splitmix64(splitmix64(seed) ^ i) ^ k)
    return (z >> 11) * 2.0**-53


def splitmix64(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def _doubt(pairs: Pairs, weights: Tensor, seed: int) -> list[float]:
    """How far each draw is from its neighbours, as the error of a distance that would reach it.

    The logarithm of a weight changes by less than 4 D + 10 per unit of distance.
    """
    order = torch.argsort(pairs.ref_labels, stable=True)
    found = []
    for i, row in enumerate(weights):
        total = row.sum()
        if total > 0:
            shares = row[order].cumsum(0) / total
            for k in range(int(pairs.positives[i].sum())):
                drawn = uniform01(seed, pairs.numbers[i], k)
                found.append((shares[:-1] - drawn).abs().min().item())
    return [gap / (4 * pairs.x.shape[1] + 10) if math.isfinite(gap) else 1.0 for gap in found]


def _nearest(pairs: Pairs, mask: Tensor) -> Tensor:
    """[B, 1], -1 where there is none."""
    return first_extreme(pairs.d.detach(), mask, pairs.ref_labels, largest=False)[:, None]


def _lead(d: Tensor, mask: Tensor, chosen: Tensor, valid: Tensor) -> Tensor:
    """Distances of the other candidates from the chosen one."""
    if d.shape[1] == 0:
        return d.flatten()
    others = mask & valid & (torch.arange(d.shape[1]) != chosen)
    return (d - d.gather(1, chosen.clamp_min(0)))[others].detach()


def _terms(
    pairs: Pairs,
    p: Tensor,
    n: Tensor,
    valid: Tensor,
    kinks: list[Tensor],
    *,
    margin: float,
    smooth: bool,
    swap: bool,
) -> Terms:
    """The terms of the triplets (i, p[i, k], n[i, k]) that are valid; [B, K] each."""
    if pairs.d.shape[1] == 0:
        nothing = pairs.d.sum(1, keepdim=True).expand(p.shape)
        return _hinged(pairs, nothing, valid, kinks, margin=margin, smooth=smooth)
    p, n = p.clamp_min(0), n.clamp_min(0)
    d_ap, d_an = pairs.d.gather(1, p), pairs.d.gather(1, n)
    if swap:
        between = pairs.among_references()[p, n]
        kinks = [*kinks, (between - d_an)[valid]]
        d_an = torch.minimum(d_an, between)
    return _hinged(pairs, d_ap - d_an + margin, valid, kinks, margin=margin, smooth=smooth)


def _hinged(
    pairs: Pairs,
    violation: Tensor,
    valid: Tensor,
    kinks: list[Tensor],
    *,
    margin: float,
    smooth: bool,
) -> Terms:
    values = softplus(violation) if smooth else hinge(violation)
    group = Group(values, valid, hinges=hinge(violation))
    kinks = [*kinks, violation[valid].detach()]
    return Terms([group], kinks, thresholds=pairs.farthest() + margin)
