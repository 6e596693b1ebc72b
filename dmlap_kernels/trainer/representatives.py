"""Representatives: samples of each class, pinned for the length of a projection."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dmlap_kernels import checks
from dmlap_kernels.trainer import defaults
from dmlap_kernels.trainer.seeds import generator


class RepresentativeSampler:
    """Draws the representatives of a projection, without repeats until a class is used up.

    Args:
        labels: (N,) int64, 0 to C - 1, at least two samples of each class.
        seed: decides all draws; `draw` and `pool` depend on nothing else.
        per_class: R, representatives of each class, at least 1. A class of n <= R samples repeats
            some of n - 1: one sample of every class is left to meet them.
    """

    def __init__(
        self, labels: Tensor, seed: int, per_class: int = defaults.REPRESENTATIVES_PER_CLASS
    ) -> None:
        self._labels = labels.long()
        self._counts = torch.bincount(self._labels)
        self._starts = self._counts.cumsum(0) - self._counts
        self._seed = checks.seed(seed)
        self.per_class = checks.at_least("per_class", per_class, 1)

    def distinct(self, amount: int) -> Tensor:
        """(C,) int64: how many different samples of each class ``amount`` of them can be."""
        return (self._counts - 1).clamp(1, amount)

    def draw(self, projection: int) -> Tensor:
        """Representatives of projection 0, 1, ...: (C, R) int64 sample indices."""
        return self._take(projection, self.per_class, self.distinct(self.per_class))

    def pool(self, projection: int, size: int) -> tuple[Tensor, Tensor]:
        """Candidates for the representatives of a projection: (C, size) int64 sample indices, and
        (C,) how many of the first ones differ; classes of fewer than ``size`` samples repeat."""
        distinct = self._counts.clamp(max=size)
        return self._take(projection, size, distinct), distinct

    def _take(self, projection: int, amount: int, distinct: Tensor) -> Tensor:
        """(C, amount) sample indices, the first ``distinct`` (C,) of each class different."""
        # A class of n samples is shuffled anew after n // distinct projections.
        turns = self._counts // distinct
        rounds, begins = projection // turns, projection % turns * distinct
        slots = begins[:, None] + torch.arange(amount, device="cpu") % distinct[:, None]
        taken = torch.empty_like(slots)
        for number in torch.unique(rounds).tolist():
            classes = (rounds == number).nonzero().flatten()
            order = self._shuffled(number)
            taken[classes] = order[self._starts[classes, None] + slots[classes]]
        return taken

    def _shuffled(self, number: int) -> Tensor:
        """Sample indices (N,) in class order, shuffled within each class."""
        order = torch.randperm(
            len(self._labels),
            generator=generator(self._seed, "representatives", number),
            device="cpu",
        )
        return order[torch.argsort(self._labels[order], stable=True)]


def k_centers(embeddings: Tensor, amount: int, distinct: Tensor) -> Tensor:
    """Candidates near which no other candidate of their class is far: greedy k-center.

    The first is the one whose farthest fellow is nearest (the 1-center), each further one the
    candidate farthest from those chosen (Gonzalez 1985; within twice the optimal radius).

    Args:
        embeddings: (C, P, D) candidates of each class.
        amount: how many to choose.
        distinct: (C,) int64, how many of the first candidates of each class count. A class whose
            candidates are used up repeats its choices.

    Returns:
        (C, amount) int64 positions among the candidates, ties to the lower one.
    """
    distances, counted = _within_classes(embeddings, distinct)
    reach = distances.masked_fill(~counted[:, None, :], -torch.inf).amax(2)
    first = reach.masked_fill(~counted, torch.inf).argmin(1)

    def farthest(nearest: Tensor) -> Tensor:
        return nearest.masked_fill(~counted, -torch.inf).argmax(1)

    return _greedy(distances, first, farthest, amount, distinct)


def medoids(embeddings: Tensor, amount: int, distinct: Tensor) -> Tensor:
    """Candidates with the least sum of distances from every candidate to its nearest choice.

    The first is the medoid; further ones are added greedily. Arguments and result as in
    `k_centers`.
    """
    distances, counted = _within_classes(embeddings, distinct)
    of_counted = distances.masked_fill(~counted[:, None, :], 0)
    first = of_counted.sum(2).masked_fill(~counted, torch.inf).argmin(1)

    def best(nearest: Tensor) -> Tensor:
        left = torch.minimum(of_counted, nearest[:, None, :].masked_fill(~counted[:, None, :], 0))
        # A choice is at distance 0 and out of the question.
        return left.sum(2).masked_fill(~counted | (nearest < 0), torch.inf).argmin(1)

    return _greedy(distances, first, best, amount, distinct)


CHOICES = {"k_center": k_centers, "medoid": medoids}


def _within_classes(embeddings: Tensor, distinct: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (C, P, P) between the candidates of a class; which of them count, (C, P)."""
    counted = torch.arange(embeddings.shape[1], device=embeddings.device) < distinct[:, None]
    distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    return distances, counted


def _greedy(
    distances: Tensor,
    first: Tensor,
    choose: Callable[[Tensor], Tensor],
    amount: int,
    distinct: Tensor,
) -> Tensor:
    """Positions (C, amount): ``first`` (C,), and what ``choose`` says of the distances (C, P) of
    all candidates to the choices so far; those themselves are at -1."""
    rows = torch.arange(len(distances), device=distances.device)
    chosen = [first]
    nearest = distances[rows, first]
    nearest[rows, first] = -1
    for _ in range(amount - 1):
        following = choose(nearest)
        chosen.append(following)
        nearest = torch.minimum(nearest, distances[rows, following])
        nearest[rows, following] = -1
    positions = torch.stack(chosen, 1)
    usable = torch.arange(amount, device=positions.device) % distinct.clamp(max=amount)[:, None]
    return positions.gather(1, usable)
