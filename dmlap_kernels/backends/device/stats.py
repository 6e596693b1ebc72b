"""`PairStats` from what the sweeps found."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides, pack
from dmlap_kernels.backends.device.sweeps import Sweeps
from dmlap_kernels.backends.device.terms import Call, Found, filled, rows_at
from dmlap_kernels.problem import ClassScores, PairProblem, PairSpec, PairStats


def pair_stats(call: Call, found: Found, problem: PairProblem, scores: bool) -> PairStats:
    """The statistics of a call whose extremes come with sums."""
    sides, extremes = call.sides, call.extremes
    assert extremes.positive_sum is not None and extremes.negative_sum is not None
    positive = extremes.positive_sum.double().sum() / call.positives.sum()
    negative = extremes.negative_sum.double().sum() / call.negatives.sum()
    constraints, violated, violation = found.statistics()
    real = sides.x.dtype
    classes = None
    if scores:
        bounds = thresholds(call.spec, call.anchor_params, extremes.positive)
        classes = _class_scores(call, problem, bounds)
    return PairStats(
        constraints=constraints.sum().long(),
        violated=violated.sum().long(),
        violation=violation.sum(dtype=torch.float64).to(real),
        mean_positive_distance=positive.to(real),
        mean_negative_distance=negative.to(real),
        hardest_positive=_original(call, extremes.positive_column),
        hardest_negative=_original(call, extremes.negative_column),
        class_scores=classes,
    )


def _original(call: Call, columns: Tensor) -> Tensor:
    """Columns (B,) as indices of the caller's references, in the order of its anchors."""
    if not call.sides.in_label_order:
        return columns.long()
    indices = torch.where(columns >= 0, rows_at(call.sides.order_y, columns), -1)
    return call.sides.to_caller(indices)


def thresholds(spec: PairSpec, anchor_params: Tensor | None, hardest: Tensor) -> Tensor:
    """The bound (B,) of each anchor's negatives in the scores of classes; ``hardest`` is the
    distance (B,) of its farthest positive."""
    loss, params = spec.loss, spec.params
    if loss == "contrastive":
        return filled(hardest, params[1])
    if loss == "margin":
        assert anchor_params is not None
        return anchor_params + params[0]
    return hardest + params[0] if loss.startswith("triplet") else hardest


def _class_scores(call: Call, problem: PairProblem, bounds: Tensor) -> ClassScores:
    if call.sides.in_label_order:
        return class_scores(call.sweeps, call.sides, problem, bounds)
    sides = pack(call.spec, problem)
    return class_scores(call.sweeps, sides, problem, sides.from_caller(bounds))


def class_scores(sweeps: Sweeps, sides: Sides, problem: PairProblem, bounds: Tensor) -> ClassScores:
    """Of sides in label order, as are the ``bounds`` (B,) of the anchors' negatives. How many
    classes there are depends on the data: this waits for the device."""
    labels, ref_labels = problem.labels[sides.order_x], problem.ref_side[1][sides.order_y]
    classes, of_x, sizes = _classes(labels)
    ref_classes, of_y, ref_sizes = _classes(ref_labels)
    shape = len(classes), len(ref_classes)
    if 0 in shape:
        empty = sides.x.new_zeros(shape)
        return ClassScores(classes, ref_classes, empty, torch.full_like(empty, torch.inf))
    ends = sizes.cumsum(0), ref_sizes.cumsum(0)
    sums, smallest = sweeps.class_scores(sides, bounds, *ends)
    pairs = torch.outer(sizes, ref_sizes)
    if sides.itself is not None:
        named = sides.itself >= 0
        at = of_x * len(ref_classes) + rows_at(of_y, sides.itself)
        pairs.view(-1).index_add_(0, at, -named.long())
        pairs.clamp_(min=1)
    return ClassScores(classes, ref_classes, sums / pairs, smallest)


def _classes(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The classes of ascending labels, that of each row, and how many rows each has."""
    return torch.unique_consecutive(labels, return_inverse=True, return_counts=True)
