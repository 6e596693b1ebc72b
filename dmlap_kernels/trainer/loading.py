"""The images of batches, prepared by worker processes ahead of the steps that need them.

A batch and how its images are distorted are functions of the seed and the step. So it does not
matter which process prepares it, or when: the bits are the same for any number of workers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dmlap_kernels.data import (
    Augmentation,
    DataError,
    Distortion,
    ImageFiles,
    RandomCrop,
    Split,
)
from dmlap_kernels.data.part import Part
from dmlap_kernels.data.splits import to_float
from dmlap_kernels.trainer.batches import Batch, ClassBatchSampler
from dmlap_kernels.trainer.config import TrainConfig
from dmlap_kernels.trainer.pinned import PinnedRepresentatives
from dmlap_kernels.trainer.seeds import generator

# Batches that each worker is ahead by: one that it prepares, one that waits to be taken.
_AHEAD = 2
# More workers than this are asked for, not taken.
_DEFAULT_WORKERS = 4

# A step and a part of it, of which there are several where gradients are accumulated.
Key = tuple[int, int]
Planned = tuple[Key, Batch]


def default_workers(train: Split) -> int:
    """One for each core, four at most, for images that stay in their files; else 0.

    The processes that torchrun starts on a machine share its cores.

    Also 0 where a process is not started by a fork: scripts without ``if __name__ == "__main__"``
    would begin anew in each worker.
    """
    started = multiprocessing.get_start_method(allow_none=True)
    started = started or multiprocessing.get_all_start_methods()[0]
    if not isinstance(train.images, ImageFiles) or started != "fork":
        return 0
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(_DEFAULT_WORKERS, max(1, _cores() // sharing))


def _cores() -> int:
    """Those that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class _Order(NamedTuple):
    """What a worker is told of a batch: numbers, whose way through a queue is short."""

    key: Key
    indices: list[int]
    representatives: int

    @staticmethod
    def of(key: Key, batch: Batch) -> _Order:
        return _Order(key, batch.indices.tolist(), batch.representatives)


@dataclass(frozen=True)
class BatchImages(Dataset[Any]):
    """The images of batches: representatives as they are unless asked for otherwise, the samples
    distorted.

    Attributes:
        train: the training split.
        augment: what distorts; None: nothing does.
        seed: of the run.
        augment_representatives: distort them as samples are.
        threads: how many photographs are decoded at once; None: as many as there are cores.
        place: rank and number of ranks, of which each prepares its part (`Batch.rows_of`).
    """

    train: Split
    augment: Augmentation | None
    seed: int
    augment_representatives: bool = False
    threads: int | None = None
    place: tuple[int, int] = (0, 1)

    @staticmethod
    def of(
        config: TrainConfig,
        train: Split,
        augment: Augmentation | None,
        place: tuple[int, int] = (0, 1),
    ) -> BatchImages:
        """Those of the run of ``config``, for the rank at ``place``."""
        augment = augment if config.augment else None
        representatives = config.augment_representatives
        return BatchImages(train, augment, config.seed, representatives, place=place)

    def __getitem__(self, order: _Order) -> Tensor | Exception:
        """The images, uint8 or floating point; or the error to be raised when they are taken,
        which so says the same as it would without workers."""
        try:
            return self._prepared(order)
        except (DataError, OSError) as error:
            return error

    def _prepared(self, order: _Order) -> Tensor:
        train, threads = self.train, self.threads
        indices = torch.tensor(order.indices, dtype=torch.int64, device="cpu")
        if self.place[1] > 1:
            return self._part(indices, order)
        if self.augment is None:
            return train.stored(indices, threads=threads)
        plain = 0 if self.augment_representatives else order.representatives
        leading, samples = indices.tensor_split([plain])
        step, part = order.key
        random = generator(self.seed, "augmentation", step, part=part)
        distorted = train.distorted(samples, self.augment, random, threads=threads)
        if not plain:
            return distorted
        return _joined(train.stored(leading, threads=threads), distorted)

    def _part(self, indices: Tensor, order: _Order) -> Tensor:
        """The images of this rank, as they are in the whole batch ``indices`` (B,)."""
        train, threads, augment = self.train, self.threads, self.augment
        rows = Batch(indices, indices, order.representatives).rows_of(*self.place)
        if augment is None:
            return train.stored(indices[rows], threads=threads)
        plain = 0 if self.augment_representatives else order.representatives
        leading, samples = rows[rows < plain], rows[rows >= plain]
        step, part = order.key
        random = generator(self.seed, "augmentation", step, part=part)
        if isinstance(augment, (Distortion, RandomCrop)):
            of = Part(len(indices) - plain, samples - plain)
            distorted = train.distorted(indices[samples], augment, random, part=of, threads=threads)
        else:
            # It draws for all images that it gets, so it gets all of them.
            distorted = train.distorted(indices[plain:], augment, random, threads=threads)
            distorted = distorted[samples - plain]
        if not len(leading):
            return distorted
        return _joined(train.stored(indices[leading], threads=threads), distorted)


def _joined(unchanged: Tensor, distorted: Tensor) -> Tensor:
    if unchanged.dtype != distorted.dtype:
        unchanged = to_float(unchanged)
    return torch.cat((unchanged, distorted))


class BatchLoader:
    """Hands out batches with their images, which it has prepared ahead.

    At most two batches a worker are prepared at any time.

    Args:
        images: makes the images of a batch.
        workers: processes; 0: batches are prepared when they are taken.
        device: what the images are for.

    Attributes:
        waited: seconds that `take` took, all together: those that steps waited for images.
    """

    def __init__(self, images: BatchImages, workers: int, device: torch.device) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
            raise ValueError(f"workers must be an integer of at least 0, got {workers!r}")
        self.workers = workers
        self.waited = 0.0
        self._images, self._device = images, device
        self._loader: DataLoader[Any] | None = None
        self._prepared: Iterator[Any] | None = None
        self._plan: Iterable[Planned] = ()
        # Batches whose images are being prepared.
        self._ahead: deque[Planned] = deque()

    def take(self, key: Key, plan: Callable[[], Iterable[Planned]]) -> tuple[Batch, Tensor]:
        """The batch of ``key`` and its images, float32 (B, channels, height, width), 0 to 1, on
        the device.

        Args:
            key: the one after that of the last call, usually.
            plan: the batches from ``key`` on, as far as they are known; called when those of the
                last plan have been taken.

        Raises:
            DataError, OSError: an image could not be read.
            ChildProcessError: a worker has ended.
        """
        began = time.perf_counter()
        with lost_workers():
            images = None if self._prepared is None else next(self._prepared, None)
            if images is None or self._ahead[0][0] != key:
                images = self._begin(plan)
        _, batch = self._ahead.popleft()
        if isinstance(images, Exception):
            raise images
        moved = images.to(self._device, non_blocking=True)
        self.waited += time.perf_counter() - began
        return batch, to_float(moved)

    def _begin(self, plan: Callable[[], Iterable[Planned]]) -> Any:
        """Start with another plan; what is prepared of the old one is dropped."""
        self._ahead.clear()
        self._plan = plan()
        if self._loader is None:
            self._loader = self._new_loader()
        self._prepared = iter(self._loader)
        return next(self._prepared)

    def _new_loader(self) -> DataLoader[Any]:
        options: dict[str, Any] = {}
        images = self._images
        if self.workers:
            options = {"persistent_workers": True, "prefetch_factor": _AHEAD}
            images = replace(images, threads=1)
        return DataLoader(
            images,
            batch_size=None,
            sampler=_Orders(self),
            num_workers=self.workers,
            pin_memory=self._device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_run,
            # Of its own: the seed of the workers would be drawn from that of the run.
            generator=torch.Generator(device="cpu"),
            **options,
        )

    def orders(self) -> Iterator[_Order]:
        """What the loader is to prepare, noted as it is asked for."""
        for key, batch in self._plan:
            self._ahead.append((key, batch))
            yield _Order.of(key, batch)

    def again(self, key: Key, batch: Batch) -> Tensor:
        """The images of a batch that was taken before, prepared once more; of all ranks."""
        images = replace(self._images, place=(0, 1))[_Order.of(key, batch)]
        if isinstance(images, Exception):
            raise images
        return to_float(images)

    def close(self) -> None:
        """End the workers; `take` would start others."""
        self._prepared = self._loader = None
        self._ahead.clear()


class _Orders:
    """The sampler of a data loader: every iteration goes over the present plan."""

    def __init__(self, loader: BatchLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[_Order]:
        return self._loader.orders()


@contextlib.contextmanager
def lost_workers() -> Iterator[None]:
    """Raise ChildProcessError, saying what helps, if a worker has ended.

    PyTorch tells it anywhere, by a signal.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        reason = str(error).partition("\n")[0].strip()
        raise ChildProcessError(
            "a process that prepares batches has ended, perhaps for want of memory: fewer of them "
            f"need less (workers, --workers), and 0 prepares them in this one ({reason})"
        ) from error


def _leave_signals_to_the_run(worker: int) -> None:
    # Ctrl-C reaches all processes of a terminal, and the run takes its time to save itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def known_until(config: TrainConfig, step: int, began: int) -> int:
    """The first step after ``step`` whose batch cannot be said yet, in a projection that began at
    ``began``: it depends on weights to come."""
    until = config.steps
    if config.mines:
        until = min(until, (step // config.hard_refresh + 1) * config.hard_refresh)
    if config.is_dmlap and config.patience is not None:
        monitored = (step - began) // config.monitor_every + 1
        until = min(until, began + monitored * config.monitor_every)
    if config.is_dmlap and not (
        config.patience is None and config.representative_choice == "random"
    ):
        until = min(until, began + config.projection_steps)
    return max(until, step + 1)


def planned_batches(
    config: TrainConfig,
    sampler: ClassBatchSampler,
    pinned: PinnedRepresentatives,
    first: int,
    began: int,
    projection: int,
) -> Iterator[Planned]:
    """The batches from step ``first`` on, until one depends on weights to come.

    Args:
        config: of the run.
        sampler: draws them.
        pinned: the representatives and hard classes of the present projection.
        first: the present step.
        began, projection: the first step of the present projection, and its number.
    """
    # As they are now: the plan is gone through while steps change them.
    indices, neighbors = pinned.indices, pinned.neighbors
    for step in range(first, known_until(config, first, began)):
        if indices is not None and step > first and step - began >= config.projection_steps:
            began, projection = step, projection + 1
            indices = pinned.planned(projection)
        for part in range(config.accumulate):
            yield (step, part), sampler.batch(step, indices, neighbors, part)
