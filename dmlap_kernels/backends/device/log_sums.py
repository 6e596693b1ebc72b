"""Losses of an anchor's log-sums: of e^exponent(d) over its positives and over its negatives.

A loss is a pair of exponents and the terms of an anchor as a function of what the sweep finds. The
derivatives of the terms are taken by autograd over (B,) vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dmlap_kernels.backends.device.hardness import (
    Hardness,
    added,
    gradient_of_negatives,
    log_mean_weight,
    negative_lse,
)
from dmlap_kernels.backends.device.sweeps import Both, Exponent, LogSums, PairGradient
from dmlap_kernels.backends.device.terms import (
    Call,
    Family,
    Found,
    Group,
    PackedGradients,
    anchor_group,
    found,
    softplus,
)
from dmlap_kernels.problem import PairProblem, PairSpec

# Of a cosine near 1, in units of the machine epsilon.
_ROUNDING = 8


class Anchors(NamedTuple):
    """What terms may see of the anchors: `LogSums`, and how many positives there are.

    All (B,); pos_lse and neg_lse are -inf where there is nothing to sum.
    """

    pos_lse: Tensor
    neg_lse: Tensor
    exponent_sum: Tensor
    count_positives: Callable[[], Tensor]

    @property
    def positives(self) -> Tensor:
        return self.count_positives()


# Of each group a value (B,) and a mask of the anchors that count, None for all of them.
Terms = tuple[tuple[Tensor, Tensor | None], ...]


# `LogSums`, and with a hardness the log-sum of the weights.
Sums = tuple[Tensor, ...]


class Policy(NamedTuple):
    """A loss by its exponents and terms.

    ``read`` are the sums that the terms look at. With ``epsilon`` only pairs are seen that are not
    easy: positives with d > nearest negative - epsilon, negatives with d < farthest positive +
    epsilon. With a ``hardness`` negatives count by theirs, and ``negative`` is its ``weighted``.
    """

    positive: Exponent
    negative: Exponent
    terms: Callable[[Anchors], Terms]
    epsilon: float | None = None
    read: tuple[str, ...] = ("pos_lse", "neg_lse")
    hardness: Hardness | None = None


def multi_similarity(
    alpha: float, beta: float, threshold: float, mined: float, epsilon: float
) -> Policy:
    def terms(a: Anchors) -> Terms:
        return ((softplus(a.pos_lse) / alpha + softplus(a.neg_lse) / beta, None),)

    exponents = Exponent(alpha, threshold), Exponent(-beta, threshold)
    return Policy(*exponents, terms, epsilon if mined else None)


def lifted_structure(pos_margin: float, neg_margin: float) -> Policy:
    def terms(a: Anchors) -> Terms:
        pull, push = (torch.where(z > -torch.inf, z, 0) for z in (a.pos_lse, a.neg_lse))
        return (((pull + push).relu(), None),)

    return Policy(Exponent(1.0, pos_margin), Exponent(-1.0, neg_margin), terms)


def sup_con(temperature: float) -> Policy:
    def terms(a: Anchors) -> Terms:
        some = a.positives > 0
        pos_lse = torch.where(some, a.pos_lse, 0)
        mean = a.exponent_sum / a.positives.clamp(min=1)
        # The first two are the log-sum over all pairs.
        term = softplus(a.neg_lse - pos_lse) + pos_lse - mean
        return ((torch.where(some, term, 0), None),)

    exponent = Exponent(-1 / temperature)
    return Policy(exponent, exponent, terms, read=LogSums._fields)


def sup_con_hardness(temperature: float, hardness: float) -> Policy:
    by_hardness = Hardness.of(-1 / temperature, hardness)
    plain = sup_con(temperature)
    return plain._replace(negative=by_hardness.weighted, hardness=by_hardness)


def circle(m: float, gamma: float) -> Policy:
    def terms(a: Anchors) -> Terms:
        # Where either is empty the sum is -inf and the term 0.
        return ((softplus(a.pos_lse + a.neg_lse), None),)

    return Policy(Exponent(gamma, m, 1, -m), Exponent(-gamma, 1 - m, -1, 1 + m), terms)


def proxy_nca(scale: float) -> Policy:
    def terms(a: Anchors) -> Terms:
        some = a.positives > 0
        return ((softplus(a.neg_lse - torch.where(some, a.pos_lse, 0)), some),)

    return Policy(Exponent(-scale), Exponent(-scale), terms)


def cosface(scale: float, margin: float) -> Policy:
    return proxy_nca(scale)._replace(positive=Exponent(-scale, -margin))


def arcface(scale: float, cos_margin: float, sin_margin: float, drop: float) -> Policy:
    def with_margin(d: Tensor) -> Tensor:
        """1 - cos(theta + margin) of d = 1 - cos theta. Beyond theta + margin = pi, where it would
        fall again, d + margin sin(margin)."""
        squared = d * (2 - d)
        # A sine of the size of the rounding of d counts as 0, as does its slope.
        some = squared > _ROUNDING * _epsilon(d)
        sine = torch.where(some, torch.where(some, squared, 1).sqrt(), 0)
        turned = 1 - (1 - d) * cos_margin + sine * sin_margin
        return torch.where(d > 1 + cos_margin, d + drop, turned)

    def terms(a: Anchors) -> Terms:
        some = a.positives > 0
        # Of several proxies of a class the mean exponential counts as that of one.
        proxies = (torch.ones_like(a.pos_lse) * a.positives.clamp(min=1)).log()
        d = (proxies - torch.where(some, a.pos_lse, 0)) / scale
        return ((softplus(a.neg_lse + with_margin(d) * scale - proxies), some),)

    return proxy_nca(scale)._replace(terms=terms)


def proxy_anchor(alpha: float, near: float, far: float) -> Policy:
    def terms(a: Anchors) -> Terms:
        return (softplus(a.pos_lse), a.positives > 0), (softplus(a.neg_lse), None)

    return Policy(Exponent(alpha, near), Exponent(-alpha, far), terms)


def _epsilon(row: Tensor) -> float:
    """Of the dtype of a row; a traced one is computed by kernels, in float32."""
    return torch.finfo(row.dtype if isinstance(row.dtype, torch.dtype) else torch.float32).eps


class LogSumLoss:
    """A loss by its policy. Keeps the log-sums, and the bounds of mined pairs.

    ``mining`` is which of the params is the flag that pairs are mined, None where they never are;
    ``by_hardness``: whether the policy has a hardness.
    """

    def __init__(
        self,
        policy: Callable[..., Policy],
        groups: int = 1,
        mining: int | None = None,
        by_hardness: bool = False,
    ) -> None:
        self._policy, self._groups, self._mining = policy, groups, mining
        self._by_hardness = by_hardness

    def groups(self, spec: PairSpec) -> int:
        return self._groups

    def kept_rows(self, spec: PairSpec, problem: PairProblem) -> int:
        # Of a traced call the numbers are not known, but the flags are.
        if self._by_hardness:
            return 4
        return 5 if self._mining is not None and spec.params[self._mining] else 3

    def forward(self, call: Call) -> Found:
        policy = self._policy(*call.spec.params)
        bounds: tuple[()] | tuple[Tensor, Tensor] = ()
        if policy.epsilon is not None:
            nearest, farthest = call.extremes.negative, call.extremes.positive
            bounds = nearest - policy.epsilon, farthest + policy.epsilon
        sums = self._log_sums(call, policy, bounds)
        if torch.is_grad_enabled():
            groups = _groups(call, policy, sums)
        else:
            groups, graph = _with_graph(call, policy, sums)
            call.memo["graph"] = graph
        return found(groups, (*sums, *bounds))

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        policy = self._policy(*call.spec.params)
        leaves, totals = call.memo.get("graph") or (None, ())
        if not all(total.requires_grad for total in totals) or leaves is None:
            sums = tuple(kept[: 3 if policy.hardness is None else 4])
            _, (leaves, totals) = _with_graph(call, policy, sums)
        slopes = torch.autograd.grad(
            totals, leaves, weights.unbind(), retain_graph=True, allow_unused=True
        )
        return PackedGradients(*self._gradient(call, policy, kept, slopes))

    def _log_sums(self, call: Call, policy: Policy, bounds: tuple[Tensor, ...]) -> Sums:
        above, below = bounds or (None, None)
        exponents = policy.positive, policy.negative
        sums = call.sweeps.log_sums(call.sides, *exponents, above, below, policy.read)
        if policy.hardness is None:
            return sums
        return *sums, negative_lse(call, call.sides, policy.hardness.weight)

    def _gradient(self, call: Call, policy: Policy, kept: Tensor, slopes: Sums) -> Both:
        """``slopes`` are the derivatives of the terms by their sums."""
        bounds = () if policy.hardness else kept[3:]
        coefficients = call.rows(*kept[:2], *slopes[:3], *bounds)
        kind = "exponential" if policy.epsilon is None else "mined"
        pair_gradient = PairGradient(kind, coefficients, None, policy.positive, policy.negative)
        gradient = call.sweeps.gradient(call.sides, pair_gradient)
        if policy.hardness is None:
            return gradient
        part = kept[3], slopes[3], policy.hardness.weight
        return added(gradient, gradient_of_negatives(call, call.sides, *part))


FAMILIES: dict[str, Family] = {
    "multi_similarity": LogSumLoss(multi_similarity, mining=3),
    "lifted_structure": LogSumLoss(lifted_structure),
    "sup_con": LogSumLoss(sup_con),
    "sup_con_hardness": LogSumLoss(sup_con_hardness, by_hardness=True),
    "circle": LogSumLoss(circle),
    "proxy_nca": LogSumLoss(proxy_nca),
    "cosface": LogSumLoss(cosface),
    "arcface": LogSumLoss(arcface),
    "proxy_anchor": LogSumLoss(proxy_anchor, groups=2),
}


def _groups(call: Call, policy: Policy, sums: Sums) -> tuple[Group, ...]:
    pos_lse, neg_lse, exponent_sum, *weight_lse = sums
    if weight_lse:
        neg_lse = neg_lse - log_mean_weight(call, weight_lse[0])
    anchors = Anchors(pos_lse, neg_lse, exponent_sum, lambda: call.positives)
    return tuple(anchor_group(*term) for term in policy.terms(anchors))


def _with_graph(
    call: Call, policy: Policy, sums: Sums
) -> tuple[tuple[Group, ...], tuple[Sums, tuple[Tensor, ...]]]:
    """The groups, and for their derivatives the sums as leaves of autograd, and the totals."""
    with torch.enable_grad():
        leaves = tuple(row.detach().requires_grad_() for row in sums)
        made = _groups(call, policy, leaves)
    plain = tuple(group._replace(total=group.total.detach()) for group in made)
    return plain, (leaves, tuple(group.total for group in made))
