"""Loss x options x backend x dtype x shape x references against the float64 reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dmlap_kernels.backends.registry import backends
from dmlap_kernels.problem import PairSpec
from tests.losses.cases import Case, draw_problem, keywords_of_some, make_problem, table, usual
from tests.losses.compare import compare, compare_stats, run
from tests.losses.losses_table import LOSSES

CASES = [case for loss in LOSSES for case in table(loss)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_value_and_gradient(case: Case, backend: str) -> None:
    compare(case.loss, make_problem(case), backend)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.rows <= 130][::2], ids=lambda case: case.id
)
def test_statistics(case: Case, backend: str) -> None:
    compare_stats(case.loss, make_problem(case), backend)


@pytest.mark.parametrize(
    ("loss", "distance"),
    [
        (loss, distance)
        for loss, row in LOSSES.items()
        for distance in row.distances or (row.default_distance,)
    ],
)
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_backends_agree_on_a_large_batch(loss: str, refs: bool, distance: str, native: str) -> None:
    """900 rows span many tiles; the reference would take too long.

    float64, because of 800,000 pairs some sit on a kink within the rounding of float32. Margins are
    chosen for 40 of them.
    """
    if LOSSES[loss].proxies and not refs:
        pytest.skip("proxies are references")
    case = usual(loss, rows=900, features=40, dtype=torch.float64, distance=distance)
    case = replace(case, refs="more" if refs else "self")
    problem = draw_problem(case)
    problem.keywords = keywords_of_some(case, problem)
    value, grads = run(LOSSES[loss].fused, problem, backend=native)
    other, other_grads = run(LOSSES[loss].fused, problem, backend="torch")
    assert value > 0
    torch.testing.assert_close(value, other, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(grads, other_grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9 * theirs.abs().max())


@pytest.mark.parametrize("loss", LOSSES)
def test_no_backend_refuses_a_loss(loss: str, backend: str) -> None:
    """All but the one for GPUs serve the whole family."""
    row = LOSSES[loss]
    for distance in row.distances or ("cosine",):
        spec = PairSpec(loss, (), distance)
        assert backends()[backend].refuses(spec, "cpu", torch.float32) is None
