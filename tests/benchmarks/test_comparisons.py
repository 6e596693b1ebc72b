"""Candidates of a comparison are held against each other before they are timed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.comparisons import check

pytestmark = pytest.mark.any_torch

Step = Callable[[], tuple[Tensor, ...]]


def step(value: float) -> Step:
    return lambda: (torch.tensor(value), torch.full((3,), value))


@pytest.mark.parametrize("held", ["eager", "library"])
def test_who_differs_is_named(held: str) -> None:
    """By eager code, or where that is left out by those that are there; G makes something else."""
    product: Step = lambda: (torch.zeros(1),)  # noqa: E731
    found = check("sup-con", {"G": product, "ours": step(1.0), held: step(1.0)})
    assert set(found) == {"G", "ours", held}
    with pytest.raises(AssertionError, match="sup-con, .* is .* off"):
        check("sup-con", {"G": product, "ours": step(1.0), held: step(1.1)})


def test_ours_alone_is_held_against_nothing() -> None:
    assert set(check("sup-con", {"ours": step(1.0)})) == {"ours"}
