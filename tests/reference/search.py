"""Brute-force nearest neighbours and hardest classes."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.reference.distances import pair_distances
from tests.reference.stats import class_scores


def nearest(
    queries: Tensor,
    references: Tensor | None = None,
    k: int = 1,
    *,
    distance: str = "euclidean",
    normalize: bool = False,
) -> tuple[Tensor, Tensor]:
    """Distances and indices (Q, k), ascending, ties to the lower index; never a row itself."""
    refs = queries if references is None else references
    d = pair_distances(queries, refs, distance=distance, normalize=normalize)
    if references is None:
        d = d + torch.diag(torch.full((len(queries),), torch.inf, dtype=d.dtype))
    values, indices = torch.sort(d, dim=1, stable=True)
    return values[:, :k], indices[:, :k]


def hard_classes(
    representatives: Tensor,
    labels: Tensor,
    k: int,
    *,
    margin: float = 1.0,
    distance: str = "euclidean",
    normalize: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Classes, and for each its k hardest others: labels, scores, smallest distances.

    Hardest: largest mean violation, then smallest distance, then lower label.
    """
    d = pair_distances(representatives, representatives, distance=distance, normalize=normalize)
    scores = class_scores(d, labels, labels, torch.full((len(labels),), margin, dtype=d.dtype))
    classes = scores.classes.tolist()
    violation, closest = scores.mean_violation.tolist(), scores.min_distance.tolist()
    order = []
    for row, _ in enumerate(classes):
        others = [j for j in range(len(classes)) if j != row]
        others.sort(key=lambda j, row=row: (-violation[row][j], closest[row][j], classes[j]))
        order.append(others[:k])
    picked = torch.tensor(order, dtype=torch.int64)
    return (
        scores.classes,
        scores.classes[picked],
        scores.mean_violation.gather(1, picked),
        scores.min_distance.gather(1, picked),
    )
