"""Losses of listed pairs and triplets, as every miner of pytorch-metric-learning gives them.

Distances are gathered pair by pair in chunks, which backward computes again: memory grows with the
list and with the rows, never with B x N. A list at least a quarter as long as the matrix takes the
matrix, which is then not the larger one. Sums over the pairs of an anchor are segments.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pytorch_metric_learning.utils import common_functions as c_f
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dmlap_kernels.compat.pytorch_metric_learning.geometry import (
    Entry,
    Geometry,
    geometry,
    of_anchors,
)

# Elements of the gathered rows of a chunk: 8 MiB of float32.
_CHUNK = 2**21
_DENSE = 4

Indices = tuple[Tensor, ...]


def gathered(distance: Any, x: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Their ``distance`` between rows ``x[rows]`` and ``y[columns]``, (P,)."""
    kind = geometry(distance)
    if len(rows) * _DENSE >= len(x) * len(y) and len(rows):
        return distance(x, y)[rows, columns]
    unit = kind.normalize or kind.distance == "cosine"
    same = x is y
    x = F.normalize(x) if unit else x
    y = x if same else F.normalize(y) if unit else y
    step = max(1, _CHUNK // x.shape[1])
    if len(rows) <= step:
        return _compared(kind, x, y, rows, columns)
    parts = [
        checkpoint(_compared, kind, x, y, a, b, use_reentrant=False, preserve_rng_state=False)
        for a, b in zip(rows.split(step), columns.split(step), strict=True)
    ]
    return torch.cat(parts)


def _compared(kind: Geometry, x: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    left, right = x.index_select(0, rows), y.index_select(0, columns)
    if kind.inverted:
        return (left * right).sum(1)
    if kind.distance == "sqeuclidean":
        return (left - right).square().sum(1)
    return torch.linalg.vector_norm(left - right, dim=1)  # its gradient at 0 is 0


def log_sums(values: Tensor, segments: Tensor, count: int, add_one: bool = False) -> Tensor:
    """(count,): log of the sum of ``exp(values)`` of each segment, and 1 more for ``add_one``.

    0 for a segment without values, as in pytorch-metric-learning.
    """
    low = torch.finfo(values.dtype).min
    largest = values.new_full((count,), 0.0 if add_one else low)
    largest = largest.scatter_reduce(0, segments, values.detach(), "amax")
    present = torch.zeros(count, dtype=torch.bool, device=values.device)
    present[segments] = True
    largest = torch.where(present, largest, 0)
    total = (-largest).exp() if add_one else torch.zeros_like(largest)
    total = total.index_add(0, segments, (values - largest[segments]).exp())
    return torch.where(present, torch.where(present, total, 1).log() + largest, 0)


def log_sums_or_none(values: Tensor, segments: Tensor, count: int) -> Tensor:
    """`log_sums`, -inf for a segment without values."""
    present = torch.zeros(count, dtype=torch.bool, device=values.device)
    present[segments] = True
    return torch.where(present, log_sums(values, segments, count), -torch.inf)


def without_repeats(indices: Indices, columns: int) -> Indices:
    """Every pair once; one that is positive and negative is refused, as it is by theirs."""
    a1, p, a2, n = indices
    codes = [(a1 * columns + p).unique(), (a2 * columns + n).unique()]
    both = torch.cat(codes)
    assert len(both.unique()) == len(both), "Each pair should be either be positive or negative"
    return tuple(part for code in codes for part in (code // columns, code % columns))


def multi_similarity(loss: Any, pos: Tensor, neg: Tensor, indices: Indices, rows: int) -> Entry:
    a1, _, a2, _ = indices
    margin = loss.distance.margin
    pos_term = log_sums(loss.alpha * margin(pos, loss.base), a1, rows, add_one=True) / loss.alpha
    neg_term = log_sums(loss.beta * margin(loss.base, neg), a2, rows, add_one=True) / loss.beta
    return of_anchors(pos_term + neg_term)


def generalized_lifted(loss: Any, pos: Tensor, neg: Tensor, indices: Indices, rows: int) -> Entry:
    a1, _, a2, _ = indices
    margin = loss.distance.margin
    pos_term = log_sums(margin(pos, loss.pos_margin), a1, rows)
    neg_term = log_sums(margin(loss.neg_margin, neg), a2, rows)
    return of_anchors(torch.relu(pos_term + neg_term))


def sup_con(loss: Any, pos: Tensor, neg: Tensor, indices: Indices, rows: int) -> Entry | None:
    """None where there are no positives or no negatives at all."""
    a1, _, a2, _ = indices
    if len(a1) == 0 or len(a2) == 0:
        return None
    sign = 1 if loss.distance.is_inverted else -1
    pos, neg = (sign * d / loss.temperature for d in (pos, neg))
    whole = log_sums(torch.cat((pos, neg)), torch.cat((a1, a2)), rows)
    zeros = torch.zeros_like(whole)
    count = zeros.index_add(0, a1, torch.ones_like(pos))
    total = zeros.index_add(0, a1, whole[a1] - pos)
    return of_anchors(total / count.clamp(min=1))


def circle(loss: Any, pos: Tensor, neg: Tensor, indices: Indices, rows: int) -> Entry:
    a1, _, a2, _ = indices
    pos = -loss.gamma * torch.relu(loss.op - pos.detach()) * (pos - loss.delta_p)
    neg = loss.gamma * torch.relu(neg.detach() - loss.on) * (neg - loss.delta_n)
    both = torch.zeros(2, rows, dtype=torch.bool, device=pos.device)
    both[0, a1] = True
    both[1, a2] = True
    values = F.softplus(log_sums(pos, a1, rows) + log_sums(neg, a2, rows))
    return of_anchors(torch.where(both.all(0), values, 0))


def nt_xent(loss: Any, pos: Tensor, neg: Tensor, indices: Indices, rows: int) -> Entry | None:
    a1, p, a2, _ = indices
    if len(a1) == 0 or len(a2) == 0:
        return None
    sign = 1 if loss.distance.is_inverted else -1
    pos, neg = (sign * d / loss.temperature for d in (pos, neg))
    against = log_sums_or_none(neg, a2, rows)[a1]
    known = against > -torch.inf
    # log(e^pos + e^against) - pos, 0 where the anchor has no negatives.
    terms = F.softplus(torch.where(known, against - pos, 0))
    losses = torch.where(known, terms, torch.zeros_like(pos) * pos)
    return {"losses": losses, "indices": (a1, p), "reduction_type": "pos_pair"}


def lifted(loss: Any, pos: Tensor, neg: Tensor, indices: Indices, rows: int) -> Entry | None:
    """Of a positive pair (a, p) the negatives of the anchors a and p, by row number as in theirs,
    where a reference p stands for the anchor of its number."""
    a1, p, a2, _ = indices
    if len(a1) == 0 or len(a2) == 0:
        return None
    margin = loss.distance.margin
    sums = log_sums_or_none(margin(loss.neg_margin, neg), a2, max(rows, int(p.max()) + 1))
    one, other = sums[a1], torch.where(p == a1, -torch.inf, sums[p])
    some = torch.maximum(one, other) > -torch.inf
    zero = torch.zeros_like(one)
    union = torch.logaddexp(torch.where(some, one, zero), torch.where(some, other, zero))
    violation = torch.where(some, union, zero) + margin(pos, loss.pos_margin)
    losses = torch.relu(violation).square() / 2
    return {"losses": losses, "indices": (a1, p), "reduction_type": "pos_pair"}


def angular(
    loss: Any, x: Tensor, y: Tensor, pairs: Indices, labels: Tensor, ref_labels: Tensor
) -> Entry:
    """Anchors and positives at length 1, negatives as they are: their form of the loss.

    Every positive pair meets all references of other labels, some rows of pairs at a time.
    """
    tan = float(torch.tan(loss.alpha)) ** 2

    def chunk(a: Tensor, p: Tensor) -> Tensor:
        anchors, positives = F.normalize(x[a]), F.normalize(y[p])
        exponents = 4 * tan * (anchors + positives) @ y.T
        exponents = exponents - 2 * (1 + tan) * (anchors * positives).sum(1, keepdim=True)
        same = labels[a][:, None] == ref_labels
        exponents = exponents.masked_fill(same, c_f.neg_inf(exponents.dtype))
        return torch.logsumexp(F.pad(exponents, (0, 1)), 1).masked_fill(same.all(1), 0)

    a, p = pairs
    step = max(1, _CHUNK // max(len(y), 1))
    parts = [
        checkpoint(chunk, i, j, use_reentrant=False, preserve_rng_state=False)
        for i, j in zip(a.split(step), p.split(step), strict=True)
    ]
    return {"losses": torch.cat(parts), "indices": (a, p), "reduction_type": "pos_pair"}


def positive_pairs(
    labels: Tensor, ref_labels: Tensor, skip: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Rows and columns of equal labels, without (i, skip[i]), some rows at a time."""
    step, found = max(1, _CHUNK // max(len(ref_labels), 1)), []
    for start in range(0, len(labels), step):
        rows, columns = torch.where(labels[start : start + step, None] == ref_labels)
        found.append((rows + start, columns))
    if not found:
        return labels.new_empty(0, dtype=torch.int64), labels.new_empty(0, dtype=torch.int64)
    a, p = (torch.cat(part) for part in zip(*found, strict=True))
    if skip is None:
        return a, p
    keep = skip[a] != p
    return a[keep], p[keep]
