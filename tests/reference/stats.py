"""Statistics of a loss call, by their definitions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.reference.losses import pairs_and_terms


def pair_stats(
    name: str,
    x: Tensor,
    labels: Tensor,
    y: Tensor | None = None,
    ref_labels: Tensor | None = None,
    **options: Any,
) -> SimpleNamespace:
    """The attributes of `dmlap_kernels.PairStats`; beside them the matrix ``d`` and every term."""
    pairs, terms = pairs_and_terms(name, x, labels, y, ref_labels, **options)
    violations = torch.cat([group.violations().flatten() for group in terms.groups])
    thresholds = pairs.farthest() if terms.thresholds is None else terms.thresholds
    return SimpleNamespace(
        constraints=sum(int(group.counted.sum()) for group in terms.groups),
        violated=int((violations > 0).sum()),
        violation=violations.sum(),
        mean_positive_distance=pairs.d[pairs.positives].mean(),
        mean_negative_distance=pairs.d[pairs.negatives].mean(),
        hardest_positive=pairs.hardest_positive(),
        hardest_negative=pairs.hardest_negative(),
        class_scores=class_scores(pairs.d, pairs.labels, pairs.ref_labels, thresholds),
        d=pairs.d,
        violations=violations,
    )


def class_scores(
    d: Tensor, labels: Tensor, ref_labels: Tensor, thresholds: Tensor
) -> SimpleNamespace:
    """Mean of [threshold_i - d_ij]+ and smallest d_ij for each two different classes."""
    classes, ref_classes = torch.unique(labels), torch.unique(ref_labels)
    rows = [labels == c for c in classes]
    columns = [ref_labels == c for c in ref_classes]
    violations = (thresholds[:, None] - d).clamp_min(0)
    mean_violation = torch.zeros(len(classes), len(ref_classes), dtype=d.dtype)
    min_distance = torch.full_like(mean_violation, torch.inf)
    if len(classes) and len(ref_classes):
        means = torch.stack([violations[members].mean(0) for members in rows])
        mean_violation = torch.stack([means[:, members].mean(1) for members in columns], 1)
        smallest = torch.stack([d[members].amin(0) for members in rows])
        min_distance = torch.stack([smallest[:, members].amin(1) for members in columns], 1)
        same = classes[:, None] == ref_classes
        mean_violation = mean_violation.masked_fill(same, 0.0)
        min_distance = min_distance.masked_fill(same, torch.inf)
    return SimpleNamespace(
        classes=classes.long(),
        ref_classes=ref_classes.long(),
        mean_violation=mean_violation,
        min_distance=min_distance,
    )
