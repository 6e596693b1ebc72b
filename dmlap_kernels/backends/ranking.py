"""From measured times of backends to the orders that `orders.entries` reads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

# Times as near as this are a tie, which the rule decides.
TIE = 1.05

# Seconds by backend.
Times = dict[str, float]
Shape = tuple[int, int]


def entries(
    by_shape: dict[Shape, Times], rule: Sequence[str], beyond: int | None = None
) -> list[dict[str, Any]]:
    """The order of each shape, of rows and features, for the calls that are nearest to it.

    Limits lie in the middle between shapes, on a logarithmic scale. With ``beyond``, a number of
    rows that was not measured, they end in the middle to it, and the rule serves the rest.
    """
    heights = sorted({rows for rows, _ in by_shape})
    found: list[dict[str, Any]] = []
    for rows, most_rows in zip(heights, limits(heights, beyond), strict=True):
        widths = sorted(features for height, features in by_shape if height == rows)
        for features, most in zip(widths, limits(widths), strict=True):
            bounds = {"rows": most_rows, "features": most}
            order = ranked(by_shape[rows, features], rule)
            found.append({k: v for k, v in bounds.items() if v is not None} | {"order": order})
    return without_repeats(found)


def limits(values: list[int], beyond: int | None = None) -> list[int | None]:
    middles: list[int | None] = [math.isqrt(low * high) for low, high in itertools.pairwise(values)]
    return [*middles, None if beyond is None else math.isqrt(values[-1] * beyond)]


def ranked(seconds: Times, rule: Sequence[str]) -> list[str]:
    """The fastest first, ties by the rule."""
    left = sorted(seconds, key=lambda name: seconds[name])
    found = []
    while left:
        level = [name for name in left if seconds[name] <= TIE * seconds[left[0]]]
        best = min(level, key=lambda name: rule.index(name) if name in rule else len(rule))
        found.append(best)
        left.remove(best)
    return found


def without_repeats(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leaves out entries whose calls the next one serves in the same order."""
    kept: list[dict[str, Any]] = []
    for one in reversed(found):
        if kept and kept[-1]["order"] == one["order"]:
            after = kept[-1]
            if all(after.get(k, math.inf) >= one.get(k, math.inf) for k in ("rows", "features")):
                continue
        kept.append(one)
    return kept[::-1]
