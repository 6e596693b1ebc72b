"""DMLAP's batches for a `torch.utils.data.DataLoader` of one's own."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from dmlap_kernels.trainer.batches import ClassBatchSampler
from dmlap_kernels.trainer.representatives import RepresentativeSampler


class PinnedBatchSampler(Sampler[list[int]]):
    """Batches of C * R representatives followed by C (M - R) other samples of their classes.

    The representatives of all classes stay the same for ``projection_steps`` batches. Made for the
    ``batch_sampler`` of a data loader, with or without workers; in a distributed run each process
    gets C classes of its own, none of them twice in a step.

        sampler = PinnedBatchSampler(labels, steps=1000)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=4)
        for step, (images, labels) in enumerate(loader):
            if sampler.begins_projection(step):
                projection.end_projection()
            loss, stats = objective(encoder(images), labels, sampler.representatives_per_batch)
            ...

    Args:
        labels: (N,) integer labels of the data set, any values, at least two samples of each.
        steps: batches that an iteration yields, at least 1.
        classes_per_batch: C, at least 2; of each process.
        samples_per_class: M, at least 2, the representatives included.
        projection_steps: L, at least 1.
        seed: decides all draws, and must be the same in all processes.
        hard_share: share of the classes drawn from the hardest of the others, see
            `ClassBatchSampler`; takes effect once `neighbors` is set.
        hard_warmup: steps over which that share grows from 0.
        representatives_per_class: R, 1 to M - 1.
        num_replicas, rank: of a distributed run; None: as `torch.distributed` says if it is
            initialised, else 1 and 0.

    Attributes:
        neighbors: (classes, k) int64, the hardest others of each class by rank among the sorted
            labels, as ``hard_classes(...).neighbors`` of representatives labelled 0 .. classes - 1;
            None: classes are drawn uniformly. Read batch by batch, in the process that iterates; a
            loader with workers has asked for some batches ahead.
        first_step: where an iteration begins: set it to resume.
    """

    def __init__(
        self,
        labels: Tensor,
        steps: int,
        *,
        classes_per_batch: int = 24,
        samples_per_class: int = 4,
        projection_steps: int = 25,
        seed: int = 0,
        hard_share: float = 0.0,
        hard_warmup: int = 0,
        representatives_per_class: int = 1,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        for name, value in (("steps", steps), ("projection_steps", projection_steps)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        self.num_replicas, self.rank = _place(num_replicas, rank)
        _, classes = torch.unique(torch.as_tensor(labels).cpu(), return_inverse=True)
        self.steps, self.first_step = steps, 0
        self.representatives_per_batch = classes_per_batch * representatives_per_class
        self.projection_steps = projection_steps
        self.neighbors: Tensor | None = None
        self._batches = ClassBatchSampler(
            classes,
            classes_per_batch * self.num_replicas,
            samples_per_class,
            seed,
            hard_share=hard_share,
            hard_warmup=hard_warmup,
        )
        self._representatives = RepresentativeSampler(classes, seed, representatives_per_class)
        if representatives_per_class >= samples_per_class:
            raise ValueError(
                "representatives_per_class must be less than samples_per_class="
                f"{samples_per_class}, got {representatives_per_class}"
            )

    def __len__(self) -> int:
        return max(0, self.steps - self.first_step)

    def __iter__(self) -> Iterator[list[int]]:
        representatives = None
        for step in range(self.first_step, self.steps):
            if representatives is None or self.begins_projection(step):
                representatives = self.representatives(step)
            yield self._own(self._batches.batch(step, representatives, self.neighbors).indices)

    def begins_projection(self, step: int) -> bool:
        """Whether ``step`` is the first of a projection other than the first."""
        return step > 0 and step % self.projection_steps == 0

    def representatives(self, step: int) -> Tensor:
        """(classes, R) int64 indices of the samples that represent each class at ``step``."""
        return self._representatives.draw(step // self.projection_steps)

    def _own(self, indices: Tensor) -> list[int]:
        """This process's part of the batch of all of them."""
        leading, others = indices.tensor_split([self.representatives_per_batch * self.num_replicas])
        # Both go class by class, and each process has as many classes as any other.
        parts = (rows.chunk(self.num_replicas)[self.rank] for rows in (leading, others))
        return torch.cat(tuple(parts)).tolist()


def _place(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    if (num_replicas is None) != (rank is None):
        raise ValueError(
            f"num_replicas and rank must be given together, got {num_replicas!r} and {rank!r}"
        )
    if num_replicas is None or rank is None:
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return 1, 0
        return distributed.get_world_size(), distributed.get_rank()
    if not 0 <= rank < num_replicas:
        raise ValueError(f"rank must be in 0..{num_replicas - 1}, got {rank}")
    return num_replicas, rank
