"""The formulas of every loss, statistic and search in plain PyTorch.

They are written for the eye, not for speed: explicit differences, whole matrices, no kernel. Run in
float64 they are the truth that backends are compared with; run in float32 they are the "eager
PyTorch" whose error sets the bar.
"""

from __future__ import annotations

from tests.reference.distances import normalize_rows, pair_distances, pair_masks
from tests.reference.losses import FORMULAS, loss, pairs_and_terms
from tests.reference.search import hard_classes, nearest
from tests.reference.stats import class_scores, pair_stats

__all__ = [
    "FORMULAS",
    "class_scores",
    "hard_classes",
    "loss",
    "nearest",
    "normalize_rows",
    "pair_distances",
    "pair_masks",
    "pair_stats",
    "pairs_and_terms",
]
