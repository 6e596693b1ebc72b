"""The table of losses, and their statistics, on the `cuda` backend with kernels run on the CPU."""

from __future__ import annotations

import pytest
import torch

from tests.losses.cases import Case, make_problem, table
from tests.losses.compare import compare, compare_stats
from tests.losses.losses_table import LOSSES


def cases(loss: str) -> list[Case]:
    """Half of those of the dtypes that the backend serves; a quarter where formulas are cubic."""
    served = [case for case in table(loss) if case.dtype != torch.float64]
    return served[:: 4 if LOSSES[loss].max_rows < 100 else 2]


CASES = [case for loss in LOSSES for case in cases(loss)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_value_and_gradient(case: Case, emulated_backend: str) -> None:
    compare(case.loss, make_problem(case), emulated_backend)


STATISTICS = [case for loss in LOSSES for case in cases(loss)[::4]]


@pytest.mark.parametrize("case", STATISTICS, ids=lambda case: case.id)
def test_statistics(case: Case, emulated_backend: str) -> None:
    compare_stats(case.loss, make_problem(case), emulated_backend)
