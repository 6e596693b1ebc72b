"""How the GPU backends reduce terms: plain PyTorch, which runs anywhere."""

from __future__ import annotations

import pytest
import torch

from dmlap_kernels.backends.device.terms import anchor_group, reduce

TERMS = torch.tensor([2.0, -3.0, 0.0, 5.0, -1.0])
COUNTED = torch.tensor([True, True, True, True, False])


@pytest.mark.parametrize(
    ("reduction", "value", "weights"),
    [
        ("sum", 4.0, [1, 1, 1, 1, 1]),
        ("mean", 1.0, [0.25] * 5),
        # Of the terms that are > 0, and of none else.
        ("mean_nonzero", 3.5, [0.5, 0, 0, 0.5, 0]),
    ],
)
def test_terms_that_are_not_positive(reduction: str, value: float, weights: list[float]) -> None:
    loss, found = reduce((anchor_group(TERMS, COUNTED),), reduction)
    assert loss == value
    assert found[0].tolist() == weights


def test_no_positive_term() -> None:
    loss, weights = reduce((anchor_group(-TERMS.abs(), COUNTED),), "mean_nonzero")
    assert loss == 0
    assert not weights.any()


def test_each_group_for_itself() -> None:
    groups = anchor_group(TERMS, COUNTED), anchor_group(-TERMS, COUNTED)
    loss, weights = reduce(groups, "mean_nonzero")
    assert loss == 3.5 + 3.0
    assert weights.tolist() == [[0.5, 0, 0, 0.5, 0], [0, 1, 0, 0, 0]]
