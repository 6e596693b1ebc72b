from __future__ import annotations

import pytest
import torch

from dmlap_kernels.trainer import ClassBatchSampler, RepresentativeSampler

SIZES = (6, 3, 9, 2, 4, 5, 7, 8)


def _labels() -> torch.Tensor:
    labels = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("samples", [2, 4])
def test_representatives_lead_and_the_rest_is_fresh(samples: int) -> None:
    labels = _labels()
    representatives = RepresentativeSampler(labels, seed=0).draw(0)
    sampler = ClassBatchSampler(labels, 5, samples, seed=0)
    for step in range(20):
        batch = sampler.batch(step, representatives)
        assert batch.representatives == 5
        assert len(batch.indices) == 5 * samples
        assert torch.equal(labels[batch.indices], batch.labels)
        leading, fresh = batch.indices[:5], batch.indices[5:]
        assert len(batch.labels[:5].unique()) == 5
        assert torch.equal(leading, representatives[batch.labels[:5], 0])
        assert not torch.isin(fresh, leading).any()
        counts = torch.bincount(batch.labels, minlength=len(SIZES))
        assert set(counts.tolist()) == {0, samples}


def test_several_representatives_of_a_class_lead() -> None:
    labels = _labels()
    representatives = RepresentativeSampler(labels, seed=0, per_class=2).draw(0)
    sampler = ClassBatchSampler(labels, 5, 4, seed=0)
    for step in range(20):
        batch = sampler.batch(step, representatives)
        assert batch.representatives == 10
        assert torch.equal(labels[batch.indices], batch.labels)
        assert torch.equal(batch.indices[:10].view(5, 2), representatives[batch.labels[:10:2]])
        fresh = batch.indices[10:].view(5, 2)
        assert not torch.isin(fresh, batch.indices[:10]).any()
    with pytest.raises(ValueError, match="fewer than samples_per_class=2 a class, got 2"):
        ClassBatchSampler(labels, 5, 2, seed=0).batch(0, representatives)


def test_the_share_of_hard_classes_grows() -> None:
    sampler = ClassBatchSampler(_labels(), 8, 2, seed=0, hard_share=0.5, hard_warmup=100)
    assert [sampler.hard_classes(step) for step in (0, 50, 100, 1000)] == [0, 2, 4, 4]
    assert ClassBatchSampler(_labels(), 8, 2, seed=0, hard_share=1.0).hard_classes(0) == 7


def test_samples_repeat_only_where_a_class_is_too_small() -> None:
    labels = _labels()
    sampler = ClassBatchSampler(labels, len(SIZES), 4, seed=1)
    for step in range(10):
        batch = sampler.batch(step)
        assert batch.representatives == 0
        for c, size in enumerate(SIZES):
            drawn = batch.indices[batch.labels == c]
            assert len(drawn) == 4
            assert len(drawn.unique()) == min(4, size)


def test_every_sample_comes_up() -> None:
    labels = _labels()
    representatives = RepresentativeSampler(labels, seed=0).draw(0)
    sampler = ClassBatchSampler(labels, 3, 3, seed=2)
    seen = torch.cat([sampler.batch(step, representatives).indices for step in range(300)])
    assert len(seen.unique()) == len(labels)


def test_batches_depend_on_seed_and_step_alone() -> None:
    labels = _labels()
    first, second, other = (ClassBatchSampler(labels, 4, 2, seed=s) for s in (5, 5, 6))
    forwards = [first.batch(step).indices for step in range(6)]
    backwards = [second.batch(step).indices for step in reversed(range(6))][::-1]
    assert all(map(torch.equal, forwards, backwards))
    assert any(not torch.equal(forwards[s], other.batch(s).indices) for s in range(6))
    assert not torch.equal(forwards[0], forwards[1])


def test_hard_classes_come_from_the_pools_of_the_others() -> None:
    classes = 60
    labels = torch.arange(classes).repeat_interleave(3)
    # The hard classes of c are c + 1, ..., c + 6.
    neighbors = (torch.arange(classes)[:, None] + torch.arange(1, 7)) % classes
    sampler = ClassBatchSampler(labels, 8, 2, seed=0, hard_share=0.75)
    chosen, apart = set(), 0
    for step in range(50):
        drawn = sampler.batch(step, neighbors=neighbors).labels[::2]
        assert len(drawn.unique()) == 8
        first, second = (set(neighbors[c].tolist()) for c in drawn[:2])
        # Pools that overlap may be too small for what is wanted of them.
        if first & second or int(drawn[0]) in second or int(drawn[1]) in first:
            continue
        apart += 1
        assert len(first & set(drawn[2:].tolist())) == 3
        assert len(second & set(drawn[2:].tolist())) == 3
        chosen.add(frozenset((drawn[2:5] - drawn[0]).remainder(classes).tolist()))
    assert apart > 20
    assert len(chosen) > 5


def test_overlapping_pools_are_filled_up_at_random() -> None:
    labels = torch.arange(10).repeat_interleave(2)
    neighbors = torch.tensor([[1], *[[0]] * 9])
    batch = ClassBatchSampler(labels, 6, 2, seed=0, hard_share=1.0).batch(0, neighbors=neighbors)
    assert len(batch.labels.unique()) == 6


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"classes_per_batch": 9}, "classes_per_batch must be in 2..8"),
        ({"classes_per_batch": 1}, "classes_per_batch must be in 2..8"),
        ({"samples_per_class": 1}, "samples_per_class must be an integer of at least 2"),
        ({"hard_share": 1.5}, "hard_share must be finite and at least 0 and at most 1, got 1.5"),
        ({"hard_warmup": -1}, "hard_warmup must be an integer of at least 0"),
        ({"classes_per_batch": 2.0}, "classes_per_batch must be an integer, got 2.0"),
        ({"samples_per_class": "2"}, "samples_per_class must be an integer of at least 2"),
        ({"hard_share": "1"}, "hard_share must be a number, got '1'"),
        ({"hard_share": torch.nan}, "hard_share must be finite"),
        ({"hard_warmup": torch.nan}, "hard_warmup must be an integer of at least 0"),
        ({"seed": None}, "seed must be an integer, got None"),
        ({"seed": 0.5}, "seed must be an integer, got 0.5"),
        ({"labels": torch.tensor([0, 0, 1])}, "class 1 has 1"),
        ({"labels": torch.tensor([], dtype=torch.int64)}, "at least one sample, got none"),
    ],
)
def test_bad_arguments_are_named(changes: dict, named: str) -> None:
    arguments = {
        "labels": _labels(),
        "classes_per_batch": 2,
        "samples_per_class": 2,
        "seed": 0,
    } | changes
    with pytest.raises((ValueError, TypeError), match=named):
        ClassBatchSampler(**arguments)
