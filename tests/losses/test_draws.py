"""Distance-weighted triplets: whose negatives are drawn, how often, and by which numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dmlap_kernels import fused_triplet_loss
from tests import reference
from tests.reference.pairs import make_pairs
from tests.reference.triplets import negative_weights, uniform01

POSITIVES = 300
LOSS = "triplet_distance_weighted"


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One anchor, 300 equal positives, ten negatives of which one is beyond the cutoff."""
    anchor = torch.tensor([[1.0, 0, 0, 0, 0]], dtype=torch.float64)
    angles = torch.tensor([0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 2.5], dtype=torch.float64)
    negatives = torch.zeros(10, 5, dtype=torch.float64)
    negatives[:, 0] = angles.cos()
    negatives[torch.arange(10), 1 + torch.arange(10) % 4] = angles.sin()
    positive = torch.tensor([[0.0, 1, 0, 0, 0]], dtype=torch.float64)
    refs = torch.cat([negatives[:4], positive.repeat(POSITIVES, 1), negatives[4:]])
    names = torch.cat([torch.tensor([5, 5, 0, 0]), torch.full((POSITIVES,), 3)])
    names = torch.cat([names, torch.tensor([1, 1, 7, 7, 7, 7])])
    return anchor, torch.tensor([3]), refs, names


def counts_of(backend: str, seed: int) -> Tensor:
    """How often each reference was drawn, read off its gradient under a margin nothing reaches."""
    anchor, label, refs, names = problem()
    leaf = refs.clone().requires_grad_()
    options = {"margin": 9.0, "distance": "cosine", "reduction": "sum", "seed": seed}
    if backend == "reference":
        value = reference.loss(LOSS, anchor, label, leaf, names, **options)
    else:
        value = fused_triplet_loss(
            anchor, label, leaf, names, mining="distance_weighted", backend=backend, **options
        )
    (grad,) = torch.autograd.grad(value, leaf)
    tangent = anchor - (refs @ anchor.T) * refs
    return (grad.norm(dim=1) / tangent.norm(dim=1)).masked_fill(names == 3, 0.0)


@pytest.fixture(params=("reference", "torch", "cpu"))
def candidate(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu":
        request.getfixturevalue("native")
    return request.param


def test_frequencies_are_those_of_the_weights(candidate: str) -> None:
    """Chi-square of 3,000 draws with 8 degrees of freedom; a right one exceeds 26.1 once in 1,000.

    The seeds are fixed, so that the test is not a matter of luck.
    """
    seeds = range(10)
    drawn = sum(counts_of(candidate, seed) for seed in seeds)
    anchor, label, refs, names = problem()
    pairs = make_pairs(anchor, label, refs, names, distance="cosine", normalize=True)
    d = torch.cdist(anchor, refs)[0]
    density = d.clamp_min(0.5) ** 3 * (1 - d.clamp_min(0.5) ** 2 / 4)
    weights = torch.where((names != 3) & (d < 1.4), 1 / density, 0.0)
    torch.testing.assert_close(
        negative_weights(pairs, 0.5, 1.4)[0], weights / weights.max(), rtol=1e-6, atol=1e-9
    )
    torch.testing.assert_close(drawn.sum(), torch.tensor(3_000.0, dtype=torch.float64))
    assert not drawn[weights == 0].any(), "a negative beyond the cutoff was drawn"
    expected = (3_000 * weights / weights.sum())[weights > 0]
    chi_square = ((drawn[weights > 0] - expected) ** 2 / expected).sum()
    assert chi_square < 26.1


def test_draws_are_those_of_the_counter(candidate: str) -> None:
    """The k-th positive, in order of labels and rows, takes uniform01(seed, anchor, k)."""
    anchor, label, refs, names = problem()
    pairs = make_pairs(anchor, label, refs, names, distance="cosine", normalize=True)
    order = torch.argsort(names, stable=True)
    running = negative_weights(pairs, 0.5, 1.4)[0][order].cumsum(0)
    for seed in (0, 2**53 - 1):
        expected = torch.zeros(len(refs), dtype=torch.float64)
        for k in range(POSITIVES):
            first = int((running > uniform01(seed, 0, k) * running[-1]).int().argmax())
            expected[order[first]] += 1
        torch.testing.assert_close(counts_of(candidate, seed), expected, rtol=1e-6, atol=1e-6)


def test_numbers_of_the_generator() -> None:
    """The first outputs of splitmix64 from 0 are published; uniform01 uses its upper 53 bits."""
    from tests.reference.triplets import splitmix64

    golden = 0x9E3779B97F4A7C15
    outputs = [splitmix64((n * golden) % 2**64) for n in range(3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    numbers = [uniform01(7, i, k) for i in range(40) for k in range(40)]
    assert len(set(numbers)) == 1_600 and 0 <= min(numbers) and max(numbers) < 1
    assert abs(sum(numbers) / 1_600 - 0.5) < 0.03


def test_without_a_seed_the_generator_of_torch_decides(backend: str) -> None:
    anchor, label, refs, names = problem()

    def draw() -> float:
        return fused_triplet_loss(
            anchor, label, refs, names, mining="distance_weighted", normalize=True, backend=backend
        ).item()

    torch.manual_seed(1)
    first, second = draw(), draw()
    torch.manual_seed(1)
    assert draw() == first
    assert first != second
