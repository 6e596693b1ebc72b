"""Learning rates as a pure function of the step."""

from __future__ import annotations

import math


def one_cycle(step: int, total: int, peak: float) -> float:
    """Learning rate of ``step``: cosine up from peak / 25 over 30 % of the steps, then down to 0.

    (L. N. Smith, arXiv 1708.07120, with cosines.)
    """
    rise = 0.3 * total
    if step < rise:
        low, progress = peak / 25, step / rise
    else:
        low, progress = 0.0, 1 - (step - rise) / (total - rise)
    return low + (peak - low) * (1 - math.cos(math.pi * progress)) / 2
