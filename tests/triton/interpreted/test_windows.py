"""Losses of windows of positives: classes larger than a window, and what the tables do not draw."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmlap_kernels import fused_angular_loss, fused_triplet_loss
from dmlap_kernels.backends.triton.configurations import LEAST_WINDOW
from tests.losses.cases import make_problem, usual
from tests.losses.compare import compare, compare_stats

MININGS = ("semihard", "all", "distance_weighted", "angular")
REFS = pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])


def both(sides: tuple[Tensor, ...], mining: str, **options: Any) -> list[list[Tensor]]:
    """Value and gradients, of the `triton` backend and of the `torch` backend in float64."""
    if mining == "distance_weighted":
        options["seed"] = 2**40 + 5
    results = []
    for backend, dtype in (("triton", torch.float32), ("torch", torch.float64)):
        leaves = [t.to(dtype).requires_grad_() for t in sides[::2]]
        arguments = [t for pair in zip(leaves, sides[1::2], strict=True) for t in pair]
        if mining == "angular":
            value = fused_angular_loss(*arguments, backend=backend)
        else:
            value = fused_triplet_loss(*arguments, mining=mining, backend=backend, **options)
        results.append([value.detach(), *torch.autograd.grad(value, leaves)])
    return results


def assert_agree(results: list[list[Tensor]]) -> None:
    for ours, truth in zip(*results, strict=True):
        scale = truth.abs().max().item()
        torch.testing.assert_close(ours.double(), truth, rtol=0, atol=1e-5 * scale)


@REFS
@pytest.mark.parametrize(
    ("mining", "swap"),
    [*itertools.product(MININGS[:3], (False, True)), ("angular", False)],
)
def test_a_class_of_several_windows(mining: str, swap: bool, refs: bool) -> None:
    """With references the third has one positive. Other anchors have few positives, or none."""
    g = torch.Generator().manual_seed(3)
    large = 2 * LEAST_WINDOW + 1 if refs else LEAST_WINDOW + 3
    labels = torch.tensor([4] * large + [1, 1, 9, 0, 0, 0])
    x = torch.randn(len(labels), 5, generator=g)
    order = torch.randperm(len(labels), generator=g)
    sides = (x[order], labels[order])
    if refs:
        of_anchors = torch.tensor([4, 7, 1, 4, 0])
        sides = (torch.randn(5, 5, generator=g), of_anchors, *sides)
    assert_agree(both(sides, mining, **({} if mining == "angular" else {"swap": swap})))


@pytest.mark.parametrize("refs", ["self", "fewer"])
@pytest.mark.parametrize("loss", ["triplet_semihard", "triplet_all", "angular"])
def test_statistics(loss: str, refs: str) -> None:
    compare_stats(loss, make_problem(usual(loss, rows=19, refs=refs)), "triton")


@REFS
@pytest.mark.parametrize("mining", MININGS)
def test_equal_rows(mining: str, refs: bool) -> None:
    """Rows that coincide, of the same class and of others, have no direction between them."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, generator=g)[torch.tensor([0, 0, 1, 1, 2, 0, 1])]
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    sides = (x, labels, x.clone(), labels) if refs else (x, labels)
    for results in both(sides, mining, **({} if mining == "angular" else {"swap": True})):
        assert all(t.isfinite().all() for t in results)


@pytest.mark.parametrize("mining", MININGS)
def test_the_same_bits_again(mining: str) -> None:
    g = torch.Generator().manual_seed(2)
    sides = torch.randn(20, 5, generator=g), torch.arange(20) // 4
    first, second = (both(sides, mining)[0] for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_recomputed_pairs_far_from_the_origin() -> None:
    """Norms alone would not see distances of 2^-8 at 300."""
    case = usual("triplet_semihard", rows=18, features=6)
    problem = make_problem(case)
    far = replace(problem, x=((problem.x * 2**8).round() / 2**16 + 300))
    far.keywords = problem.keywords | {"margin": problem.keywords["margin"] / 2**8}
    compare("triplet_semihard", far, "triton")


def test_no_anchors_and_no_references() -> None:
    for rows, refs in ((0, 4), (4, 0), (0, 0)):
        x, y = torch.ones(rows, 3, requires_grad=True), torch.ones(refs, 3, requires_grad=True)
        labels = torch.zeros(4, dtype=torch.int64)
        value = fused_triplet_loss(
            x, labels[:rows], y, labels[:refs], mining="semihard", backend="triton"
        )
        value.backward()
        assert value == 0 and not x.grad.any() and not y.grad.any()
