"""Points on a grid of whole numbers: distances that tie exactly, hinges exactly at 0.

At a tie the gradient is that of plain PyTorch: half for each side of a minimum, none at the edge of
a hinge, none between points that coincide.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dmlap_kernels import fused_triplet_loss
from tests.losses.cases import Problem
from tests.losses.compare import run, run_reference
from tests.losses.losses_table import LOSSES

HINGES = {
    "triplet_hard": {"margin": 1.0},
    "triplet_easy_positive": {"margin": 1.0},
    "triplet_easy_positive_semihard": {"margin": 1.0},
    "triplet_semihard": {"margin": 1.0},
    "triplet_all": {"margin": 1.0},
    "contrastive": {"pos_margin": 1.0, "neg_margin": 2.0},
    "margin": {"margin": 1.0, "beta": 1.0},
    "multi_similarity": {"epsilon": 1.0, "base": 1.0, "alpha": 1.0, "beta": 1.0},
    "lifted_structure": {},
    "lifted_structure_original": {},
}
SWAPPED = {
    loss: options | {"swap": True} for loss, options in HINGES.items() if loss[:7] == "triplet"
}
CASES = [*HINGES.items(), *SWAPPED.items()]
IDS = [f"{loss}-{'swap' if 'swap' in options else 'plain'}" for loss, options in CASES]


def on_a_grid(rows: int, refs: bool, classes: int) -> Problem:
    g = torch.Generator().manual_seed(rows)
    x = torch.randint(0, 3, (rows, 2), generator=g).double()
    labels = torch.randint(0, classes, (rows,), generator=g)
    if not refs:
        return Problem(x, labels, None, None, {})
    y = torch.randint(0, 3, (rows + 5, 2), generator=g).double()
    return Problem(x, labels, y, torch.randint(0, classes, (rows + 5,), generator=g), {})


@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize("distance", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("loss", "options"), CASES, ids=IDS)
def test_ties_as_in_plain_pytorch(
    loss: str,
    options: dict[str, Any],
    dtype: torch.dtype,
    distance: str,
    refs: bool,
    backend: str,
) -> None:
    if backend == "torch" and dtype == torch.float32:
        pytest.skip("takes squares of rounded roots: what ties here does not tie there")
    problem = on_a_grid(24, refs, classes=5).cast(dtype)
    raw = {"distance": distance, "normalize": False, "reduction": "mean"}
    problem.keywords = options | raw
    value, gradients = run(LOSSES[loss].fused, problem, backend=backend)
    truth, true_gradients = run_reference(loss, problem, torch.float64)
    torch.testing.assert_close(value.double(), truth, rtol=1e-6, atol=1e-6)
    for mine, true in zip(gradients, true_gradients, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize("loss", ["triplet_semihard", "triplet_all"])
@pytest.mark.parametrize("swap", [False, True])
def test_ties_among_many_positives(loss: str, swap: bool, refs: bool, backend: str) -> None:
    """More than a sweep keeps something for."""
    problem = on_a_grid(150, refs, classes=2)
    keywords = {"margin": 1.0, "swap": swap, "distance": "sqeuclidean", "reduction": "mean"}
    problem.keywords = keywords
    value, gradients = run(LOSSES[loss].fused, problem, backend=backend)
    truth, true_gradients = run_reference(loss, problem, torch.float64)
    torch.testing.assert_close(value, truth)
    for mine, true in zip(gradients, true_gradients, strict=True):
        torch.testing.assert_close(mine, true)


@pytest.mark.parametrize("mining", ["hard", "semihard", "all", "distance_weighted"])
@pytest.mark.parametrize("smooth", [False, True])
def test_swap_of_one_triplet(mining: str, smooth: bool, backend: str) -> None:
    """The negative is as far from the anchor as from the positive."""
    points = torch.eye(3)
    labels = torch.tensor([0, 0, 1])
    anchor = torch.tensor([0])
    for dtype in (torch.float32, torch.float64):
        x, y = (points.to(dtype, copy=True).requires_grad_() for _ in range(2))
        options: dict[str, Any] = {"mining": mining, "margin": 5.0, "swap": True, "smooth": smooth}
        if mining == "distance_weighted":
            options |= {"seed": 1, "nonzero_loss_cutoff": 1.9}
        loss = fused_triplet_loss(
            x[anchor],
            labels[anchor],
            y,
            labels,
            self_index=anchor,
            backend=backend,
            **options,
        )
        ours = sum(torch.autograd.grad(loss, (x, y)))
        leaf = points.double().requires_grad_()
        rows = torch.nn.functional.normalize(leaf) if mining == "distance_weighted" else leaf
        d_ap, d_an, d_pn = (rows[i].dist(rows[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
        excess = d_ap - torch.min(d_an, d_pn) + 5.0
        true = torch.nn.functional.softplus(excess) if smooth else excess.relu()
        (expected,) = torch.autograd.grad(true, leaf)
        torch.testing.assert_close(loss.double(), true)
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)
