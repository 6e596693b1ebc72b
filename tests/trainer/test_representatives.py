from __future__ import annotations

import itertools

import pytest
import torch

from dmlap_kernels.trainer import RepresentativeSampler
from dmlap_kernels.trainer.representatives import CHOICES, k_centers, medoids


def _labels() -> torch.Tensor:
    # Class sizes 5, 2 and 3, in no order.
    return torch.tensor([0, 1, 2, 0, 2, 0, 1, 0, 2, 0])


def test_one_sample_of_each_class() -> None:
    labels = _labels()
    sampler = RepresentativeSampler(labels, seed=3)
    for projection in range(12):
        assert torch.equal(labels[sampler.draw(projection)], torch.arange(3)[:, None])


def test_no_repeats_until_a_class_is_used_up() -> None:
    labels = _labels()
    sampler = RepresentativeSampler(labels, seed=3)
    draws = torch.stack([sampler.draw(k)[:, 0] for k in range(30)])  # [30, 3]
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
    assert torch.equal(_labels()[drawn], torch.arange(3)[:, None])


def test_several_of_each_class_without_repeats_until_it_is_used_up() -> None:
    labels = torch.tensor([7, 4, 5]).cumsum(0)  # class ends: sizes 7, 4 and 5
    labels = torch.searchsorted(labels, torch.arange(16), right=True)
    sampler = RepresentativeSampler(labels, seed=1, per_class=2)
    draws = torch.stack([sampler.draw(k) for k in range(12)])  # [12, 3, 2]
    assert torch.equal(labels[draws], torch.arange(3)[None, :, None].expand(12, 3, 2))
    for c, per_round in enumerate((3, 2, 2)):
        for start in range(0, 12, per_round):
            drawn = draws[start : start + per_round, c].flatten().tolist()
            assert len(set(drawn)) == 2 * per_round


def test_a_small_class_keeps_a_sample_to_meet_its_representatives() -> None:
    sampler = RepresentativeSampler(_labels(), seed=1, per_class=3)
    for k in range(6):
        assert [len(set(row)) for row in sampler.draw(k).tolist()] == [3, 1, 2]


def test_a_pool_holds_different_samples_first() -> None:
    labels = _labels()
    pool, distinct = RepresentativeSampler(labels, seed=2).pool(3, 4)
    assert distinct.tolist() == [4, 2, 3]
    assert torch.equal(labels[pool], torch.arange(3)[:, None].expand(3, 4))
    for row, count in zip(pool.tolist(), distinct.tolist(), strict=True):
        assert len(set(row)) == len(set(row[:count])) == count


def _line(*points: float) -> torch.Tensor:
    return torch.tensor(points)[None, :, None]


def test_the_medoid_is_in_the_crowd_and_the_center_in_the_middle() -> None:
    points = _line(0.0, 0.1, 0.2, 6.0, 10.0)
    assert medoids(points, 1, torch.tensor([5])).tolist() == [[2]]
    assert k_centers(points, 1, torch.tensor([5])).tolist() == [[3]]


def test_further_choices_cover_what_is_left() -> None:
    points = _line(0.0, 0.1, 0.2, 6.0, 10.0)
    assert k_centers(points, 3, torch.tensor([5])).tolist() == [[3, 0, 4]]
    points = _line(0.0, 0.1, 0.2, 0.3, 7.0, 10.0, 10.1)
    assert medoids(points, 3, torch.tensor([7])).tolist() == [[3, 5, 4]]


@pytest.mark.parametrize("choose", CHOICES.values(), ids=CHOICES)
def test_no_worse_than_twice_the_best_choice_of_all(choose: object) -> None:
    """Greedy k-center is within twice the optimum (Gonzalez 1985); medoids are held to it, too."""
    random = torch.Generator().manual_seed(0)
    points = torch.rand(20, 7, 3, generator=random)
    chosen = choose(points, 2, torch.full((20,), 7))  # type: ignore[operator]
    distances = torch.cdist(points, points)
    for c in range(20):
        costs = {
            pair: torch.minimum(distances[c, pair[0]], distances[c, pair[1]])
            for pair in itertools.combinations(range(7), 2)
        }
        cost = (lambda d: d.max()) if choose is k_centers else (lambda d: d.sum())
        own = costs[tuple(sorted(chosen[c].tolist()))]
        assert cost(own) <= 2 * min(cost(d) for d in costs.values()) + 1e-6


@pytest.mark.parametrize("choose", CHOICES.values(), ids=CHOICES)
def test_only_candidates_that_count_are_chosen(choose: object) -> None:
    points = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0))
    chosen = choose(points, 4, torch.tensor([2, 5]))  # type: ignore[operator]
    assert set(chosen[0].tolist()) == {0, 1}
    assert len(set(chosen[1].tolist())) == 4


def test_the_number_of_representatives_is_checked() -> None:
    with pytest.raises(ValueError, match="per_class must be an integer of at least 1, got 0"):
        RepresentativeSampler(_labels(), seed=0, per_class=0)
