from __future__ import annotations

import pytest
import torch

from dmlap_kernels.trainer import RepresentativeSampler


def _labels() -> torch.Tensor:
    # Class sizes 5, 2 and 3, in no order.
    return torch.tensor([0, 1, 2, 0, 2, 0, 1, 0, 2, 0])


def test_one_sample_of_each_class() -> None:
    labels = _labels()
    sampler = RepresentativeSampler(labels, seed=3)
    for projection in range(12):
        assert torch.equal(labels[sampler.draw(projection)], torch.arange(3))


def test_no_repeats_until_a_class_is_used_up() -> None:
    labels = _labels()
    sampler = RepresentativeSampler(labels, seed=3)
    draws = torch.stack([sampler.draw(k) for k in range(30)])  # [30, 3]
    for c, size in enumerate((5, 2, 3)):
        for start in range(0, 30, size):
            drawn = draws[start : start + size, c].tolist()
            assert sorted(drawn) == (labels == c).nonzero().flatten().tolist()


def test_every_round_has_an_order_of_its_own() -> None:
    sampler = RepresentativeSampler(torch.zeros(50, dtype=torch.int64), seed=0)
    rounds = [tuple(int(sampler.draw(50 * r + k)) for k in range(50)) for r in range(3)]
    assert len(set(rounds)) == 3


def test_draws_depend_on_seed_and_projection_alone() -> None:
    first, second = (RepresentativeSampler(_labels(), seed=7) for _ in range(2))
    forwards = [first.draw(k) for k in range(8)]
    backwards = [second.draw(k) for k in reversed(range(8))][::-1]
    assert all(map(torch.equal, forwards, backwards))
    other = RepresentativeSampler(_labels(), seed=8)
    assert any(not torch.equal(forwards[k], other.draw(k)) for k in range(8))


@pytest.mark.parametrize("projection", [0, 10**9])
def test_any_projection_number(projection: int) -> None:
    drawn = RepresentativeSampler(_labels(), seed=0).draw(projection)
    assert torch.equal(_labels()[drawn], torch.arange(3))
