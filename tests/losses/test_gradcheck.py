"""float64 gradients against finite differences, away from kinks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.losses.cases import Case, make_problem
from tests.losses.compare import FUSED

CASES = [
    Case(
        loss, 11, 3, "ragged", refs, torch.float64, distance, normalize, reduction, options=options
    )
    for loss, options in (
        ("triplet", (("smooth", False), ("swap", False))),
        ("triplet", (("smooth", True), ("swap", True))),
        ("contrastive", (("squared", False), ("active", "half"))),
        ("contrastive", (("squared", True), ("active", "all"))),
    )
    for refs, distance, normalize, reduction in (
        ("self", "euclidean", False, "mean"),
        ("self", "cosine", False, "none"),
        ("self", "sqeuclidean", True, "sum"),
        ("more", "euclidean", True, "none"),
        ("more", "sqeuclidean", False, "mean_nonzero"),
        ("fewer", "cosine", True, "mean"),
    )
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_gradcheck(case: Case, backend: str) -> None:
    problem = make_problem(case)
    leaves = [t.clone().requires_grad_() for t in (problem.x, problem.y) if t is not None]

    def call(x: torch.Tensor, y: torch.Tensor | None = None) -> Any:
        return FUSED[case.loss](
            x, problem.labels, y, problem.ref_labels, backend=backend, **problem.keywords
        )

    assert torch.autograd.gradcheck(call, leaves, eps=1e-7, atol=1e-6, rtol=1e-5)
