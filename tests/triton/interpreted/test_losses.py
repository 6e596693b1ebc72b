"""Losses against the float64 reference: a small part of their table."""

from __future__ import annotations

import pytest

from dmlap_kernels.backends.device.families import FAMILIES
from tests.losses.cases import Case, make_problem
from tests.losses.compare import compare, compare_stats
from tests.triton.selection import selection

CASES = [case for loss in FAMILIES for case in selection(loss)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_value_and_gradient(case: Case, backend: str) -> None:
    compare(case.loss, make_problem(case), backend)


@pytest.mark.parametrize("case", CASES[::6], ids=lambda case: case.id)
def test_statistics(case: Case, backend: str) -> None:
    compare_stats(case.loss, make_problem(case), backend)
