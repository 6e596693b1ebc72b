"""Statistics of a loss call, by their definitions."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from tests.reference.distances import pair_distances, pair_masks
from tests.reference.losses import first_extreme, mine_hard


def pair_stats(
    loss: str,
    x: Tensor,
    labels: Tensor,
    y: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    distance: str = "euclidean",
    normalize: bool = False,
    **options: float | bool,
) -> SimpleNamespace:
    """The attributes of `dmlap_kernels.PairStats` for "triplet" or "contrastive".

    ``options`` are those of the loss; what has no influence on statistics is ignored.
    """
    refs = x if y is None else y
    names = labels if ref_labels is None else ref_labels
    d = pair_distances(x, refs, distance=distance, normalize=normalize)
    positives, negatives = pair_masks(labels, ref_labels)
    hardest_positive = first_extreme(d, positives, names, largest=True)
    hardest_negative = first_extreme(d, negatives, names, largest=False)
    if loss == "triplet":
        margin = options.get("margin", 0.2)
        triplets = mine_hard(
            x,
            labels,
            y,
            ref_labels,
            swap=bool(options.get("swap", False)),
            distance=distance,
            normalize=normalize,
        )
        hinges = (triplets.d_ap - triplets.d_an + margin).clamp_min(0)[triplets.valid]
        constraints = int(triplets.valid.sum())
        has_positive = hardest_positive >= 0
        thresholds = torch.where(
            has_positive,
            triplets.d_ap + margin if len(refs) else torch.zeros(len(x), dtype=x.dtype),
            torch.full((len(x),), -torch.inf, dtype=x.dtype),
        )
    else:
        pull = (d - options.get("pos_margin", 0.0)).clamp_min(0)[positives]
        neg_margin = options.get("neg_margin", 1.0)
        push = (neg_margin - d).clamp_min(0)[negatives]
        hinges = torch.cat([pull, push])
        constraints = len(hinges)
        thresholds = torch.full((len(x),), float(neg_margin), dtype=x.dtype)
    return SimpleNamespace(
        constraints=constraints,
        violated=int((hinges > 0).sum()),
        violation=hinges.sum(),
        mean_positive_distance=d[positives].mean(),
        mean_negative_distance=d[negatives].mean(),
        hardest_positive=hardest_positive,
        hardest_negative=hardest_negative,
        class_scores=class_scores(d, labels, names, thresholds),
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
