"""How the `torch` backend reduces terms, with some that are negative, which no loss has so far."""

from __future__ import annotations

import pytest
import torch

from dmlap_kernels.backends.chunked.terms import GroupSums, anchor_terms

TERMS = torch.tensor([2.0, -3.0, 0.0, 4.0, 7.0])
COUNTED = torch.tensor([True, True, True, True, False])
EXPECTED = {"mean": 3 / 4, "mean_nonzero": 6 / 2, "sum": 3.0}


@pytest.mark.parametrize("reduction", EXPECTED)
def test_mean_nonzero_is_over_the_positive_terms(reduction: str) -> None:
    sums = GroupSums(TERMS[:, None], 1, reduction)
    sums.add(slice(0, 5), anchor_terms((TERMS, COUNTED)))
    loss, weights = sums.reduce()
    assert loss == EXPECTED[reduction]
    assert weights.shape == (5, 1)
    assert sums.violated == 2 and sums.violation == 6
