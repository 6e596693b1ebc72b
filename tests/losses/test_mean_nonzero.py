"""`mean_nonzero`: the mean over the terms that are > 0, and over no others."""

from __future__ import annotations

import pytest
import torch

from tests.losses.cases import Problem
from tests.losses.compare import run
from tests.losses.losses_table import LOSSES


def lone_pairs(seed: int) -> Problem:
    """Anchors with one positive and no negative: terms are 0 but for rounding, of either sign."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 6, generator=g)
    return Problem(x, torch.zeros(2, dtype=torch.int64), None, None, {})


@pytest.mark.parametrize("loss", ["sup_con", "soft_triple", "circle", "nt_xent", "angular"])
def test_terms_that_are_not_positive_are_left_out(loss: str, backend: str) -> None:
    for seed in range(40):
        problem = lone_pairs(seed)
        if LOSSES[loss].proxies:
            problem.y, problem.ref_labels = torch.randn(1, 6), torch.zeros(1, dtype=torch.int64)
        terms, _ = run(LOSSES[loss].fused, problem, backend=backend, reduction="none")
        value, gradients = run(
            LOSSES[loss].fused, problem, backend=backend, reduction="mean_nonzero"
        )
        positive = terms > 0
        expected = terms[positive].sum() / max(1, int(positive.sum()))
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0.0)
        assert value >= 0
        # The gradient of the same terms, by one at a time.
        upstream = positive.float() / max(1, int(positive.sum()))
        _, each = run(LOSSES[loss].fused, problem, upstream, backend=backend, reduction="none")
        for mine, true in zip(gradients, each, strict=True):
            torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-9)
