"""The table of losses, and their statistics, on the `cuda` backend with kernels run on the CPU."""

from __future__ import annotations

import pytest
import torch

from dmlap_kernels.backends.cuda import WITHOUT
from tests.losses.cases import Case, make_problem, table
from tests.losses.compare import compare, compare_stats
from tests.losses.losses_table import LOSSES
from tests.triton.selection import selection

# Losses that see more than pairs: their references are slow, and test_classes.py is beside it.
SLOW = (
    "triplet_semihard",
    "triplet_all",
    "triplet_distance_weighted",
    "angular",
    "soft_triple",
)


def cases(loss: str) -> list[Case]:
    """Half of those of the dtypes that the backend serves, or a selection of small ones."""
    if loss in SLOW:
        return selection(loss)
    return [case for case in table(loss) if case.dtype != torch.float64][::2]


SERVED = [loss for loss in LOSSES if loss not in WITHOUT]
CASES = [case for loss in SERVED for case in cases(loss)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_value_and_gradient(case: Case, emulated_backend: str) -> None:
    compare(case.loss, make_problem(case), emulated_backend)


STATISTICS = [case for loss in SERVED for case in cases(loss)[::4]]


@pytest.mark.parametrize("case", STATISTICS, ids=lambda case: case.id)
def test_statistics(case: Case, emulated_backend: str) -> None:
    compare_stats(case.loss, make_problem(case), emulated_backend)
