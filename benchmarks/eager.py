"""The B x B code that people write: the naive side of every comparison.

Losses take (x, labels) or (x, labels, proxies, proxy_labels) and the options of the fused function
of the same name, as numbers. Every anchor of these benchmarks has positives and negatives, and none
of the losses spends time on the case that it has not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.reference.losses import FORMULAS
from tests.reference.pairs import Pairs, reduce_terms

# Up to this batch triplets are compared in a B x B x B cube, beyond it pair by pair.
CUBE_ROWS = 256


def masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, B) positives and negatives of every anchor."""
    same = labels[:, None] == labels
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same & ~itself, ~same


def similarities(x: Tensor, y: Tensor) -> Tensor:
    return F.normalize(x) @ F.normalize(y).T


def log_sum_exp(logits: Tensor, kept: Tensor, dim: int = 1) -> Tensor:
    return logits.masked_fill(~kept, -torch.inf).logsumexp(dim)


def log_one_plus_sum_exp(logits: Tensor, kept: Tensor, dim: int = 1) -> Tensor:
    return F.softplus(log_sum_exp(logits, kept, dim))


def of_reference(name: str, distance: str) -> Callable[..., Tensor]:
    """The mean of the terms by the formula of the tests, distances from one product of matrices."""

    def loss(
        x: Tensor,
        labels: Tensor,
        y: Tensor | None = None,
        y_labels: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        unit = distance == "cosine"
        x, y = (F.normalize(t) if unit and t is not None else t for t in (x, y))
        refs = x if y is None else y
        if y_labels is None:
            positive, negative = masks(labels)
        else:
            positive = labels[:, None] == y_labels
            negative = ~positive
        if distance in ("cosine", "dot"):
            d = float(unit) - x @ refs.T
        else:
            d = torch.cdist(x, refs)
            d = d.square() if distance == "sqeuclidean" else d
        sides = x, labels, refs, labels if y_labels is None else y_labels
        pairs = Pairs(*sides, d, positive, negative, distance, y is None, list(range(len(x))))
        return reduce_terms(FORMULAS[name](pairs, **options), "mean")

    return loss


def triplet_hard(x: Tensor, labels: Tensor, *, margin: float) -> Tensor:
    d = torch.cdist(x, x)
    positive, negative = masks(labels)
    farthest = d.masked_fill(~positive, -torch.inf).amax(1)
    closest = d.masked_fill(~negative, torch.inf).amin(1)
    return (farthest - closest + margin).relu().mean()


def triplet_easy_positive(x: Tensor, labels: Tensor, *, margin: float) -> Tensor:
    d = torch.cdist(x, x)
    positive, negative = masks(labels)
    closest = [d.masked_fill(~some, torch.inf).amin(1) for some in (positive, negative)]
    return (closest[0] - closest[1] + margin).relu().mean()


def triplet_easy_positive_semihard(x: Tensor, labels: Tensor, *, margin: float) -> Tensor:
    """The closest positive with the closest negative beyond it, where there is one."""
    d = torch.cdist(x, x)
    positive, negative = masks(labels)
    closest = d.masked_fill(~positive, torch.inf).amin(1)
    beyond = d.masked_fill(~negative | (d <= closest[:, None]), torch.inf).amin(1)
    return (closest - beyond + margin).relu().sum() / beyond.isfinite().sum()


def triplet_semihard(x: Tensor, labels: Tensor, *, margin: float) -> Tensor:
    """Each positive pair with the closest negative beyond it, found in sorted rows."""
    d = torch.cdist(x, x)
    positive, negative = masks(labels)
    ordered = d.masked_fill(~negative, torch.inf).sort(1).values
    place = torch.searchsorted(ordered.detach(), d.detach(), right=True)
    beyond = ordered.gather(1, place.clamp(max=len(x) - 1))
    farthest = d.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
    chosen = torch.where(beyond.isfinite(), beyond, farthest)
    return (d - chosen + margin).relu()[positive].mean()


def triplet_all(x: Tensor, labels: Tensor, *, margin: float) -> Tensor:
    d = torch.cdist(x, x)
    positive, negative = masks(labels)
    if len(x) <= CUBE_ROWS:
        valid = positive[:, :, None] & negative[:, None, :]
        return (d[:, :, None] - d[:, None, :] + margin).relu()[valid].mean()
    anchor, other = positive.nonzero(as_tuple=True)
    hinges = (d[anchor, other][:, None] - d[anchor] + margin).relu()
    valid = negative[anchor]
    return (hinges * valid).sum() / valid.sum()


def triplet_distance_weighted(
    x: Tensor, labels: Tensor, *, margin: float, cutoff: float, nonzero_loss_cutoff: float
) -> Tensor:
    """Each positive pair with a negative drawn by the inverse density of its distance."""
    unit = F.normalize(x)
    d = torch.cdist(unit, unit)
    positive, negative = masks(labels)
    with torch.no_grad():
        features = x.shape[1]
        clipped = d.clamp(min=cutoff)
        log_weights = (2 - features) * clipped.log()
        log_weights -= (features - 3) / 2 * (1 - clipped.square() / 4).log()
        usable = negative & log_weights.isfinite() & (d < nonzero_loss_cutoff)
        log_weights = log_weights.masked_fill(~usable, -torch.inf)
        weights = (log_weights - log_weights.amax()).exp()
        drawable = weights.sum(1) > 0
    anchor, other = (positive & drawable[:, None]).nonzero(as_tuple=True)
    drawn = torch.multinomial(weights[anchor], 1).squeeze(1)
    return (d[anchor, other] - d[anchor, drawn] + margin).relu().mean()


def contrastive(x: Tensor, labels: Tensor, *, neg_margin: float) -> Tensor:
    d = torch.cdist(x, x)
    positive, negative = masks(labels)
    pull = (d * positive).sum() / positive.sum()
    push = ((neg_margin - d).relu() * negative).sum() / negative.sum()
    return pull + push


def margin(x: Tensor, labels: Tensor, *, margin: float, beta: float) -> Tensor:
    """Over all triplets: a pair counts once for each triplet that it is part of."""
    d = torch.cdist(x, x)
    positive, negative = masks(labels)
    positives, negatives = positive.sum(1), negative.sum(1)
    pull = ((d - beta + margin).relu() * positive).sum(1)
    push = ((beta - d + margin).relu() * negative).sum(1)
    return (negatives * pull + positives * push).sum() / (positives * negatives).sum()


def multi_similarity(
    x: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    beta: float,
    base: float,
    epsilon: float | None = None,
) -> Tensor:
    s = similarities(x, x)
    positive, negative = masks(labels)
    if epsilon is not None:
        hardest = s.detach().masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
        easiest = s.detach().masked_fill(~positive, torch.inf).amin(1, keepdim=True)
        positive = positive & (s.detach() - epsilon < hardest)
        negative = negative & (s.detach() + epsilon > easiest)
    pull = log_one_plus_sum_exp(-alpha * (s - base), positive) / alpha
    push = log_one_plus_sum_exp(beta * (s - base), negative) / beta
    return (pull + push).mean()


def lifted_structure(x: Tensor, labels: Tensor, *, pos_margin: float, neg_margin: float) -> Tensor:
    d = torch.cdist(x, x)
    positive, negative = masks(labels)
    pull = log_sum_exp(d - pos_margin, positive)
    push = log_sum_exp(neg_margin - d, negative)
    return (pull + push).relu().mean()


def lifted_structure_original(
    x: Tensor, labels: Tensor, *, pos_margin: float, neg_margin: float
) -> Tensor:
    """Each positive pair with the negatives of both of its ends."""
    d = torch.cdist(x, x)
    positive, negative = masks(labels)
    push = log_sum_exp(neg_margin - d, negative)
    both = torch.logaddexp(push[:, None], push[None, :])
    return (both + d - pos_margin).relu()[positive].square().mean() / 2


def n_pairs(x: Tensor, labels: Tensor) -> Tensor:
    """The first two rows of every class; the others' second rows are the negatives."""
    order = labels.argsort(stable=True)
    _, counts = labels.unique(return_counts=True)
    first = counts.cumsum(0) - counts
    logits = x[order[first]] @ x[order[first + 1]].T
    return F.cross_entropy(logits, torch.arange(len(logits), device=x.device))


def nt_xent(x: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    logits = similarities(x, x) / temperature
    positive, negative = masks(labels)
    against = log_sum_exp(logits, negative)
    return F.softplus(against[:, None] - logits)[positive].mean()


def of_hard_negatives(logits: Tensor, negative: Tensor, hardness: float) -> Tensor:
    """Log-sums of negatives that count e^(hardness logit) times, over the mean of that."""
    weights = log_sum_exp(hardness * logits, negative) - negative.sum(1).log()
    return log_sum_exp((1 + hardness) * logits, negative) - weights


def nt_xent_hardness(x: Tensor, labels: Tensor, *, temperature: float, hardness: float) -> Tensor:
    logits = similarities(x, x) / temperature
    positive, negative = masks(labels)
    against = of_hard_negatives(logits, negative, hardness)
    return F.softplus(against[:, None] - logits)[positive].mean()


def info_nce(
    x: Tensor, labels: Tensor, y: Tensor, y_labels: Tensor, *, temperature: float
) -> Tensor:
    """Row i of x belongs to row labels[i] of y, whose own labels are 0, 1, ..."""
    return F.cross_entropy(similarities(x, y) / temperature, labels)


def siglip_pairs(
    x: Tensor, labels: Tensor, y: Tensor, y_labels: Tensor, *, scale: float, bias: float
) -> Tensor:
    """Row i of x belongs to row labels[i] of y alone, as images to their texts."""
    logits = scale * similarities(x, y) + bias
    signs = 2.0 * (labels[:, None] == y_labels) - 1
    return -F.logsigmoid(signs * logits).sum() / len(x)


def sup_con(x: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    logits = similarities(x, x) / temperature
    positive, negative = masks(labels)
    log_prob = logits - log_sum_exp(logits, positive | negative)[:, None]
    return -((log_prob * positive).sum(1) / positive.sum(1)).mean()


def sup_con_hardness(x: Tensor, labels: Tensor, *, temperature: float, hardness: float) -> Tensor:
    logits = similarities(x, x) / temperature
    positive, negative = masks(labels)
    against = of_hard_negatives(logits, negative, hardness)
    log_prob = logits - torch.logaddexp(log_sum_exp(logits, positive), against)[:, None]
    return -((log_prob * positive).sum(1) / positive.sum(1)).mean()


def angular(x: Tensor, labels: Tensor, *, alpha: float) -> Tensor:
    """(B P) x B: the negatives of a pair are compared with the sum of its two ends."""
    s = similarities(x, x)
    positive, negative = masks(labels)
    anchor, other = positive.nonzero(as_tuple=True)
    squared_tangent = math.tan(math.radians(alpha)) ** 2
    near = 2 * (1 + squared_tangent) * s[anchor, other]
    logits = 4 * squared_tangent * (s[anchor] + s[other]) - near[:, None]
    return log_one_plus_sum_exp(logits, negative[anchor]).mean()


def circle(x: Tensor, labels: Tensor, *, m: float, gamma: float) -> Tensor:
    s = similarities(x, x)
    positive, negative = masks(labels)
    pull = -gamma * (1 + m - s.detach()).relu() * (s - (1 - m))
    push = gamma * (s.detach() + m).relu() * (s - m)
    return F.softplus(log_sum_exp(pull, positive) + log_sum_exp(push, negative)).mean()


def proxy_nca(
    x: Tensor, labels: Tensor, proxies: Tensor, proxy_labels: Tensor, *, softmax_scale: float
) -> Tensor:
    d = torch.cdist(F.normalize(x), F.normalize(proxies)).square()
    positive = labels[:, None] == proxy_labels
    logits = -softmax_scale * d
    return (logits.logsumexp(1) - log_sum_exp(logits, positive)).mean()


def proxy_anchor(
    x: Tensor,
    labels: Tensor,
    proxies: Tensor,
    proxy_labels: Tensor,
    *,
    margin: float,
    alpha: float,
) -> Tensor:
    s = similarities(x, proxies)
    positive = labels[:, None] == proxy_labels
    pull = log_one_plus_sum_exp(-alpha * (s - margin), positive, dim=0)
    push = log_one_plus_sum_exp(alpha * (s + margin), ~positive, dim=0)
    return pull.sum() / positive.any(0).sum() + push.mean()


def cosface(
    x: Tensor,
    labels: Tensor,
    proxies: Tensor,
    proxy_labels: Tensor,
    *,
    scale: float,
    margin: float,
) -> Tensor:
    """The proxies lie in the order of the labels."""
    s = similarities(x, proxies)
    taken = F.one_hot(labels, len(proxies)).to(s.dtype) * margin
    return F.cross_entropy(scale * (s - taken), labels)


def arcface(
    x: Tensor,
    labels: Tensor,
    proxies: Tensor,
    proxy_labels: Tensor,
    *,
    scale: float,
    margin: float,
) -> Tensor:
    """The proxies lie in the order of the labels."""
    s, m = similarities(x, proxies), math.radians(margin)
    own = s.gather(1, labels[:, None]).clamp(-1, 1)
    turned = torch.where(own >= -math.cos(m), (own.acos() + m).cos(), own - m * math.sin(m))
    return F.cross_entropy(scale * s.scatter(1, labels[:, None], turned), labels)


def soft_triple(
    x: Tensor,
    labels: Tensor,
    proxies: Tensor,
    proxy_labels: Tensor,
    *,
    la: float,
    gamma: float,
    margin: float,
) -> Tensor:
    """The proxies of a class lie together, as many of each class, classes 0, 1, ... in order."""
    classes = int(proxy_labels[-1]) + 1
    s = similarities(x, proxies).view(len(x), classes, -1)
    relaxed = ((s / gamma).softmax(2) * s).sum(2)
    logits = la * (relaxed - margin * F.one_hot(labels, classes))
    return F.cross_entropy(logits, labels)


def nearest(x: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """k nearest other rows."""
    d = torch.cdist(x, x)
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    found = d.masked_fill(itself, torch.inf).topk(k, largest=False)
    return found.values, found.indices


def hard_classes(x: Tensor, *, k: int, margin: float) -> tuple[Tensor, Tensor]:
    """k hardest other classes of each class, one representative a class."""
    d = torch.cdist(x, x)
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    hardest = (margin - d).relu().masked_fill(itself, -1.0).topk(k)
    return hardest.values, hardest.indices
