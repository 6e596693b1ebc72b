"""Batches of C classes x M samples as pure functions of seed and step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels import checks
from dmlap_kernels.trainer import defaults
from dmlap_kernels.trainer.seeds import generator

# How many classes a message names.
_NAMED = 10


@dataclass(frozen=True)
class Batch:
    """Samples of one step.

    Attributes:
        indices: (B,) int64 into the training split.
        labels: (B,) int64.
        representatives: how many of the first rows are representatives: C * R or 0.
    """

    indices: Tensor
    labels: Tensor
    representatives: int

    def rows_of(self, rank: int, count: int) -> Tensor:
        """The rows that ``rank`` of ``count`` gets: its share of the representatives, then of the
        other samples."""
        rows = torch.arange(len(self.labels), device="cpu")
        both = rows.tensor_split([self.representatives])
        return torch.cat([part.tensor_split(count)[rank] for part in both])

    def part(self, rank: int, count: int) -> Batch:
        """What ``rank`` of ``count`` gets."""
        if count == 1:
            return self
        rows = self.rows_of(rank, count)
        leading = int((rows < self.representatives).sum())
        return Batch(self.indices[rows], self.labels[rows], leading)


class ClassBatchSampler:
    """Draws C classes, then M samples of each.

    Args:
        labels: (N,) int64, 0 to C_all - 1, at least two samples of each class.
        classes_per_batch: C, at least 2.
        samples_per_class: M, at least 2. A class with fewer samples repeats some.
        seed: decides all draws.
        hard_share: share of the batch's classes that are drawn from the hardest classes of the
            others, 0 to 1 (1 still leaves one class at random to start from).
        hard_warmup: steps over which that share grows from 0 to ``hard_share``, linearly.
    """

    def __init__(
        self,
        labels: Tensor,
        classes_per_batch: int,
        samples_per_class: int,
        seed: int,
        *,
        hard_share: float = defaults.HARD_SHARE,
        hard_warmup: int = defaults.HARD_WARMUP,
    ) -> None:
        if not len(labels):
            raise ValueError("labels must be of at least one sample, got none")
        self._labels = labels.long()
        self._counts = torch.bincount(self._labels)
        self._starts = self._counts.cumsum(0) - self._counts
        self._order = torch.argsort(self._labels, stable=True)
        self._seed = checks.seed(seed)
        self._classes = checks.count(
            "classes_per_batch",
            classes_per_batch,
            minimum=2,
            maximum=len(self._counts),
            why="the number of training classes",
        )
        self._per_class = checks.at_least("samples_per_class", samples_per_class, 2)
        self._hard_share = float(checks.constant("hard_share", hard_share, minimum=0, maximum=1))
        if few := small_classes(self._labels):
            raise ValueError(
                "labels must give every class at least two samples, but "
                + named_classes(few, range(len(self._counts)))
            )
        self._warmup = checks.at_least("hard_warmup", hard_warmup, 0)

    def hard_classes(self, step: int) -> int:
        """How many classes of the batch of ``step`` are drawn from the hardest of the others."""
        grown = min(1.0, step / self._warmup) if self._warmup else 1.0
        return min(self._classes - 1, round(grown * self._hard_share * self._classes))

    def batch(
        self,
        step: int,
        representatives: Tensor | None = None,
        neighbors: Tensor | None = None,
        part: int = 0,
    ) -> Batch:
        """The batch of ``step``.

        Args:
            step: 0, 1, ...
            representatives: (C_all, R) int64 sample indices of each class, R < M. The batch then
                begins with the C * R representatives, followed by C (M - R) other samples, both
                class by class. Without: C x M samples, class by class.
            neighbors: (C_all, k) int64, the hardest others of each class. Without: all classes of
                the batch are drawn uniformly.
            part: 0, 1, ... of a step that takes several batches.
        """
        random = generator(self._seed, "batch", step, part=part)
        classes = self._draw_classes(random, neighbors, self.hard_classes(step))
        if representatives is None:
            samples = self._draw_samples(random, classes, self._per_class, None)
            labels = classes.repeat_interleave(self._per_class)
            return Batch(samples, labels, 0)
        leading = representatives[classes]
        pinned = leading.shape[1]
        if pinned >= self._per_class:
            raise ValueError(
                f"representatives must be fewer than samples_per_class={self._per_class} a class, "
                f"got {pinned}"
            )
        fresh = self._per_class - pinned
        samples = self._draw_samples(random, classes, fresh, leading)
        each = classes.repeat_interleave(pinned), classes.repeat_interleave(fresh)
        return Batch(torch.cat((leading.flatten(), samples)), torch.cat(each), leading.numel())

    def _draw_classes(self, random: torch.Generator, neighbors: Tensor | None, hard: int) -> Tensor:
        order = torch.randperm(len(self._counts), generator=random, device="cpu")
        if neighbors is None or not hard:
            return order[: self._classes]
        seeds = order[: self._classes - hard]
        chosen = dict.fromkeys(seeds.tolist())
        ranks = torch.rand(len(seeds), neighbors.shape[1], generator=random, device="cpu").argsort(
            1
        )
        pools = neighbors[seeds].gather(1, ranks).tolist()
        base, extra = divmod(hard, len(seeds))
        for i, pool in enumerate(pools):
            wanted = base + (i < extra)
            fresh = [c for c in pool if c not in chosen][:wanted]
            chosen.update(dict.fromkeys(fresh))
        # Pools that overlap leave the batch short: fill it up at random.
        for c in order[len(seeds) :].tolist():
            if len(chosen) == self._classes:
                break
            chosen.setdefault(c)
        return torch.tensor(list(chosen), device="cpu")

    def _draw_samples(
        self, random: torch.Generator, classes: Tensor, amount: int, excluded: Tensor | None
    ) -> Tensor:
        """``amount`` samples of each class, (C * amount,), never an ``excluded`` one (C, R)."""
        counts, starts = self._counts[classes], self._starts[classes]
        slots = torch.arange(int(counts.max()), device="cpu")
        positions = (starts[:, None] + slots).clamp_(max=len(self._order) - 1)
        samples = self._order[positions]  # [C, largest class]
        keys = torch.rand(samples.shape, generator=random, device="cpu")
        unusable = slots >= counts[:, None]
        available = counts
        if excluded is not None:
            unusable |= (samples[:, :, None] == excluded[:, None, :]).any(2)
            available = (~unusable).sum(1)
        shuffled = samples.gather(1, keys.masked_fill_(unusable, 2.0).argsort(1))
        picks = torch.arange(amount, device="cpu") % available[:, None]
        return shuffled.gather(1, picks).flatten()


def small_classes(labels: Tensor) -> dict[int, int]:
    """The classes of 0 to the largest label with fewer than two samples, and how many they have."""
    counts = torch.bincount(labels)
    return {c: int(counts[c]) for c in (counts < 2).nonzero().flatten().tolist()}


def named_classes(counts: dict[int, int], names: Sequence[Any]) -> str:
    """What to say of classes with the given ``counts`` of samples: all of them, up to ten."""
    if len(counts) == 1:
        ((label, count),) = counts.items()
        return f"class {names[label]!r} has {count}"
    listed = ", ".join(repr(names[label]) for label in list(counts)[:_NAMED])
    more = f" and {len(counts) - _NAMED} more" if len(counts) > _NAMED else ""
    return f"{len(counts)} classes have fewer: {listed}{more}"
