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
        class_scores=class_scores(
            pairs.d, pairs.labels, pairs.ref_labels, thresholds, pairs.positives | pairs.negatives
        ),
        d=pairs.d,
        violations=violations,
    )


def class_scores(
    d: Tensor,
    labels: Tensor,
    ref_labels: Tensor,
    thresholds: Tensor,
    exists: Tensor | None = None,
) -> SimpleNamespace:
    """Mean of [threshold_i - d_ij]+ and smallest d_ij for each two different classes.

    Over the pairs that exist: all, unless a mask says otherwise.
    """
    classes, ref_classes = torch.unique(labels), torch.unique(ref_labels)
    rows = [labels == c for c in classes]
    columns = [ref_labels == c for c in ref_classes]
    exists = torch.ones_like(d, dtype=torch.bool) if exists is None else exists
    violations = torch.where(exists, (thresholds[:, None] - d).clamp_min(0), 0)
    d = torch.where(exists, d, torch.inf)
    mean_violation = torch.zeros(len(classes), len(ref_classes), dtype=d.dtype)
    min_distance = torch.full_like(mean_violation, torch.inf)
    if len(classes) and len(ref_classes):
        sums = torch.stack([violations[members].sum(0) for members in rows])
        sums = torch.stack([sums[:, members].sum(1) for members in columns], 1)
        counts = torch.stack([exists[members].sum(0) for members in rows])
        counts = torch.stack([counts[:, members].sum(1) for members in columns], 1)
        mean_violation = sums / counts.clamp_min(1)
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
