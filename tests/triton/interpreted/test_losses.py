"""Losses against the float64 reference: a small part of their table, and problems of many tiles."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dmlap_kernels.backends.device.losses import FAMILIES
from tests.losses.cases import Case, make_problem, usual, variants
from tests.losses.compare import compare, compare_stats
from tests.losses.losses_table import LOSSES
from tests.triton.selection import selection

CASES = [case for loss in FAMILIES for case in selection(loss)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_value_and_gradient(case: Case, backend: str) -> None:
    compare(case.loss, make_problem(case), backend)


@pytest.mark.parametrize("case", CASES[::6], ids=lambda case: case.id)
def test_statistics(case: Case, backend: str) -> None:
    compare_stats(case.loss, make_problem(case), backend)


def many_tiles(loss: str) -> list[Case]:
    """More than one split of columns, and chunk of features; no size a multiple of a tile."""
    sides = ("more",) if LOSSES[loss].proxies else ("self", "more")
    ends = variants(loss)
    features = 8 if LOSSES[loss].drawn else 40  # weights of draws vanish in many dimensions
    cases = [replace(usual(loss, rows=49, features=features), refs=refs) for refs in sides]
    return [replace(case, options=ends[i % len(ends)]) for i, case in enumerate(cases)]


@pytest.mark.parametrize(
    "case", [case for loss in FAMILIES for case in many_tiles(loss)], ids=lambda case: case.id
)
def test_many_tiles(case: Case, backend: str) -> None:
    compare(case.loss, make_problem(case), backend)
