from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from dmlap_kernels.trainer import PinnedBatchSampler

# Labels of any value, in no order.
LABELS = (torch.arange(60) % 10 * 7 - 20)[torch.randperm(60, generator=torch.manual_seed(0))]


def batches(**changes: int) -> list[list[int]]:
    settings = {"classes_per_batch": 4, "samples_per_class": 3, "projection_steps": 5}
    return list(PinnedBatchSampler(LABELS, 20, **(settings | changes)))


def test_a_batch_is_representatives_and_then_samples_of_their_classes() -> None:
    for indices in batches():
        labels = LABELS[torch.tensor(indices)]
        assert len(set(indices)) == 4 * 3
        assert len(set(labels[:4].tolist())) == 4
        assert labels[4:].tolist() == labels[:4].repeat_interleave(2).tolist()


def test_representatives_are_pinned() -> None:
    sampler = PinnedBatchSampler(
        LABELS, 20, classes_per_batch=4, samples_per_class=3, projection_steps=5
    )
    used = {}
    for step, indices in enumerate(sampler):
        pinned = sampler.representatives(step)
        assert set(indices[:4]) <= set(pinned.flatten().tolist())
        used.setdefault(step // 5, pinned.tolist())
        assert used[step // 5] == pinned.tolist()
    assert len({str(pinned) for pinned in used.values()}) == 4
    assert [step for step in range(20) if sampler.begins_projection(step)] == [5, 10, 15]


def test_processes_share_the_classes_of_a_step() -> None:
    ranks = [batches(classes_per_batch=3, num_replicas=3, rank=rank) for rank in range(3)]
    for parts in zip(*ranks, strict=True):
        labels = [set(LABELS[torch.tensor(part)].tolist()) for part in parts]
        assert len(set.union(*labels)) == 9
        assert all(len(part) == 9 for part in parts)


def test_processes_share_several_representatives_of_a_class() -> None:
    settings = {"classes_per_batch": 3, "num_replicas": 2, "representatives_per_class": 2}
    for rank in range(2):
        for indices in batches(rank=rank, **settings):
            labels = LABELS[torch.tensor(indices)].tolist()
            assert labels[:6:2] == labels[1:6:2] == labels[6:]


def test_an_iteration_can_be_resumed_and_repeated() -> None:
    every = batches()
    sampler = PinnedBatchSampler(
        LABELS, 20, classes_per_batch=4, samples_per_class=3, projection_steps=5
    )
    sampler.first_step = 7
    assert len(sampler) == 13
    assert list(sampler) == every[7:]
    assert batches() == every
    assert batches(seed=1) != every


def test_hard_classes_fill_a_batch_once_they_are_known() -> None:
    sampler = PinnedBatchSampler(LABELS, 30, classes_per_batch=2, hard_share=0.5)
    sampler.neighbors = ((torch.arange(10) + 1) % 10)[:, None]
    values = LABELS.unique()
    for indices in sampler:
        first, second = (int((values == LABELS[i]).nonzero()) for i in indices[:2])
        assert second == (first + 1) % 10


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_takes_it(workers: int) -> None:
    data = TensorDataset(torch.arange(60), LABELS)
    sampler = PinnedBatchSampler(LABELS, 6, classes_per_batch=4)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
    found = [indices.tolist() for indices, _ in loader]
    assert found == list(sampler)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"projection_steps": 2.0}, "projection_steps must be an integer of at least 1, got 2.0"),
        ({"rank": 1}, "num_replicas and rank must be given together, got None and 1"),
        ({"num_replicas": 2, "rank": 2}, r"rank must be in 0\.\.1, got 2"),
        ({"representatives_per_class": 4}, "must be less than samples_per_class=4, got 4"),
        ({"classes_per_batch": 11}, r"classes_per_batch must be in 2\.\.10"),
    ],
)
def test_what_it_refuses(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PinnedBatchSampler(LABELS, **({"steps": 5, "classes_per_batch": 4} | changes))
