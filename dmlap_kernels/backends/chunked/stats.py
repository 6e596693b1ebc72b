"""`PairStats`, gathered block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels.backends.chunked.blocks import Block, References
from dmlap_kernels.backends.chunked.terms import GroupSums
from dmlap_kernels.problem import ClassScores, PairProblem, PairSpec, PairStats


def thresholds(spec: PairSpec, block: Block) -> Tensor:
    """The bound (b, 1) of each anchor's negatives in the scores of classes."""
    if spec.loss == "contrastive":
        return block.d.new_zeros((len(block.d), 1)) + spec.params[1]
    if spec.loss == "margin":
        assert block.anchor_params is not None
        return block.anchor_params[:, None] + spec.params[0]
    hardest = block.d.masked_fill(~block.positive, -torch.inf).amax(1, keepdim=True)
    return hardest + spec.params[0] if spec.loss.startswith("triplet") else hardest


class StatsSummary:
    """Gathers `PairStats` block by block."""

    def __init__(
        self, spec: PairSpec, problem: PairProblem, refs: References, scores: bool, like: Tensor
    ) -> None:
        self.spec = spec
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
            self.pairs = torch.zeros(shape, dtype=torch.int64, device=like.device)

    def add(self, at: slice, block: Block) -> None:
        sides = (
            (block.positive, torch.Tensor.argmax, -torch.inf),
            (block.negative, torch.Tensor.argmin, torch.inf),
        )
        for side, (pairs, pick, empty) in enumerate(sides):
            self.sums[side] += torch.where(pairs, block.d, 0).sum(dtype=torch.float64)
            self.counts[side] += pairs.sum()
            best = block.refs.order[pick(block.d.masked_fill(~pairs, empty), 1)]
            self.hardest[side, at] = torch.where(pairs.any(1), best, -1)
        if self.scores is not None and self.scores.ref_classes.numel():
            self._add_scores(at, block, self.scores)

    def _add_scores(self, at: slice, block: Block, scores: ClassScores) -> None:
        threshold = thresholds(self.spec, block)
        violation = torch.where(block.negative, (threshold - block.d).relu(), 0)
        by_class = violation.new_zeros(len(violation), len(scores.ref_classes))
        by_class.index_add_(1, self.ref_class, violation)
        scores.mean_violation.index_add_(0, self.anchor_class[at], by_class)
        pairs = self.pairs.new_zeros(by_class.shape).index_add_(
            1, self.ref_class, block.negative.long()
        )
        self.pairs.index_add_(0, self.anchor_class[at], pairs)
        low = torch.full_like(by_class, torch.inf)
        columns = self.ref_class.expand_as(violation)
        low.scatter_reduce_(1, columns, block.d.masked_fill(~block.negative, torch.inf), "amin")
        rows = self.anchor_class[at, None].expand_as(low)
        scores.min_distance.scatter_reduce_(0, rows, low, "amin")

    def result(self, sums: GroupSums) -> PairStats:
        means = (self.sums / self.counts).to(self.like.dtype)
        scores = self.scores
        if scores is not None:
            scores.mean_violation.div_(self.pairs.clamp(min=1))
        return PairStats(
            constraints=sums.constraints,
            violated=sums.violated,
            violation=sums.violation.to(self.like.dtype),
            mean_positive_distance=means[0],
            mean_negative_distance=means[1],
            hardest_positive=self.hardest[0],
            hardest_negative=self.hardest[1],
            class_scores=scores,
        )
