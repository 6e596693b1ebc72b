"""Small cases out of the table of a loss, in which every level of every factor occurs."""

from __future__ import annotations

from typing import Any

import torch

from tests.losses.cases import Case, table

_FACTORS = ("refs", "pattern", "distance", "normalize", "reduction", "dtype", "layout")


def selection(loss: str, rows: int = 33, features: int = 17) -> list[Case]:
    """Greedily the fewest cases of float32 and the half types, no larger than this."""
    cases = [c for c in table(loss) if c.rows <= rows and c.features <= features]
    left = [c for c in cases if c.dtype != torch.float64]
    missing = set().union(*map(_levels, left))
    chosen = []
    while missing:
        best = max(left, key=lambda case: len(missing & _levels(case)))
        missing -= _levels(best)
        chosen.append(best)
    return chosen


def _levels(case: Case) -> set[tuple[str, Any]]:
    """Options count together with the side and the distance that they meet."""
    levels = {(name, getattr(case, name)) for name in _FACTORS}
    return levels | {(*option, case.refs == "self") for option in case.options}
