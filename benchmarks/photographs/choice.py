"""Which trial is the best: by the mean of its four folds."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from benchmarks.photographs.settings import FOLDS, KEPT_TRIALS, parts

Entries = list[dict[str, Any]]
# What is chosen by.
METRIC = "map@r"


def equal_effort(search: Entries, amount: int) -> Entries:
    """Of the first ``amount`` trials those that every loss, batch and method of ``search`` has."""
    made: dict[tuple[str, str], set[int]] = {}
    for entry in search:
        made.setdefault((entry["loss"], entry["method"]), set()).add(parts(entry)[3])
    shared = set(range(amount)).intersection(*made.values())
    return [entry for entry in search if parts(entry)[3] in shared]


def best_trials(search: Entries) -> Entries:
    """The best `KEPT_TRIALS` on the first fold, for every loss, batch and method."""
    groups: dict[tuple[str, str], Entries] = {}
    for entry in search:
        groups.setdefault((entry["loss"], entry["method"]), []).append(entry)
    return [
        entry
        for group in groups.values()
        for entry in sorted(group, key=lambda e: -e[METRIC])[:KEPT_TRIALS]
    ]


def chosen(search: Entries, folds: Entries) -> dict[tuple[str, str], dict[str, Any]]:
    """The trial with the best mean of all folds: its line on the first, with the means.

    Trials that were not made on all folds are left out.
    """
    others: dict[tuple[str, str, str, int], Entries] = {}
    for entry in folds:
        others.setdefault(parts(entry), []).append(entry)
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in search:
        made = [entry, *others.get(parts(entry), [])]
        if len(made) < len(FOLDS):
            continue
        means = {name: fmean(e[name] for e in made) for name in ("recall@1", "map@r")}
        key = entry["loss"], entry["method"]
        if key not in best or means[METRIC] > best[key][METRIC]:
            best[key] = {**entry, **means}
    return best
