"""float64 gradients against finite differences, away from kinks.

Circle loss is left out: it holds the factors of its exponents constant, so that its gradient is not
the derivative of its value; the tables compare it with a reference that does the same.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.losses.cases import Case, make_problem, usual, variants
from tests.losses.losses_table import LOSSES

SETTINGS = (
    ("self", "euclidean", False, "mean"),
    ("self", "cosine", False, "none"),
    ("self", "sqeuclidean", True, "sum"),
    ("self", "dot", False, "mean_nonzero"),
    ("more", "euclidean", True, "none"),
    ("more", "sqeuclidean", False, "mean_nonzero"),
    ("fewer", "cosine", True, "mean"),
    ("fewer", "dot", False, "sum"),
)


def cases(loss: str) -> list[Case]:
    row = LOSSES[loss]
    found = []
    for options in variants(loss):
        for refs, distance, normalize, reduction in SETTINGS:
            geometry: dict[str, Any] = {"distance": distance, "normalize": normalize}
            if not row.distances:
                geometry = {"distance": row.default_distance, "normalize": False}
                if distance != "cosine":
                    continue
            elif distance not in row.distances:
                continue
            if row.proxies and refs == "self":
                refs = "classes"
            case = usual(loss, rows=11, features=3, refs=refs, dtype=torch.float64, **geometry)
            found.append(Case(**(vars(case) | {"reduction": reduction, "options": options})))
    return found


@pytest.mark.parametrize(
    "case",
    [case for loss, row in LOSSES.items() if not row.detached for case in cases(loss)],
    ids=lambda case: case.id,
)
def test_gradcheck(case: Case, backend: str) -> None:
    """In embeddings, references and parameters."""
    problem = make_problem(case, gap=1e-5)
    leaves = [problem.x, *([] if problem.y is None else [problem.y])]
    names = problem.parameters()
    leaves += [problem.keywords[name] for name in names]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]

    def call(x: torch.Tensor, *rest: torch.Tensor) -> Any:
        y, parameters = (None, rest) if problem.y is None else (rest[0], rest[1:])
        keywords = problem.keywords | dict(zip(names, parameters, strict=True))
        fused = LOSSES[case.loss].fused
        return fused(x, problem.labels, y, problem.ref_labels, backend=backend, **keywords)

    assert torch.autograd.gradcheck(call, leaves, eps=1e-6, atol=3e-6, rtol=1e-5)
