"""Problems of many tiles: sizes that are no multiples of them, splits of columns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dmlap_kernels.backends.device.families import FAMILIES
from tests.losses.cases import Case, make_problem, usual, variants
from tests.losses.compare import compare
from tests.losses.losses_table import LOSSES

# Losses whose gradient goes through both launches, in more than one chunk of features.
WIDE = ("margin", "nt_xent")


def many_tiles(loss: str) -> list[Case]:
    sides = ("more",) if LOSSES[loss].proxies else ("self", "more")
    ends = variants(loss)
    features = 40 if loss in WIDE else 8
    cases = [replace(usual(loss, rows=49, features=features), refs=refs) for refs in sides]
    return [replace(case, options=ends[i % len(ends)]) for i, case in enumerate(cases)]


@pytest.mark.parametrize(
    "case", [case for loss in FAMILIES for case in many_tiles(loss)], ids=lambda case: case.id
)
def test_many_tiles(case: Case, backend: str) -> None:
    compare(case.loss, make_problem(case), backend)
