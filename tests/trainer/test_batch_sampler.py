from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset
from torch.utils.data.distributed import DistributedSampler

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
    found = [[indices.tolist() for indices, _ in loader] for _ in range(2)]
    assert sampler.epoch == 1
    for epoch in range(2):
        sampler.set_epoch(epoch)
        assert found[epoch] == list(sampler)


def made(steps: int = 20, **changes: Any) -> PinnedBatchSampler:
    settings = {"classes_per_batch": 4, "samples_per_class": 3, "projection_steps": 5}
    return PinnedBatchSampler(LABELS, steps, **(settings | changes))


def test_every_iteration_is_another_epoch() -> None:
    """Which seed and number decide, so that all samples are seen and any epoch can be had again."""
    sampler = made(6)
    epochs = [list(sampler) for _ in range(6)]
    assert len({str(epoch) for epoch in epochs}) == 6
    assert {i for epoch in epochs for indices in epoch for i in indices} == set(range(60))
    again = made(6)
    again.set_epoch(4)
    assert [list(again), list(again)] == epochs[4:]
    other = made(6, seed=1)
    assert list(other) != epochs[0]


def test_an_iteration_that_was_broken_off_is_not_repeated() -> None:
    sampler = made()
    first = next(iter(sampler))
    assert next(iter(sampler)) != first
    assert sampler.epoch == 1


def test_an_epoch_can_be_resumed_in_its_middle() -> None:
    whole = made()
    epochs = [list(whole) for _ in range(3)]
    sampler = made()
    sampler.set_epoch(1)
    sampler.first_step = 7
    assert len(sampler) == 13
    assert list(sampler) == epochs[1][7:]
    # The epochs after it are whole again.
    assert len(sampler) == 20
    assert list(sampler) == epochs[2]


def test_a_projection_goes_on_across_epochs() -> None:
    sampler = made(7)
    used: dict[int, set[str]] = {}
    begun = []
    for epoch in range(4):
        for step, indices in enumerate(sampler):
            pinned = sampler.representatives(step)
            assert set(indices[:4]) <= set(pinned.flatten().tolist())
            used.setdefault((7 * epoch + step) // 5, set()).add(str(pinned.tolist()))
            if sampler.begins_projection(step):
                begun.append(7 * epoch + step)
    assert [len(pinned) for pinned in used.values()] == [1] * 6
    assert len(set.union(*used.values())) == 6
    assert begun == [5, 10, 15, 20, 25]


@pytest.mark.parametrize("epoch", [-1, 1.0, True, None])
def test_an_epoch_is_a_number(epoch: Any) -> None:
    with pytest.raises(ValueError, match="epoch must be an integer of at least 0, got"):
        made().set_epoch(epoch)


def test_what_frameworks_look_for() -> None:
    """They call `set_epoch` of ``batch_sampler.sampler``, and rebuild what has a ``batch_size``."""
    sampler = made()
    sampler.sampler.set_epoch(3)
    assert sampler.epoch == 3
    assert not hasattr(sampler, "batch_size") and not hasattr(sampler, "drop_last")


def test_classes_of_one_sample_are_all_named() -> None:
    labels = torch.tensor([205, 205, 7, 7, 300, 41])
    with pytest.raises(ValueError, match=r"but 2 classes have fewer: 41, 300$"):
        PinnedBatchSampler(labels, 5, classes_per_batch=2)
    with pytest.raises(ValueError, match=r"but class 205 has 1$"):
        PinnedBatchSampler(torch.tensor([205, 7, 7, 8, 8]), 5, classes_per_batch=2)
    with pytest.raises(ValueError, match=r"12 classes have fewer: 0, 1, .*, 9 and 2 more$"):
        PinnedBatchSampler(torch.arange(12), 5, classes_per_batch=2)


class Shard(Sampler[list[int]]):
    """As accelerate's ``BatchSamplerShard``: one in ``num_processes`` batches."""

    def __init__(self, batch_sampler: Any, num_processes: int, process_index: int) -> None:
        self.batch_sampler = batch_sampler
        self.num_processes, self.process_index = num_processes, process_index

    def __iter__(self) -> Iterator[list[int]]:
        for number, batch in enumerate(self.batch_sampler):
            if number % self.num_processes == self.process_index:
                yield batch


class Plain:
    """One of another library, which is no `Sampler` of torch."""

    def __init__(self, batch_sampler: Any, num_replicas: int, rank: int) -> None:
        self.batch_sampler, self.num_replicas, self.rank = batch_sampler, num_replicas, rank

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(iter(self.batch_sampler), self.rank, None, self.num_replicas)


class Listed(DistributedSampler):
    """As Lightning's ``DistributedSamplerWrapper``: shares out the list of all batches."""

    def __init__(self, sampler: Any, num_replicas: int, rank: int) -> None:
        super().__init__(range(len(sampler)), num_replicas, rank, shuffle=False)
        self.batches = sampler

    def __iter__(self) -> Iterator[Any]:
        every = list(self.batches)
        return (every[i] for i in super().__iter__())


@pytest.mark.parametrize("wrapper", [Shard, Listed, Plain])
def test_batches_are_not_shared_out_twice(wrapper: Any) -> None:
    for rank in range(2):
        part = made(num_replicas=2, rank=rank)
        with pytest.raises(RuntimeError, match=rf"{wrapper.__name__} would leave it one in 2: "):
            next(iter(wrapper(part, 2, rank)))
        # Nothing was lost: it is still to begin.
        assert (part.epoch, len(list(part))) == (0, 20)


@pytest.mark.parametrize("wrapper", [Shard, Listed, Plain])
def test_the_parts_of_all_processes_are_shared_out_once(wrapper: Any) -> None:
    direct = [made(num_replicas=2, rank=rank) for rank in range(2)]
    shared = [made(num_replicas=2, rank="all") for _ in range(2)]
    assert len(shared[0]) == 40
    for _ in range(2):
        for rank in range(2):
            assert list(wrapper(shared[rank], 2, rank)) == list(direct[rank])
    with pytest.raises(RuntimeError, match="num_replicas must be the number of processes of"):
        next(iter(wrapper(shared[0], 3, 0)))


def test_whole_batches_may_be_shared_out() -> None:
    every = list(made(num_replicas=1, rank=0))
    found = [list(Shard(made(num_replicas=1, rank=0), 2, rank)) for rank in range(2)]
    assert found == [every[::2], every[1::2]]


_RANKS = """
import sys
import torch
from torch import Tensor
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset
from dmlap_kernels.trainer import PinnedBatchSampler

labels = torch.arange(60) % 10
def made(**place):
    return PinnedBatchSampler(labels, 6, classes_per_batch=3, samples_per_class=3, **place)

before = made()  # made before the processes know of each other
if sys.argv[3] == "accelerate":
    from accelerate import Accelerator
    accelerator = Accelerator(cpu=True)
elif sys.argv[3] == "torch":
    dist.init_process_group("gloo", f"file://{sys.argv[1]}", rank=int(sys.argv[2]), world_size=2)
else:
    import lightning
    class Recorder(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.rows = torch.nn.Linear(1, 1), []
        def training_step(self, batch):
            self.rows.append(batch[0].tolist())
            return self.layer(batch[0][:, None].float()).sum()
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-9)
    def fit(sampler, **options):
        trainer = lightning.Trainer(
            strategy="ddp", accelerator="cpu", devices=2, logger=False, max_epochs=2,
            enable_checkpointing=False, enable_progress_bar=False, **options,
        )
        module = Recorder()
        data = TensorDataset(torch.arange(60))
        trainer.fit(module, DataLoader(data, batch_sampler=sampler))
        return [module.rows[:6], module.rows[6:]]
    lightning_rows = fit(made(), use_distributed_sampler=False)
rank = dist.get_rank()
wanted = made(num_replicas=2, rank=rank)
wanted = [list(wanted), list(wanted)]
assert [list(before), list(before)] == wanted
if sys.argv[3] == "accelerate":
    data = TensorDataset(torch.arange(60))
    sampler = made(rank="all")
    loader = accelerator.prepare(DataLoader(data, batch_sampler=sampler))
    assert len(loader) == 6
    found = [[rows.tolist() for (rows,) in loader] for _ in range(2)]
    assert found == wanted, (found, wanted)
    loader.set_epoch(1)
    assert [rows.tolist() for (rows,) in loader] == wanted[1]
    try:
        next(iter(accelerator.prepare(DataLoader(data, batch_sampler=made()))))
    except RuntimeError as error:
        assert "would leave it one in 2" in str(error), error
    else:
        raise AssertionError("shared out twice")
if sys.argv[3] == "lightning":
    assert lightning_rows == wanted, (lightning_rows, wanted)
    try:
        fit(made())
    except (RuntimeError, TypeError) as error:  # ours, or Lightning's own
        assert "use_distributed_sampler=False" in str(error), error
    else:
        raise AssertionError("shared out twice")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("kind", ["torch", "accelerate", "lightning"])
def test_two_processes(kind: str, tmp_path: Path) -> None:
    if kind != "torch":
        pytest.importorskip(kind)
    script = tmp_path / "ranks.py"
    script.write_text(_RANKS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    if kind == "lightning":  # as torchrun tells it
        place |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    running = [
        subprocess.Popen(
            [sys.executable, script, tmp_path / "store", str(rank), kind],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    for process in running:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"projection_steps": 2.0}, "projection_steps must be an integer of at least 1, got 2.0"),
        ({"rank": 1}, "num_replicas and rank must be given together, got None and 1"),
        ({"num_replicas": 2, "rank": 2}, r"rank must be in 0\.\.1, got 2"),
        ({"representatives_per_class": 4}, "must be less than samples_per_class=4, got 4"),
        ({"representatives_per_class": "1"}, "representatives_per_class must be an integer of"),
        ({"classes_per_batch": 2.5}, "classes_per_batch must be an integer of at least 2, got 2.5"),
        ({"samples_per_class": None}, "samples_per_class must be an integer of at least 2"),
        ({"num_replicas": 2.0, "rank": 0}, "num_replicas must be an integer of at least 1"),
        ({"classes_per_batch": 11}, r"classes_per_batch must be in 2\.\.10"),
    ],
)
def test_what_it_refuses(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PinnedBatchSampler(LABELS, **({"steps": 5, "classes_per_batch": 4} | changes))


def test_integers_of_other_kinds_are_integers() -> None:
    plain = PinnedBatchSampler(LABELS, 4, classes_per_batch=2, seed=3)
    other = PinnedBatchSampler(
        LABELS, np.int64(4), classes_per_batch=np.uint8(2), seed=torch.tensor(3)
    )
    other.set_epoch(np.int32(0))
    assert list(other) == list(plain)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("first_step", 5, r"first_step must be in 0\.\.4 \(the steps of an epoch\), got 5"),
        ("first_step", -1, r"first_step must be in 0\.\.4"),
        ("first_step", 1.5, "first_step must be an integer"),
        ("neighbors", torch.zeros(3, 2), r"neighbors must be a tensor \(10, k\)"),
        ("neighbors", "classes", r"neighbors must be a tensor \(10, k\), .*got 'classes'"),
        ("neighbors", torch.full((10, 2), 205), r"neighbors must be in 0\.\.9, .*got 205 to 205"),
    ],
)
def test_what_is_set_later_is_checked(name: str, value: Any, message: str) -> None:
    sampler = PinnedBatchSampler(LABELS, 4, classes_per_batch=2, hard_share=1.0)
    with pytest.raises((ValueError, TypeError), match=message):
        setattr(sampler, name, value)
        list(sampler)


LABEL_FORMS: dict[str, Callable[[Tensor], Any]] = {
    "list": lambda t: t.tolist(),
    "column": lambda t: t[:, None],
    "floats": lambda t: t.double(),
    "numpy": lambda t: t.numpy(),
    "numpy-column": lambda t: t.numpy().astype(np.int16)[:, None],
    "numpy-floats": lambda t: t.numpy().astype(np.float32),
    "numpy-read-only": lambda t: np.frombuffer(t.numpy().tobytes(), np.int64),
    "numpy-backwards": lambda t: np.ascontiguousarray(t.numpy()[::-1])[::-1],
    "numpy-big-endian": lambda t: t.numpy().astype(">i8"),
}


@pytest.mark.parametrize("form", LABEL_FORMS)
def test_forms_of_labels(form: str) -> None:
    labels = 205 * (torch.arange(40) % 5)
    options: dict[str, Any] = {"classes_per_batch": 3, "samples_per_class": 3}
    plain = list(PinnedBatchSampler(labels, 4, **options))
    assert list(PinnedBatchSampler(LABEL_FORMS[form](labels), 4, **options)) == plain


def test_bad_labels_are_named_as_they_were_given() -> None:
    options: dict[str, Any] = {"classes_per_batch": 2, "samples_per_class": 2}
    with pytest.raises(ValueError, match="205"):
        PinnedBatchSampler([3, 3, 205, 7, 7], 4, **options)
    with pytest.raises(ValueError, match=r"labels must be whole numbers, got 0\.5"):
        PinnedBatchSampler([0.0, 0.5], 4, **options)
    with pytest.raises(TypeError, match="labels must be whole numbers"):
        PinnedBatchSampler(["a", "a"], 4, **options)
    with pytest.raises(ValueError, match="labels must be of at least one sample"):
        PinnedBatchSampler([], 4, **options)
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        PinnedBatchSampler(torch.zeros(2, 3), 4, **options)
