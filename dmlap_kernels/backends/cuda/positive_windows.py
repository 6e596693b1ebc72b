"""Triplets other than the hardest, and the angular loss: losses in which each positive pair meets
negatives.

A positive's rank is its number among its anchor's positives. Forward is one launch. Backward stores
numbers of each positive pair, so it goes through windows of ranks to bound the memory. Only the
device knows how many positives the largest class has: there are launches for the largest class
possible, and those that no class reaches end at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlap_kernels.backends.cuda.arguments import Inputs, addresses_of, arguments_of, queue_of
from dmlap_kernels.backends.device.packing import Sides, norms, runs
from dmlap_kernels.backends.device.sweeps import Both, Triplets

# About how many positive pairs a window has, and its ranks at least.
MOST_PAIRS = 2**22
LEAST_RANKS = 64


class _Rule(NamedTuple):
    """What a positive pair and each negative add, as ``csrc/include/dmlap/cuda/windows.h`` says."""

    kind: str
    triplets: Triplets
    tangent: float = 0.0

    @staticmethod
    def of(triplets: Triplets) -> _Rule:
        return _Rule("swapped" if triplets.swap else "triplets", triplets)

    @staticmethod
    def angular(tangent: float) -> _Rule:
        return _Rule("angular", Triplets("all", 0.0), tangent)

    def arguments(self) -> tuple[str, tuple[float, float, float], float]:
        return self.kind, _numbers(self.triplets), self.tangent


def triplet_sums(extension: Any, sides: Sides, triplets: Triplets) -> Tensor:
    """`Sweeps.triplet_sums`."""
    if triplets.mining == "all":
        return _sums(extension, sides, _Rule.of(triplets))
    sums = sides.x.new_zeros(sides.anchors, 5, dtype=torch.float64)
    out = [sums, None, None, None, None]
    if sides.anchors and sides.columns:
        miner = _Miner(extension, sides, references_of(sides), triplets, None, out)
        miner.mine((0, sides.columns))
    return sums


def triplet_gradient(extension: Any, sides: Sides, triplets: Triplets, weight: Tensor) -> Both:
    """`Sweeps.triplet_gradient`."""
    if triplets.mining == "all":
        return _gradient(extension, sides, _Rule.of(triplets), weight)
    gx = torch.zeros_like(sides.x) if sides.x_grad else None
    gy = torch.zeros_like(sides.y) if sides.y_grad and not sides.self_case else None
    # Whether it is the references' part, and where that goes.
    parts = (False, gx), (True, gx if sides.self_case else gy)
    among, most = references_of(sides), largest(sides)
    shape = ranks_of(sides), sides.anchors
    pairs = [sides.x.new_empty(shape) if one else None for one in (True, True, triplets.swap)]
    negative = sides.first.new_empty(shape)
    miner = _Miner(extension, sides, among, triplets, weight, [None, *pairs, negative])
    of_sides, tables = arguments_of(sides), addresses_of(*pairs, negative)
    queue = queue_of(sides.x)
    for window in windows(sides):
        miner.mine(window)
        for references, to in parts:
            if to is not None:
                extension.cuda_mined_gradient(
                    of_sides, window, most.data_ptr(), tables, references, to.data_ptr(), queue
                )
    return gx, gy


def angular_terms(extension: Any, sides: Sides, tangent: float) -> Tensor:
    """`Sweeps.angular_terms`."""
    return _sums(extension, sides, _Rule.angular(tangent))[:, :2].T.float()


def angular_gradient(extension: Any, sides: Sides, tangent: float, weight: Tensor) -> Both:
    """`Sweeps.angular_gradient`."""
    return _gradient(extension, sides, _Rule.angular(tangent), weight)


def ranks_of(sides: Sides) -> int:
    """Ranks of a window."""
    most = max(0, sides.columns - int(sides.self_case))
    return min(most, max(LEAST_RANKS, MOST_PAIRS // max(1, sides.anchors)))


def windows(sides: Sides) -> Iterator[tuple[int, int]]:
    """The first rank of each window, and its number of ranks."""
    ranks = ranks_of(sides)
    if sides.anchors and ranks:
        for base in range(0, sides.columns - int(sides.self_case), ranks):
            yield base, ranks


def largest(sides: Sides) -> Tensor:
    """(1,) int64, the most positives of an anchor."""
    positives = sides.positives
    return positives.amax(0, keepdim=True) if sides.anchors else positives.new_zeros(1)


def references_of(sides: Sides) -> Sides:
    """The references as anchors of themselves."""
    if sides.self_case:
        return sides
    first, last = runs(sides.labels_y, sides.labels_y)
    return sides._replace(
        x=sides.y,
        x_norms=norms(sides.y, sides.distance, True),
        first=first,
        last=last,
        col_first=first,
        col_last=last,
        order_x=sides.order_y,
        labels_x=sides.labels_y,
        self_case=True,
        itself=None,
    )


class _Miner:
    """Mines negatives for windows of positives, to add to the sums or, with weights (B,), to
    differentiate."""

    def __init__(
        self,
        extension: Any,
        sides: Sides,
        among: Sides,
        triplets: Triplets,
        weight: Tensor | None,
        out: list[Tensor | None],
    ) -> None:
        self.extension = extension
        numbers = sides.numbers.contiguous()
        draw = float(triplets.cutoff), float(triplets.beyond), float(triplets.seed)
        parameters = (*_numbers(triplets), *draw)
        mining = triplets.mining, parameters, sides.features, numbers.data_ptr()
        weight = None if weight is None else weight.float().contiguous()
        self.given = arguments_of(sides), arguments_of(among), mining
        self.outputs = [*addresses_of(weight), addresses_of(*out), queue_of(sides.x)]
        self.kept = sides, among, numbers, weight, out  # whose addresses these are

    def mine(self, window: tuple[int, int]) -> None:
        self.extension.cuda_mined(*self.given, window, *self.outputs)


def _numbers(triplets: Triplets) -> tuple[float, float, float]:
    """As ``csrc/include/dmlap/policies/triplet.h`` reads them."""
    return float(triplets.margin), float(triplets.smooth), float(triplets.swap)


def _sums(extension: Any, sides: Sides, rule: _Rule) -> Tensor:
    """(B, 5) float64 as in `Sweeps.triplet_sums`, over all pairs of a positive and a negative."""
    sums = sides.x.new_zeros(sides.anchors, 5, dtype=torch.float64)
    among = references_of(sides)
    if sides.anchors and sides.columns:
        extension.cuda_window_sums(
            arguments_of(sides),
            arguments_of(among),
            rule.arguments(),
            (0, sides.columns),
            0,
            addresses_of(sums, None, None, None),
            queue_of(sums),
        )
    return sums


def _gradient(extension: Any, sides: Sides, rule: _Rule, weight: Tensor) -> Both:
    among, most = references_of(sides), largest(sides)
    gx = _Parts(extension, sides) if sides.x_grad else None
    gy = None
    if sides.y_grad and not sides.self_case:
        gy = _Parts(extension, sides.swapped(), among)
    # Pairs of a positive and a negative are of two references.
    of_references = gx if sides.self_case else gy
    parts = [("both" if sides.self_case else "anchors", sides, gx)]
    parts.append(("references", sides.swapped(), gy))
    parts.append(("positives", among, of_references if rule.kind != "triplets" else None))
    shape = ranks_of(sides), sides.anchors
    wanted = True, True, rule.kind == "angular"
    tables = [sides.x.new_empty(shape) if one else None for one in wanted]
    of_sides, of_among, numbers = arguments_of(sides), arguments_of(among), rule.arguments()
    queue, largest_at, outputs = queue_of(sides.x), most.data_ptr(), addresses_of(None, *tables)
    with Inputs(weight) as (weights,):
        calls = [
            ([arguments_of(rows), of_sides, of_among], name, to.parts.data_ptr())
            for name, rows, to in parts
            if to is not None
        ]
        inputs = [weights, *addresses_of(*tables)]
        for window in windows(sides):
            extension.cuda_window_sums(of_sides, of_among, numbers, window, weights, outputs, queue)
            for of_all, rows_are, to in calls:
                extension.cuda_window_gradient(
                    of_all, numbers, window, largest_at, rows_are, inputs, to, queue
                )
    return (None if gx is None else gx.total(), None if gy is None else gy.total())


class _Parts:
    """A gradient (B, Dp) at rows that are the anchors of all these sides, in parts by columns."""

    def __init__(self, extension: Any, *sides: Sides) -> None:
        splits = max(extension.cuda_gradient_splits(arguments_of(one)) for one in sides)
        x = sides[0].x
        self.parts = x.new_zeros(splits, *x.shape)

    def total(self) -> Tensor:
        return self.parts.sum(0)
