"""The `torch` backend: plain PyTorch over blocks of anchors, in bounded memory, on any device.

The value of a block comes from ordinary tensor code; its gradient from autograd over the same code,
run again in backward. It is the slow backend and the one with the fewest assumptions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels.problem import (
    ClassScores,
    Forward,
    Gradients,
    HardClasses,
    Nearest,
    PairProblem,
    PairSpec,
    PairStats,
    compute_dtype,
)

# About a dozen (block, N) tensors live at once; this bounds one of them.
_BLOCK_BYTES = 4 << 20


class _Rows(NamedTuple):
    """References in label order, ready for distances: `rows` (N, D), `labels`, `order` (N,)."""

    rows: Tensor
    labels: Tensor
    order: Tensor


class _Block(NamedTuple):
    """A block of anchors against all references, tensors of shape (b, N) in label order."""

    d: Tensor
    positive: Tensor
    negative: Tensor
    between_refs: Callable[[Tensor, Tensor], Tensor]


class _Group(NamedTuple):
    """One group of terms: per anchor its sum, the number of terms, of positive ones."""

    total: Tensor
    terms: Tensor
    nonzero: Tensor


class _Terms(NamedTuple):
    """What a policy makes of a block; `threshold` (b, 1) bounds each anchor's negatives."""

    groups: tuple[_Group, ...]
    violated: Tensor
    violation: Tensor
    threshold: Tensor


def _distances(x: Tensor, y: Tensor, distance: str) -> Tensor:
    if distance == "cosine":
        return 1 - x @ y.T
    # Not through a matrix product: its cancellation for near pairs is what a fallback must not add.
    d = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return d if distance == "euclidean" else d.square()


def _row_distances(p: Tensor, n: Tensor, distance: str) -> Tensor:
    if distance == "cosine":
        return 1 - (p * n).sum(1)
    squared = (p - n).square().sum(1)
    if distance == "sqeuclidean":
        return squared
    return torch.where(squared > 0, squared, 1).sqrt().where(squared > 0, squared)


def _triplet_hard(spec: PairSpec, block: _Block) -> _Terms:
    margin, smooth, swap = spec.params
    d, positive, negative, between_refs = block
    p = d.masked_fill(~positive, -torch.inf).argmax(1)
    n = d.masked_fill(~negative, torch.inf).argmin(1)
    d_ap = d.gather(1, p[:, None]).squeeze(1)
    d_an = d.gather(1, n[:, None]).squeeze(1)
    if swap:
        d_an = torch.minimum(d_an, between_refs(p, n))
    has_positive = positive.any(1)
    valid = has_positive & negative.any(1)
    hinge = (d_ap - d_an + margin).relu()
    term = F.softplus(d_ap - d_an + margin) if smooth else hinge
    term = torch.where(valid, term, 0)
    violation = torch.where(valid, hinge, 0)
    threshold = torch.where(has_positive, d_ap + margin, -torch.inf)
    group = _Group(term, valid, term > 0)
    return _Terms((group,), (violation > 0).sum(), violation.sum(), threshold[:, None])


def _contrastive(spec: PairSpec, block: _Block) -> _Terms:
    pos_margin, neg_margin, squared = spec.params
    groups, violation = [], block.d.new_zeros(())
    violated = torch.zeros((), dtype=torch.int64, device=block.d.device)
    for pairs, hinge in (
        (block.positive, (block.d - pos_margin).relu()),
        (block.negative, (neg_margin - block.d).relu()),
    ):
        hinge = torch.where(pairs, hinge, 0)
        nonzero = (hinge > 0).sum(1)
        terms = hinge.square() if squared else hinge
        groups.append(_Group(terms.sum(1), pairs.sum(1), nonzero))
        violation = violation + hinge.sum()
        violated = violated + nonzero.sum()
    threshold = block.d.new_full((block.d.shape[0], 1), neg_margin)
    return _Terms(tuple(groups), violated, violation, threshold)


_POLICIES: dict[str, Callable[[PairSpec, _Block], _Terms]] = {
    "triplet_hard": _triplet_hard,
    "contrastive": _contrastive,
}
_GROUPS = {"triplet_hard": 1, "contrastive": 2}


def _ready(rows: Tensor, unit: bool) -> Tensor:
    rows = rows.detach().to(compute_dtype(rows.dtype))
    return F.normalize(rows, eps=1e-12) if unit else rows


def _in_label_order(rows: Tensor, labels: Tensor) -> _Rows:
    order = torch.argsort(labels, stable=True)
    return _Rows(rows[order], labels[order], order)


def _anchor_blocks(anchors: int, refs: int, itemsize: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // max(1, refs * itemsize))
    for start in range(0, anchors, step):
        yield slice(start, min(start + step, anchors))


def _block(
    spec: PairSpec, x: Tensor, labels: Tensor, at: slice, refs: _Rows, self_case: bool
) -> _Block:
    positive = labels[at, None] == refs.labels
    negative = ~positive
    if self_case:
        index = torch.arange(at.start, at.stop, device=x.device)
        positive &= index[:, None] != refs.order
    return _Block(
        _distances(x, refs.rows, spec.distance),
        positive,
        negative,
        lambda p, n: _row_distances(refs.rows[p], refs.rows[n], spec.distance),
    )


class TorchBackend:
    """Chunked plain PyTorch."""

    name = "torch"

    def unavailable(self) -> str | None:
        return None

    def refuses(self, spec: PairSpec | None, device_type: str, dtype: torch.dtype) -> str | None:
        if spec is not None and spec.loss not in _POLICIES:
            return f"it has no policy {spec.loss!r}"
        return None

    def saved_like(self, spec: PairSpec, problem: PairProblem) -> Tensor:
        groups = _GROUPS[spec.loss] if problem.num_refs and problem.x.shape[0] else 1
        real = compute_dtype(problem.x.dtype)
        return problem.x.new_empty((problem.x.shape[0], groups), dtype=real)

    def forward(self, spec: PairSpec, problem: PairProblem, stats: bool, scores: bool) -> Forward:
        x = _ready(problem.x, spec.unit_rows)
        y, y_labels = problem.ref_side
        y = x if problem.y is None else _ready(y, spec.unit_rows)
        poison = x.mul(0).sum() + y.mul(0).sum()
        refs = _in_label_order(y, y_labels)
        summary = _StatsSummary(problem, refs, scores, x) if stats or scores else None
        sums = _GroupSums(x, self.saved_like(spec, problem).shape[1])
        if y.shape[0]:
            for at in _anchor_blocks(x.shape[0], y.shape[0], x.element_size()):
                block = _block(spec, x[at], problem.labels, at, refs, problem.y is None)
                terms = _POLICIES[spec.loss](spec, block)
                sums.add(at, terms)
                if summary is not None:
                    summary.add(at, block, terms)
        loss, weights = sums.reduce(spec.reduction)
        loss = loss + poison
        return Forward(loss, weights, summary.result(sums) if summary else None)

    def backward(
        self, spec: PairSpec, problem: PairProblem, saved: Tensor, grad: Tensor
    ) -> Gradients:
        weights = saved
        x = _ready(problem.x, spec.unit_rows)
        self_case = problem.y is None
        y, y_labels = problem.ref_side
        y = x if self_case else _ready(y, spec.unit_rows)
        refs = _in_label_order(y, y_labels)
        gx, gy = torch.zeros_like(x), torch.zeros_like(y)
        for at in _anchor_blocks(x.shape[0], y.shape[0], x.element_size()) if y.shape[0] else ():
            with torch.enable_grad():
                xb = x[at].requires_grad_()
                yb = refs.rows.detach().requires_grad_()
                block = _block(
                    spec, xb, problem.labels, at, refs._replace(rows=yb), problem.y is None
                )
                groups = _POLICIES[spec.loss](spec, block).groups
                scaled = (weights[at] * grad.reshape(-1, 1)[at if grad.ndim else slice(None)]).T
                value = sum((w * g.total).sum() for w, g in zip(scaled, groups, strict=True))
                gxb, gyb = torch.autograd.grad(value, (xb, yb))
            gx[at] += gxb
            gy.index_add_(0, refs.order, gyb)
        poison = x.mul(0).sum() + y.mul(0).sum()
        if self_case:
            return Gradients(_through_rows(problem.x, gx + gy + poison, spec.unit_rows), None)
        assert problem.y is not None
        return Gradients(
            _through_rows(problem.x, gx + poison, spec.unit_rows),
            _through_rows(problem.y, gy + poison, spec.unit_rows),
        )

    def nearest(
        self, queries: Tensor, refs: Tensor | None, k: int, distance: str, normalize: bool
    ) -> Nearest:
        unit = normalize or distance == "cosine"
        q = _ready(queries, unit)
        r = q if refs is None else _ready(refs, unit)
        out_d, out_i = [q.new_empty(0, k)], [torch.empty(0, k, dtype=torch.int64, device=q.device)]
        for at in _anchor_blocks(q.shape[0], r.shape[0], q.element_size()):
            d = _distances(q[at], r, distance)
            if refs is None:
                rows = torch.arange(at.stop - at.start, device=q.device)
                d[rows, rows + at.start] = torch.inf
            values, order = torch.sort(d, dim=1, stable=True)
            out_d.append(values[:, :k])
            out_i.append(order[:, :k])
        return Nearest(torch.cat(out_d), torch.cat(out_i))

    def hard_classes(
        self, rows: Tensor, labels: Tensor, k: int, margin: float, distance: str, normalize: bool
    ) -> HardClasses:
        refs = _in_label_order(_ready(rows, normalize or distance == "cosine"), labels)
        classes, ids, sizes = torch.unique_consecutive(
            refs.labels, return_inverse=True, return_counts=True
        )
        ends = sizes.cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        scores, distances, order = [], [], []
        for c, (start, end) in enumerate(zip(starts, ends, strict=True)):
            total, smallest = rows.new_zeros(len(classes), dtype=torch.float64), None
            for at in _anchor_blocks(end - start, len(ids), refs.rows.element_size()):
                d = _distances(refs.rows[start + at.start : start + at.stop], refs.rows, distance)
                total.index_add_(0, ids, (margin - d).relu().double().sum(0))
                low = d.new_full((len(classes),), torch.inf)
                low.scatter_reduce_(0, ids, d.amin(0), "amin")
                smallest = low if smallest is None else torch.minimum(smallest, low)
            assert smallest is not None
            mean = (total / (sizes * (end - start))).to(smallest.dtype)
            mean[c], smallest[c] = -1, torch.inf
            by_distance = torch.sort(smallest, stable=True).indices
            best = by_distance[torch.sort(mean[by_distance], descending=True, stable=True).indices]
            order.append(best[:k])
            scores.append(mean[best[:k]])
            distances.append(smallest[best[:k]])
        return HardClasses(
            classes, classes[torch.stack(order)], torch.stack(scores), torch.stack(distances)
        )


class _GroupSums:
    """The terms' sums of every anchor. Filled in place: small tensors kept between the large ones
    of successive blocks would leave the allocator with holes of no use."""

    def __init__(self, x: Tensor, groups: int) -> None:
        shape = (x.shape[0], groups)
        self.total = x.new_zeros(shape)
        self.count = torch.zeros(shape, dtype=torch.int64, device=x.device)
        self.nonzero = torch.zeros_like(self.count)
        self.violated = self.count.new_zeros(())
        self.violation = x.new_zeros((), dtype=torch.float64)

    def add(self, at: slice, terms: _Terms) -> None:
        for g, group in enumerate(terms.groups):
            self.total[at, g] = group.total
            self.count[at, g] = group.terms.long()
            self.nonzero[at, g] = group.nonzero.long()
        self.violated += terms.violated
        self.violation += terms.violation

    def reduce(self, reduction: str) -> tuple[Tensor, Tensor]:
        """The loss, and the weight (B, groups) of each anchor's sum in it."""
        real = self.total.dtype
        if reduction == "none":
            weights = 1 / self.count.clamp(min=1).to(real)
            return (self.total * weights).sum(1), weights
        if reduction == "sum":
            weights = torch.ones_like(self.total)
        else:
            terms = self.count if reduction == "mean" else self.nonzero
            weights = (1 / terms.sum(0).clamp(min=1).to(real)).expand_as(self.total).contiguous()
        return (self.total.double() * weights.double()).sum().to(real), weights


def _through_rows(rows: Tensor, grad: Tensor, unit: bool) -> Tensor:
    """The gradient at the raw rows, given the gradient at the rows that distances saw."""
    if unit:
        with torch.enable_grad():
            raw = rows.detach().to(grad.dtype).requires_grad_()
            (grad,) = torch.autograd.grad(F.normalize(raw, eps=1e-12), raw, grad)
    return grad.to(rows.dtype)


class _StatsSummary:
    """Gathers `PairStats` block by block."""

    def __init__(self, problem: PairProblem, refs: _Rows, scores: bool, like: Tensor) -> None:
        self.refs = refs
        self.like = like
        self.sums = like.new_zeros(2, dtype=torch.float64)
        self.counts = torch.zeros(2, dtype=torch.int64, device=like.device)
        self.hardest = torch.full((2, like.shape[0]), -1, dtype=torch.int64, device=like.device)
        self.scores: ClassScores | None = None
        if scores:
            classes, self.anchor_class = torch.unique(problem.labels, return_inverse=True)
            ref_classes, self.ref_class = torch.unique(refs.labels, return_inverse=True)
            shape = (len(classes), len(ref_classes))
            self.scores = ClassScores(
                classes, ref_classes, like.new_zeros(shape), like.new_full(shape, torch.inf)
            )

    def add(self, at: slice, block: _Block, terms: _Terms) -> None:
        sides = (
            (block.positive, torch.Tensor.argmax, -torch.inf),
            (block.negative, torch.Tensor.argmin, torch.inf),
        )
        for side, (pairs, pick, empty) in enumerate(sides):
            self.sums[side] += torch.where(pairs, block.d, 0).sum(dtype=torch.float64)
            self.counts[side] += pairs.sum()
            best = self.refs.order[pick(block.d.masked_fill(~pairs, empty), 1)]
            self.hardest[side, at] = torch.where(pairs.any(1), best, -1)
        if self.scores is not None:
            self._add_scores(at, block, terms, self.scores)

    def _add_scores(self, at: slice, block: _Block, terms: _Terms, scores: ClassScores) -> None:
        violation = torch.where(block.negative, (terms.threshold - block.d).relu(), 0)
        by_class = violation.new_zeros(len(violation), len(scores.ref_classes))
        by_class.index_add_(1, self.ref_class, violation)
        scores.mean_violation.index_add_(0, self.anchor_class[at], by_class)
        low = torch.full_like(by_class, torch.inf)
        columns = self.ref_class.expand_as(violation)
        low.scatter_reduce_(1, columns, block.d.masked_fill(~block.negative, torch.inf), "amin")
        rows = self.anchor_class[at, None].expand_as(low)
        scores.min_distance.scatter_reduce_(0, rows, low, "amin")

    def result(self, sums: _GroupSums) -> PairStats:
        means = (self.sums / self.counts).to(self.like.dtype)
        scores = self.scores
        if scores is not None:
            pairs = torch.outer(torch.bincount(self.anchor_class), torch.bincount(self.ref_class))
            scores.mean_violation.div_(pairs)
        return PairStats(
            constraints=sums.count.sum(),
            violated=sums.violated,
            violation=sums.violation.to(self.like.dtype),
            mean_positive_distance=means[0],
            mean_negative_distance=means[1],
            hardest_positive=self.hardest[0],
            hardest_negative=self.hardest[1],
            class_scores=scores,
        )
