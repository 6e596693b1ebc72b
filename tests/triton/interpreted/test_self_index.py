"""`self_index` in the interpreter."""

from __future__ import annotations

import pytest

from tests.losses.cases import Case
from tests.losses.compare import compare, compare_stats
from tests.losses.test_self_index import containing_the_batch, few_cases

CASES = few_cases()
LABELS = pytest.mark.parametrize("labels_agree", [True, False], ids=["same-label", "other-label"])


@LABELS
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_value_and_gradient(case: Case, labels_agree: bool, backend: str) -> None:
    compare(case.loss, containing_the_batch(case, labels_agree), backend)


@LABELS
@pytest.mark.parametrize("case", CASES[::2], ids=lambda case: case.id)
def test_statistics(case: Case, labels_agree: bool, backend: str) -> None:
    compare_stats(case.loss, containing_the_batch(case, labels_agree), backend)
