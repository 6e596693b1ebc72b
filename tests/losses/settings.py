"""Calls of a GPU backend on CPU tensors under settings of PyTorch that a user may have changed."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch

from dmlap_kernels.backends.device import terms
from tests.losses.cases import make_problem, usual
from tests.losses.compare import run
from tests.losses.losses_table import LOSSES

# Where the newer setting of the precision of products is.
PRECISIONS = ("backends.cuda.matmul", "backends")


def check_precision(setting: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are taken in the precision that PyTorch's newer setting says."""
    owner = operator.attrgetter(setting)(torch)
    if not hasattr(owner, "fp32_precision"):
        pytest.skip("this PyTorch has the older setting alone")
    seen = []
    pack = terms.pack

    def noted(*args: Any) -> Any:
        sides = pack(*args)
        seen.append(sides.precision)
        return sides

    monkeypatch.setattr(terms, "pack", noted)
    problem = make_problem(usual("nt_xent", rows=20, features=8))
    before = owner.fp32_precision
    owner.fp32_precision = "tf32"
    try:
        run(LOSSES["nt_xent"].fused, problem, backend=backend)
    finally:
        owner.fp32_precision = before
    assert set(seen) == {"high"}
