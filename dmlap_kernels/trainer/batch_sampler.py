"""DMLAP's batches for a `torch.utils.data.DataLoader` of one's own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from dmlap_kernels import checks
from dmlap_kernels.trainer import defaults
from dmlap_kernels.trainer.batches import ClassBatchSampler, named_classes, small_classes
from dmlap_kernels.trainer.representatives import RepresentativeSampler


class PinnedBatchSampler(Sampler[list[int]]):
    """Batches of C * R representatives followed by C (M - R) other samples of their classes.

    The representatives of all classes stay the same for ``projection_steps`` batches, across the
    end of an epoch. Made for the ``batch_sampler`` of a data loader, with or without workers::

        sampler = PinnedBatchSampler(labels, steps=1000)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=4)
        for epoch in range(10):
            for step, (images, labels) in enumerate(loader):
                if sampler.begins_projection(step):
                    projection.end_projection()
                loss, _ = objective(encoder(images), labels, sampler.representatives_per_batch)
                ...

    Every iteration is an epoch with batches of its own, a function of ``seed`` and its number. The
    first is epoch 0, or the one that `set_epoch` says. To resume in the middle of one::

        sampler.set_epoch(epoch)
        sampler.first_step = step

    In a distributed run each process gets C classes of its own, none of them twice in a step, and
    nothing else may share the batches out once more. Lightning must be told so, by
    ``Trainer(use_distributed_sampler=False)``. ``prepare`` of accelerate always does it, by giving
    each of P processes every P-th batch: either leave the loader out of ``prepare``, or say
    ``rank="all"``, which yields the parts of all processes in turn so that each gets its own. An
    iteration that would be shared out twice raises RuntimeError.

    Args:
        labels: (N,) or (N, 1) labels of the data set: whole numbers of any values, as a tensor, a
            NumPy array or a sequence; at least two samples of each.
        steps: batches that an iteration yields, at least 1.
        classes_per_batch: C, at least 2; of each process.
        samples_per_class: M, at least 2, the representatives included.
        projection_steps: L, at least 1.
        seed: decides all draws, and must be the same in all processes.
        hard_share: share of the classes drawn from the hardest of the others, see
            `ClassBatchSampler`; takes effect once `neighbors` is set.
        hard_warmup: steps over which that share grows from 0.
        representatives_per_class: R, 1 to M - 1.
        num_replicas, rank: of a distributed run; None: as `torch.distributed` says when an
            iteration begins, or 1 and 0 where it is not initialised. ``rank="all"``: the parts of
            all processes in turn, ``num_replicas`` times as many batches.

    Attributes:
        neighbors: (classes, k) int64, the hardest others of each class by rank among the sorted
            labels, as ``hard_classes(...).neighbors`` of representatives labelled 0 .. classes - 1;
            None: classes are drawn uniformly. Read batch by batch, in the process that iterates; a
            loader with workers has asked for some batches ahead.
        epoch: number of the iteration that runs, or of the next one after `set_epoch`.
        first_step: where the next iteration begins; 0 again for those after it.

    Raises:
        ValueError, TypeError: bad arguments.
    """

    def __init__(
        self,
        labels: Tensor | np.ndarray | Sequence[int],
        steps: int,
        *,
        classes_per_batch: int = defaults.CLASSES_PER_BATCH,
        samples_per_class: int = defaults.SAMPLES_PER_CLASS,
        projection_steps: int = defaults.PROJECTION_STEPS,
        seed: int = defaults.SEED,
        hard_share: float = defaults.HARD_SHARE,
        hard_warmup: int = defaults.HARD_WARMUP,
        representatives_per_class: int = defaults.REPRESENTATIVES_PER_CLASS,
        num_replicas: int | None = None,
        rank: int | Literal["all"] | None = None,
    ) -> None:
        steps = checks.at_least("steps", steps, 1)
        projection_steps = checks.at_least("projection_steps", projection_steps, 1)
        classes_per_batch = checks.at_least("classes_per_batch", classes_per_batch, 2)
        samples_per_class = checks.at_least("samples_per_class", samples_per_class, 2)
        representatives_per_class = checks.at_least(
            "representatives_per_class", representatives_per_class, 1
        )
        num_replicas, rank = _checked_place(num_replicas, rank)
        if representatives_per_class >= samples_per_class:
            raise ValueError(
                "representatives_per_class must be less than samples_per_class="
                f"{samples_per_class}, got {representatives_per_class}"
            )
        self._given = num_replicas, rank
        values, classes = torch.unique(checks.data_labels("labels", labels), return_inverse=True)
        if few := small_classes(classes):
            raise ValueError(
                "labels must give every class at least two samples, but "
                + named_classes(few, values.tolist())
            )
        if not len(values):
            raise ValueError("labels must be of at least one sample, got none")
        self._classes = classes
        self._per_process = classes_per_batch
        self._batch_options: dict[str, Any] = {
            "samples_per_class": samples_per_class,
            "seed": seed,
            "hard_share": hard_share,
            "hard_warmup": hard_warmup,
        }
        self.steps, self.first_step = steps, 0
        self.epoch, self._begun = 0, False
        self.representatives_per_batch = classes_per_batch * representatives_per_class
        self.projection_steps = projection_steps
        self._neighbors: Tensor | None = None
        self._representatives = RepresentativeSampler(classes, seed, representatives_per_class)
        # Refuses now what it would refuse when an iteration begins.
        self._batches(self.place()[0])

    @property
    def neighbors(self) -> Tensor | None:
        return self._neighbors

    @neighbors.setter
    def neighbors(self, value: Tensor | None) -> None:
        self._neighbors = None if value is None else self._checked_neighbors(value)

    def _checked_neighbors(self, value: Any) -> Tensor:
        classes = int(self._classes.max()) + 1
        if not isinstance(value, Tensor) or value.ndim != 2 or len(value) != classes:
            raise ValueError(
                f"neighbors must be a tensor ({classes}, k), the hardest others of each class, got "
                f"{checks.describe(value)}"
            )
        ranks = checks.data_labels("neighbors", value.reshape(-1)).view(value.shape)
        if ranks.numel() and not 0 <= int(ranks.min()) <= int(ranks.max()) < classes:
            raise ValueError(
                f"neighbors must be in 0..{classes - 1}, ranks among the sorted labels, got "
                f"{int(ranks.min())} to {int(ranks.max())}"
            )
        return ranks

    @property
    def sampler(self) -> PinnedBatchSampler:
        """Itself: where Lightning and accelerate look for what has a `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of ``epoch``, at least 0."""
        self.epoch, self._begun = checks.at_least("epoch", epoch, 0), False

    def place(self) -> tuple[int, int | Literal["all"]]:
        """How many processes share a step's classes, and which part is this one's."""
        num_replicas, rank = self._given
        if num_replicas is not None and rank is not None:
            return num_replicas, rank
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            here = distributed.get_world_size(), distributed.get_rank()
        else:
            here = 1, 0
        return num_replicas or here[0], rank or here[1]

    def __len__(self) -> int:
        num_replicas, rank = self.place()
        return max(0, self.steps - self.first_step) * (num_replicas if rank == "all" else 1)

    def __iter__(self) -> Iterator[list[int]]:
        num_replicas, rank = self.place()
        self._refuse_a_second_sharding(num_replicas, rank)
        return self._iterate(num_replicas, rank)

    def _iterate(self, num_replicas: int, rank: int | Literal["all"]) -> Iterator[list[int]]:
        # An epoch begins with its first batch: loaders with workers ask for two iterators.
        if self._begun:
            self.epoch += 1
        self._begun = True
        first, self.first_step = self.first_step, 0
        first = checks.count(
            "first_step", first, minimum=0, maximum=self.steps, why="the steps of an epoch"
        )
        batches = self._batches(num_replicas)
        begins = self.epoch * self.steps
        drawn, representatives = -1, None
        for step in range(begins + first, begins + self.steps):
            if representatives is None or step // self.projection_steps != drawn:
                drawn = step // self.projection_steps
                representatives = self._representatives.draw(drawn)
            indices = batches.batch(step, representatives, self.neighbors).indices
            parts = self._parts(indices, num_replicas)
            yield from parts if rank == "all" else (parts[rank],)

    def begins_projection(self, step: int) -> bool:
        """Whether ``step`` of the present epoch is the first of a projection, unless of the first
        one of all."""
        step += self.epoch * self.steps
        return step > 0 and step % self.projection_steps == 0

    def representatives(self, step: int) -> Tensor:
        """(classes, R) int64 indices of the samples that represent each class at ``step`` of the
        present epoch."""
        step += self.epoch * self.steps
        return self._representatives.draw(step // self.projection_steps)

    def _batches(self, num_replicas: int) -> ClassBatchSampler:
        total = self._per_process * num_replicas
        classes = int(self._classes.max()) + 1
        if num_replicas > 1 and total > classes:
            raise ValueError(
                f"classes_per_batch must be at most {classes // num_replicas}, because "
                f"{num_replicas} processes share {classes} classes, got {self._per_process}"
            )
        return ClassBatchSampler(self._classes, total, **self._batch_options)

    def _parts(self, indices: Tensor, num_replicas: int) -> list[list[int]]:
        """What each process gets of the batch of all of them."""
        leading, others = indices.tensor_split([self.representatives_per_batch * num_replicas])
        # Both go class by class, and each process has as many classes as any other.
        pairs = zip(leading.chunk(num_replicas), others.chunk(num_replicas), strict=True)
        return [torch.cat(pair).tolist() for pair in pairs]

    def _refuse_a_second_sharding(self, num_replicas: int, rank: int | Literal["all"]) -> None:
        """Raise if the iteration is begun by a sampler that gives each process a share of it."""
        found = _sharding_sampler(self)
        if found is None or (num_replicas == 1 and rank != "all"):
            return
        name, shares = found
        if rank == "all":
            if shares == num_replicas:
                return
            raise RuntimeError(
                f"num_replicas must be the number of processes of {name}, {shares}, got "
                f"{num_replicas}"
            )
        raise RuntimeError(
            f"each process already gets its part of every batch, of which {name} would leave it "
            f"one in {shares}: leave the loader out of accelerate's prepare or create the sampler "
            'with rank="all"; in Lightning set use_distributed_sampler=False'
        )


def _checked_place(num_replicas: Any, rank: Any) -> tuple[int | None, Any]:
    """Both as ints, where they are given as numbers."""
    if num_replicas is not None:
        num_replicas = checks.at_least("num_replicas", num_replicas, 1)
    if isinstance(rank, str) and rank == "all":
        return num_replicas, rank
    if (num_replicas is None) != (rank is None):
        raise ValueError(
            f"num_replicas and rank must be given together, got {num_replicas!r} and {rank!r}"
        )
    if num_replicas is None:
        return None, None
    rank = checks.at_least("rank", rank, 0)
    if rank >= num_replicas:
        raise ValueError(f"rank must be in 0..{num_replicas - 1}, got {rank}")
    return num_replicas, rank


def _sharding_sampler(sampler: Sampler[Any]) -> tuple[str, int] | None:
    """Name and number of processes of the sampler that iterates ``sampler`` to share it out.

    There is no protocol by which one sampler could tell another, so this looks at the callers.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        wraps = getattr(owner, "batch_sampler", None) is sampler and hasattr(owner, "__iter__")
        if owner is not sampler and (wraps or isinstance(owner, Sampler)):
            for name in ("num_processes", "num_replicas"):
                shares = getattr(owner, name, None)
                if isinstance(shares, int) and shares > 1:
                    return type(owner).__name__, shares
        frame = frame.f_back
    return None
