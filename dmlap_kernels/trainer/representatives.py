"""Representatives: one sample of each class, pinned for the length of a projection."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels.trainer.seeds import generator


class RepresentativeSampler:
    """Draws the representatives of a projection, without repeats until a class is used up.

    Args:
        labels: (N,) int64, 0 to C - 1, every class present.
        seed: decides all draws; ``draw(k)`` depends on nothing else.
    """

    def __init__(self, labels: Tensor, seed: int) -> None:
        self._labels = labels.long()
        self._counts = torch.bincount(self._labels)
        self._starts = self._counts.cumsum(0) - self._counts
        self._seed = seed

    def draw(self, projection: int) -> Tensor:
        """Representatives of projection 0, 1, ...: (C,) int64, the sample index of each class."""
        # A class of n samples is shuffled anew every n projections.
        rounds, slots = projection // self._counts, projection % self._counts
        drawn = torch.empty_like(self._counts)
        for number in torch.unique(rounds).tolist():
            classes = (rounds == number).nonzero().flatten()
            order = self._shuffled(number)
            drawn[classes] = order[self._starts[classes] + slots[classes]]
        return drawn

    def _shuffled(self, number: int) -> Tensor:
        """Sample indices (N,) in class order, shuffled within each class."""
        order = torch.randperm(
            len(self._labels), generator=generator(self._seed, "representatives", number)
        )
        return order[torch.argsort(self._labels[order], stable=True)]
