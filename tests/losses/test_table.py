"""Loss x options x backend x dtype x shape x references against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from tests.losses.cases import Case, make_problem, table
from tests.losses.compare import FUSED, compare, compare_stats, run

CASES = [case for loss in FUSED for case in table(loss)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_value_and_gradient(case: Case, backend: str) -> None:
    compare(case.loss, make_problem(case), backend)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.rows <= 130][::2], ids=lambda case: case.id
)
def test_statistics(case: Case, backend: str) -> None:
    compare_stats(case.loss, make_problem(case), backend)


@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("loss", FUSED)
def test_backends_agree_on_a_large_batch(loss: str, distance: str, native: str) -> None:
    """700 rows span many tiles; the reference would need too much memory."""
    for refs in ("self", "more"):
        case = Case(loss, 700, 40, "ragged", refs, distance=distance, options=DEFAULTS[loss])
        problem = make_problem(case)
        value, grads = run(FUSED[loss], problem, None, backend=native)
        other, other_grads = run(FUSED[loss], problem, None, backend="torch")
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6)
        for mine, theirs in zip(grads, other_grads, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max())


DEFAULTS = {
    "triplet": (("smooth", False), ("swap", False)),
    "contrastive": (("squared", False), ("active", "half")),
}
