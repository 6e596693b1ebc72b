"""Losses whose terms depend on the distance of one pair each."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.reference.pairs import Group, Pairs, Terms, hinge, softplus


def contrastive(
    pairs: Pairs, *, pos_margin: float = 0.0, neg_margin: float = 1.0, squared: bool = False
) -> Terms:
    """[d - pos_margin]+ over positive, [neg_margin - d]+ over negative pairs (Hadsell 2006)."""
    pull, push = hinge(pairs.d - pos_margin), hinge(neg_margin - pairs.d)
    power = 2 if squared else 1
    kinks = [(pairs.d - neg_margin)[pairs.negatives]]
    # Below its bound a distance cannot be: only a Euclidean one has a kink there.
    if pos_margin > 0 or pairs.distance == "euclidean":
        kinks.append((pairs.d - pos_margin)[pairs.positives])
    return Terms(
        [
            Group(pull**power, pairs.positives, hinges=pull),
            Group(push**power, pairs.negatives, hinges=push),
        ],
        [kink.detach() for kink in kinks],
        thresholds=torch.full((len(pairs.x),), float(neg_margin), dtype=pairs.d.dtype),
    )


def margin(pairs: Pairs, *, margin: float = 0.2, beta: float | Tensor = 1.2) -> Terms:
    """[margin + d_ip - beta_i]+ and [margin - d_in + beta_i]+ of every triplet (1706.07567).

    ``beta`` is one number or, (C,), one for each label of an anchor. A positive pair is part of as
    many triplets as its anchor has negatives, and the other way round.
    """
    beta = torch.as_tensor(beta, dtype=pairs.d.dtype)
    own = beta.expand(len(pairs.x)) if beta.numel() == 1 else beta[pairs.labels.long()]
    positives = pairs.positives & pairs.negatives.any(1, keepdim=True)
    negatives = pairs.negatives & pairs.positives.any(1, keepdim=True)
    pull = hinge(margin + pairs.d - own[:, None])
    push = hinge(margin - pairs.d + own[:, None])
    away = pairs.d - own[:, None]
    return Terms(
        [
            Group(pull, positives, weight=negatives.sum(1, keepdim=True)),
            Group(push, negatives, weight=positives.sum(1, keepdim=True)),
        ],
        [(margin + away)[positives].detach(), (margin - away)[negatives].detach()],
        thresholds=(own + margin).detach(),
        pooled=True,
    )


def siglip(pairs: Pairs, *, scale: float | Tensor = 10.0, bias: float | Tensor = -10.0) -> Terms:
    """Sum over the pairs of an anchor of -log sigmoid(z (scale s + bias)) (2303.15343, eq. 1)."""
    logits = scale * (pairs.zero_similarity - pairs.d) + bias
    values = softplus(torch.where(pairs.positives, -logits, logits))
    sums = (values * (pairs.positives | pairs.negatives)).sum(1, keepdim=True)
    return Terms([Group(sums, torch.ones_like(sums, dtype=torch.bool))], soft=True)
