"""Loss x options x backend x dtype x shape x references against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from tests.losses.cases import Case, make_problem, table
from tests.losses.compare import FUSED, compare, compare_stats, run
from tests.losses.test_properties import draw

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
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize("loss", FUSED)
def test_backends_agree_on_a_large_batch(loss: str, refs: bool, distance: str, native: str) -> None:
    """900 rows span many tiles; the reference would take too long.

    Squared hinges, because of 800,000 pairs some sit on the kink of a plain one.
    """
    problem = draw(
        rows=900, features=40, refs=refs, distance=distance, **HALF_ACTIVE[loss][distance]
    )
    value, grads = run(FUSED[loss], problem, None, backend=native)
    other, other_grads = run(FUSED[loss], problem, None, backend="torch")
    torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(grads, other_grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max())


HALF_ACTIVE: dict[str, dict[str, dict[str, float]]] = {
    "triplet": {name: {"margin": 0.3} for name in ("euclidean", "sqeuclidean", "cosine")},
    "contrastive": {
        "euclidean": {"pos_margin": 8.5, "neg_margin": 9.0, "squared": True},
        "sqeuclidean": {"pos_margin": 70.0, "neg_margin": 80.0, "squared": True},
        "cosine": {"pos_margin": 0.9, "neg_margin": 1.0, "squared": True},
    },
}
