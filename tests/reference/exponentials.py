"""Losses whose terms are logarithms of sums of exponentials."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.reference.distances import distances_as_they_are
from tests.reference.pairs import (
    Group,
    Pairs,
    Terms,
    extreme,
    hinge,
    log_one_plus_sum_exp,
    log_sum_exp,
    softplus,
)


def _per_anchor(values: Tensor, counted: Tensor | None = None) -> Group:
    counted = torch.ones_like(values, dtype=torch.bool) if counted is None else counted
    return Group(values[:, None], counted[:, None])


def multi_similarity(
    pairs: Pairs,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = None,
) -> Terms:
    """1/alpha log(1 + sum_P e^(-alpha (s - base))) + 1/beta log(1 + sum_N e^(beta (s - base))).

    1904.06627, eq. 15. With ``epsilon`` only over the pairs that its eq. 11 and 12 keep.
    """
    d, positives, negatives = pairs.d, pairs.positives, pairs.negatives
    similarity = pairs.distance in ("cosine", "dot")
    threshold = pairs.zero_similarity - base if similarity else base
    kinks = []
    if epsilon is not None:
        near = extreme(d, negatives, largest=False).detach()[:, None]
        far = extreme(d, positives, largest=True).detach()[:, None]
        kinks = [(d + epsilon - near)[positives], (d - epsilon - far)[negatives]]
        positives, negatives = (
            positives & negatives.any(1, keepdim=True) & (d + epsilon > near),
            negatives & positives.any(1, keepdim=True) & (d - epsilon < far),
        )
    pull = log_one_plus_sum_exp(alpha * (d - threshold), positives) / alpha
    push = log_one_plus_sum_exp(beta * (threshold - d), negatives) / beta
    return Terms([_per_anchor(pull + push)], [kink.detach() for kink in kinks], soft=True)


def lifted_structure(pairs: Pairs, *, pos_margin: float = 0.0, neg_margin: float = 1.0) -> Terms:
    """[log sum_P e^(d - pos_margin) + log sum_N e^(neg_margin - d)]+ (1703.07737, page 4)."""
    pull = log_sum_exp(pairs.d - pos_margin, pairs.positives)
    push = log_sum_exp(neg_margin - pairs.d, pairs.negatives)
    some = (pairs.positives | pairs.negatives).any(1)
    return Terms([_per_anchor(hinge(pull + push))], [(pull + push)[some].detach()])


def lifted_structure_original(
    pairs: Pairs, *, pos_margin: float = 0.0, neg_margin: float = 1.0
) -> Terms:
    """[log(sum_n e^(neg_margin - d_in) + sum_n e^(neg_margin - d_pn)) + d_ip - pos_margin]+^2 / 2.

    Over positive pairs (1511.06452, eq. 4); the negatives of a reference are the anchors of other
    labels. Where neither row has negatives the logarithm is that of 0, and the term 0.
    """
    push = torch.where(pairs.negatives, neg_margin - pairs.d, -torch.inf)
    some_i, some_p = pairs.negatives.any(1), pairs.negatives.any(0)
    of_anchor, of_reference = (
        log_sum_exp(push, pairs.negatives),
        log_sum_exp(push.t(), pairs.negatives.t()),
    )
    none = torch.full_like(pairs.d, -torch.inf)
    both = torch.logaddexp(
        torch.where(some_i[:, None], of_anchor[:, None], none),
        torch.where(some_p[None, :], of_reference[None, :], none),
    )
    known = some_i[:, None] | some_p[None, :]
    argument = torch.where(known, both + pairs.d - pos_margin, torch.zeros_like(both))
    values = hinge(argument) ** 2 / 2
    return Terms([Group(values, pairs.positives)], [argument[pairs.positives & known].detach()])


def _against(pairs: Pairs, logits: Tensor, hardness: float | Tensor) -> Tensor:
    """log sum_N w e^logit, where w are the e^(hardness logit) over their mean (2010.04592, section
    3), with the gradient of the weights as in its authors' code."""
    total = log_sum_exp((1 + hardness) * logits, pairs.negatives)
    weights = log_sum_exp(hardness * logits, pairs.negatives)
    return total - weights + pairs.negatives.sum(1).clamp_min(1).to(logits.dtype).log()


def nt_xent(pairs: Pairs, *, temperature: float = 0.07, hardness: float | Tensor = 0.0) -> Terms:
    """log(1 + sum_N e^((d_ip - d_in) / temperature)) of each positive pair (2002.05709, eq. 1)."""
    logits = -pairs.d / temperature
    against = _against(pairs, logits, hardness)[:, None]
    values = softplus(against - logits) * pairs.negatives.any(1, keepdim=True)
    return Terms([Group(values, pairs.positives)], soft=True)


# By the policies' names.
nt_xent_hardness = nt_xent


def n_pairs(pairs: Pairs) -> Terms:
    """Each positive against negatives without temperature (Sohn 2016, eq. 6).

    In the self case the first two rows of each class that has them are its anchor and its positive;
    the positives of the other classes are the anchor's negatives. With references: `nt_xent` at
    temperature 1.
    """
    if not pairs.self_case:
        return nt_xent(pairs, temperature=1.0)
    members = [(pairs.labels == c).nonzero()[:, 0] for c in torch.unique(pairs.labels)]
    members = [rows[:2] for rows in members if len(rows) > 1]
    first, second = torch.stack(members).T if members else torch.empty(2, 0, dtype=torch.int64)
    d = distances_as_they_are(pairs.x[first], pairs.x[second], pairs.distance)
    others = ~torch.eye(len(first), dtype=torch.bool)
    found = log_one_plus_sum_exp(d.diagonal()[:, None] - d, others)
    values = torch.zeros_like(pairs.d.sum(1)).index_put((first,), found)
    counted = torch.zeros(len(pairs.x), dtype=torch.bool).index_fill(0, first, True)
    return Terms([_per_anchor(values, counted)], soft=True)


def sup_con(pairs: Pairs, *, temperature: float = 0.1, hardness: float | Tensor = 0.0) -> Terms:
    """Mean over P of -log softmax over all other rows (2004.11362, eq. 2)."""
    logits = -pairs.d / temperature
    everyone = log_sum_exp(logits, pairs.positives)
    against = torch.logaddexp(everyone, _against(pairs, logits, hardness))
    everyone = torch.where(pairs.negatives.any(1), against, everyone)[:, None]
    log_p = torch.where(pairs.positives, logits - everyone, torch.zeros_like(logits))
    values = -log_p.sum(1) / pairs.positives.sum(1).clamp_min(1)
    return Terms([_per_anchor(values)], soft=True)


sup_con_hardness = sup_con


def angular(pairs: Pairs, *, alpha: float = 40.0) -> Terms:
    """log(1 + sum_N e^(4 t^2 (x_i + x_p) . x_n - 2 (1 + t^2) x_i . x_p)), t = tan(alpha).

    Of each positive pair (1708.01682, eq. 8), over unit rows.
    """
    t2 = torch.as_tensor(alpha, dtype=pairs.d.dtype).deg2rad().tan() ** 2
    products, among = 1 - pairs.d, 1 - pairs.among_references()
    exponents = 4 * t2 * (products[:, None, :] + among[None]) - (
        2 * (1 + t2) * products[:, :, None]
    )
    negatives = pairs.negatives[:, None, :].expand(exponents.shape)
    values = log_one_plus_sum_exp(exponents, negatives)
    return Terms([Group(values, pairs.positives)], soft=True)


def circle(pairs: Pairs, *, m: float = 0.4, gamma: float = 80.0) -> Terms:
    """Circle loss over pair-wise labels (2002.10857, eq. 6), with its factors held constant."""
    s = 1 - pairs.d
    pull = -gamma * hinge(1 + m - s).detach() * (s - (1 - m))
    push = gamma * hinge(s + m).detach() * (s - m)
    both = pairs.positives.any(1) & pairs.negatives.any(1)
    values = softplus(log_sum_exp(pull, pairs.positives) + log_sum_exp(push, pairs.negatives))
    return Terms([_per_anchor(values * both)], soft=True)
