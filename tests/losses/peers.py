"""What the comparisons with other libraries share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.losses.cases import Problem
from tests.losses.compare import run
from tests.losses.losses_table import LOSSES


@pytest.fixture(params=("reference", "torch", "cpu"))
def candidate(request: pytest.FixtureRequest) -> str:
    """Who is compared with the peer: the reference formula or a backend."""
    if request.param == "cpu":
        request.getfixturevalue("native")
    return request.param


def draw(refs: bool, rows: int = 36, features: int = 6, unit: bool = False, **own: Any) -> Problem:
    """Seven classes; in one of them a single row."""
    g = torch.Generator().manual_seed(rows + features)
    count = rows + (rows + 5 if refs else 0)
    x = torch.randn(count, features, generator=g, dtype=torch.float64)
    x = torch.nn.functional.normalize(x) if unit else x
    labels = torch.randint(0, 6, (count,), generator=g)
    labels[4] = 6
    if not refs:
        return Problem(x, labels, None, None, own)
    return Problem(x[:rows], labels[:rows], x[rows:], labels[rows:], own)


def result_of(candidate: str, loss: str, problem: Problem) -> list[Tensor]:
    row = LOSSES[loss]
    if candidate == "reference":
        value, grads = run(row.reference, problem)
    else:
        value, grads = run(row.fused, problem, backend=candidate)
    return [value, *grads]
