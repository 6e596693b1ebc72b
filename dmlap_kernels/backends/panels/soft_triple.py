"""SoftTriple: classes of several centres, panel by panel.

With s = -d the similarity S_c to a class is the mean of its s by the weights softmax(s / gamma),
its logit la (S_c - margin if it is the anchor's own), and the term -log softmax of the own class.
A constant that is added to all s makes no difference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.terms import softplus
from dmlap_kernels.backends.panels.exponents import LOWEST
from dmlap_kernels.backends.panels.panel import Panel, Panels


class _Classes(NamedTuple):
    """Of each pair (b, N) its share in its class, and the similarity and the logit of the class; of
    each anchor (b,) the log-sum of the logits of other classes, and the logit of its own."""

    share: Tensor
    similarity: Tensor
    logit: Tensor
    others: Tensor
    mine: Tensor


def terms(panels: Panels, sides: Sides, la: float, gamma: float, margin: float) -> Tensor:
    """`Sweeps.soft_triple`."""

    def body(panel: Panel, la: float, gamma: float, margin: float) -> tuple[Tensor, ...]:
        found = _classes(panel, la, gamma, margin)
        some = ~panel.unlike.all(1)
        term = torch.where(some, softplus(found.others - found.mine), 0)
        return term, found.others.detach(), found.mine.detach()

    return torch.stack(panels.each(sides, body, (), (la, gamma, margin)))


def weights(
    panel: Panel, la: float, gamma: float, margin: float, kept: Tensor, weight: Tensor
) -> Tensor:
    """The gradient (b, N) at the distances of the panel, of its terms times weight (B,)."""
    found = _classes(panel, la, gamma, margin)
    others, mine = (row[panel.at, None] for row in kept)
    own = torch.where(panel.unlike.all(1), 0, weight[panel.at])[:, None]
    # By the similarities of the classes: those of others push, the anchor's own pulls.
    at_class = (found.logit - others.clamp(min=LOWEST)).exp_()
    at_class = torch.where(panel.unlike, at_class, -1).mul_(la * own * (others - mine).sigmoid())
    inner = (panel.d + found.similarity).div_(gamma).sub_(1)
    return at_class.mul_(found.share).mul_(inner)


def _classes(panel: Panel, la: float, gamma: float, margin: float) -> _Classes:
    s, left_out = -panel.d, panel.unlike & panel.alike
    scaled = (s / gamma).masked_fill(left_out, -torch.inf)
    column = _class_of(panel).expand_as(s)
    top = torch.full_like(s, -torch.inf).scatter_reduce_(1, column, scaled.detach(), "amax")
    weight = (scaled - top.gather(1, column).clamp_(min=LOWEST)).exp()
    total = _class_sums(panel, weight, column)
    share = weight / torch.where(total > 0, total, 1)
    similarity = _class_sums(panel, share * s, column)
    own = ~panel.unlike
    logit = la * (similarity - margin * own.to(s.dtype))  # a bool times a number is float32
    mine = torch.where(own, logit, -torch.inf).amax(1)
    mine = torch.where(own.any(1), mine, 0)
    # The shares of a class add up to 1, so that it counts once.
    rest = logit.masked_fill(panel.alike | left_out, -torch.inf)
    highest = rest.detach().amax(1, keepdim=True).clamp_(min=LOWEST)
    sum_of_rest = ((rest - highest).exp() * share).sum(1)
    some = sum_of_rest > 0
    others = torch.where(some, sum_of_rest, 1).log() + highest.squeeze(1)
    return _Classes(share, similarity, logit, torch.where(some, others, -torch.inf), mine)


def _class_of(panel: Panel) -> Tensor:
    """The number (N,) of the class of each column."""
    labels = panel.sides.labels_y
    if not len(labels):
        return torch.zeros(1, dtype=torch.int64, device=labels.device)
    return F.pad(labels[1:] != labels[:-1], (1, 0)).cumsum(0)


def _class_sums(panel: Panel, values: Tensor, column: Tensor) -> Tensor:
    """At each column (b, N) the sum of the values of its class, added in a fixed order."""
    if values.device.type == "cpu":
        return torch.zeros_like(values).scatter_add(1, column, values).gather(1, column)
    # Elsewhere the order in which an index that repeats is added to may change.
    labels = panel.sides.labels_y
    running = F.pad(values.double().cumsum(1), (1, 0))
    first, last = (torch.searchsorted(labels, labels, right=side) for side in (False, True))
    found = running.index_select(1, last) - running.index_select(1, first)
    return found.to(values.dtype)
