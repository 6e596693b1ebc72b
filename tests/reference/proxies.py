"""Losses against learnable proxies: the references."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.reference.pairs import Group, Pairs, Terms, log_one_plus_sum_exp, log_sum_exp, softplus


def proxy_nca(pairs: Pairs, *, softmax_scale: float = 1.0) -> Terms:
    """-log of the softmax share of the anchor's own proxies (1703.07464, in the softmax form).

    Anchors without a proxy of their own are left out.
    """
    logits = -softmax_scale * pairs.d
    own = log_sum_exp(logits, pairs.positives)
    values = softplus(log_sum_exp(logits, pairs.negatives) - own)
    values = values * pairs.negatives.any(1)
    return Terms([Group(values[:, None], pairs.positives.any(1, keepdim=True))], soft=True)


def cosface(pairs: Pairs, *, scale: float = 64.0, margin: float = 0.35) -> Terms:
    """Cross entropy over the proxies' cosines, those of the label less the margin (1801.09414)."""
    own = log_sum_exp(scale * (1 - pairs.d - margin), pairs.positives)
    return _cross_entropy(pairs, scale, own)


def arcface(pairs: Pairs, *, scale: float = 64.0, margin: float = 28.6) -> Terms:
    """The same with the margin, in degrees, on the angle (1801.07698, eq. 3).

    The cosine to several proxies of a label is their log-mean-exponential.
    """
    margin = torch.deg2rad(torch.as_tensor(margin, dtype=pairs.d.dtype))
    number = pairs.positives.sum(1).clamp_min(1).to(pairs.d.dtype).log()
    # 1 - cos, which keeps small angles.
    d = (number - log_sum_exp(-scale * pairs.d, pairs.positives)) / scale
    inside = (d > 0) & (d < 2)
    sine = torch.where(inside, torch.where(inside, d * (2 - d), torch.ones_like(d)).sqrt(), 0)
    turned = (1 - d) * margin.cos() - sine * margin.sin()
    beyond = 1 - d < -margin.cos()
    own = torch.where(beyond, 1 - d - margin * margin.sin(), turned)
    return _cross_entropy(pairs, scale, scale * own + number)


def _cross_entropy(pairs: Pairs, scale: float, own: Tensor) -> Terms:
    """Of the logit of the label's proxies, (B,), and scale times the cosines of all others."""
    others = log_sum_exp(scale * (1 - pairs.d), pairs.negatives)
    values = softplus(others - own) * pairs.negatives.any(1)
    return Terms([Group(values[:, None], pairs.positives.any(1, keepdim=True))], soft=True)


def proxy_anchor(pairs: Pairs, *, margin: float = 0.1, alpha: float = 32.0) -> Terms:
    """Log-sum-exp over the positives and over the negatives of each proxy (2003.13911, eq. 4).

    The anchors of ``pairs`` are the proxies.
    """
    c0 = pairs.zero_similarity
    pull = log_one_plus_sum_exp(alpha * (pairs.d - (c0 - margin)), pairs.positives)
    push = log_one_plus_sum_exp(alpha * ((c0 + margin) - pairs.d), pairs.negatives)
    everyone = torch.ones(len(pull), 1, dtype=torch.bool)
    return Terms(
        [
            Group(pull[:, None], pairs.positives.any(1, keepdim=True)),
            Group(push[:, None], everyone),
        ],
        soft=True,
    )


def soft_triple(
    pairs: Pairs, *, la: float = 20.0, gamma: float = 0.1, margin: float = 0.01
) -> Terms:
    """Cross entropy over the classes' softly nearest centres (1909.05235, eq. 6 and 7).

    Anchors whose label has no centre are left out.
    """
    s = pairs.zero_similarity - pairs.d
    classes = torch.unique(pairs.ref_labels)
    own = pairs.labels[:, None] == classes
    counted = own.any(1)
    if len(classes) == 0:
        return Terms([Group(s.sum(1, keepdim=True), counted[:, None])], soft=True)
    relaxed = []
    for c in classes:
        centres = s[:, pairs.ref_labels == c]
        relaxed.append((torch.softmax(centres / gamma, 1) * centres).sum(1))
    logits = la * (torch.stack(relaxed, 1) - margin * own.to(s.dtype))
    values = softplus(log_sum_exp(logits, ~own) - (logits * own).sum(1)) * (~own).any(1)
    return Terms([Group(values[:, None], counted[:, None])], soft=True)
