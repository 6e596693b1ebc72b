"""Triplets other than the hardest, and the angular loss: launches over the positives of each
anchor by number, its slots.

Forward is one launch. Backward keeps numbers of each positive pair, and so goes through windows of
slots: how many positives the largest class has is known on the device alone, so there are as many
launches as the largest class possible needs, and those that no class reaches end at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlap_kernels.backends.cuda.arguments import Inputs, addresses_of, arguments_of, queue_of
from dmlap_kernels.backends.device.packing import Sides, norms, runs
from dmlap_kernels.backends.device.sweeps import Both, Triplets

# Positive pairs that numbers are kept of at a time, about, and slots of a window at least.
MOST_PAIRS = 2**22
LEAST_SLOTS = 64

_MINING = {"semihard": 0, "distance_weighted": 1}
_KINDS = {"triplets": 0, "swapped": 1, "angular": 2}
_ROWS = {"both": 0, "anchors": 1, "references": 2, "positives": 3}


class _Rule(NamedTuple):
    """What a positive pair and each negative add, as ``csrc/include/dmlap/cuda/slots.h`` says."""

    kind: str
    triplets: Triplets
    tangent: float = 0.0

    @staticmethod
    def of(triplets: Triplets) -> _Rule:
        return _Rule("swapped" if triplets.swap else "triplets", triplets)

    @staticmethod
    def angular(tangent: float) -> _Rule:
        return _Rule("angular", Triplets("all", 0.0), tangent)

    def arguments(self) -> tuple[int, tuple[float, float, float], float]:
        return _KINDS[self.kind], _numbers(self.triplets), self.tangent


def triplet_sums(extension: Any, sides: Sides, triplets: Triplets) -> Tensor:
    """`Sweeps.triplet_sums`."""
    if triplets.mining == "all":
        return _sums(extension, sides, _Rule.of(triplets))
    sums = sides.x.new_zeros(sides.anchors, 5, dtype=torch.float64)
    out = [sums, None, None, None, None]
    _mine(extension, sides, references_of(sides), triplets, (0, sides.columns), None, out)
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
    for window in windows(sides):
        shape = window[1], sides.anchors
        wanted = True, True, triplets.swap
        pairs = [sides.x.new_empty(shape) if one else None for one in wanted]
        negative = sides.first.new_empty(shape)
        out = [None, *pairs, negative]
        _mine(extension, sides, among, triplets, window, weight, out)
        for references, to in parts:
            if to is not None:
                extension.cuda_mined_gradient(
                    arguments_of(sides),
                    window,
                    most.data_ptr(),
                    addresses_of(*pairs, negative),
                    references,
                    to.data_ptr(),
                    queue_of(to),
                )
    return gx, gy


def angular_terms(extension: Any, sides: Sides, tangent: float) -> Tensor:
    """`Sweeps.angular_terms`."""
    return _sums(extension, sides, _Rule.angular(tangent))[:, :2].T.float()


def angular_gradient(extension: Any, sides: Sides, tangent: float, weight: Tensor) -> Both:
    """`Sweeps.angular_gradient`."""
    return _gradient(extension, sides, _Rule.angular(tangent), weight)


def windows(sides: Sides) -> Iterator[tuple[int, int]]:
    """The first slot of every window, and how many slots it has."""
    if not sides.anchors or not sides.columns:
        return
    most = sides.columns - int(sides.self_case)
    slots = min(most, max(LEAST_SLOTS, MOST_PAIRS // sides.anchors))
    for base in range(0, most, max(1, slots)):
        yield base, slots


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
    )


def _mine(
    extension: Any,
    sides: Sides,
    among: Sides,
    triplets: Triplets,
    window: tuple[int, int],
    weight: Tensor | None,
    out: list[Tensor | None],
) -> None:
    """Mines the slots of a window: adds to the sums, or given weights (B,) differentiates."""
    if not sides.anchors or not sides.columns:
        return
    numbers = sides.order_x.contiguous()
    draw = float(triplets.cutoff), float(triplets.beyond), float(triplets.seed)
    mining = (
        _MINING[triplets.mining],
        (*_numbers(triplets), *draw),
        sides.features,
        numbers.data_ptr(),
    )
    with Inputs(weight) as (weights,):
        extension.cuda_mined(
            arguments_of(sides),
            arguments_of(among),
            mining,
            window,
            weights,
            addresses_of(*out),
            queue_of(sides.x),
        )


def _numbers(triplets: Triplets) -> tuple[float, float, float]:
    """As ``csrc/include/dmlap/policies/triplet.h`` reads them."""
    return float(triplets.margin), float(triplets.smooth), float(triplets.swap)


def _sums(extension: Any, sides: Sides, rule: _Rule) -> Tensor:
    """(B, 5) float64 as in `Sweeps.triplet_sums`, over all pairs of a positive and a negative."""
    sums = sides.x.new_zeros(sides.anchors, 5, dtype=torch.float64)
    among = references_of(sides)
    if sides.anchors and sides.columns:
        extension.cuda_slot_sums(
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
    with Inputs(weight) as (weights,):
        for window in windows(sides):
            shape = window[1], sides.anchors
            wanted = True, True, rule.kind == "angular"
            tables = [sides.x.new_empty(shape) if one else None for one in wanted]
            extension.cuda_slot_sums(
                arguments_of(sides),
                arguments_of(among),
                rule.arguments(),
                window,
                weights,
                addresses_of(None, *tables),
                queue_of(sides.x),
            )
            given = rule, window, most, [weights, *addresses_of(*tables)]
            if gx is not None:
                gx.add("both" if sides.self_case else "anchors", sides, sides, among, *given)
            if gy is not None:
                gy.add("references", sides.swapped(), sides, among, *given)
            if rule.kind != "triplets" and of_references is not None:
                of_references.add("positives", among, sides, among, *given)
    return (None if gx is None else gx.total(), None if gy is None else gy.total())


class _Parts:
    """A gradient (B, Dp) at rows that are the anchors of all these sides, in parts by columns."""

    def __init__(self, extension: Any, *sides: Sides) -> None:
        self.extension = extension
        splits = max(extension.cuda_gradient_splits(arguments_of(one)) for one in sides)
        x = sides[0].x
        self.parts = x.new_zeros(splits, *x.shape)

    def add(
        self,
        rows_are: str,
        rows: Sides,
        sides: Sides,
        among: Sides,
        rule: _Rule,
        window: tuple[int, int],
        most: Tensor,
        tables: list[int],
    ) -> None:
        """Adds a window's part of the pairs of these rows with their columns."""
        self.extension.cuda_slot_gradient(
            [arguments_of(rows), arguments_of(sides), arguments_of(among)],
            rule.arguments(),
            window,
            most.data_ptr(),
            _ROWS[rows_are],
            tables,
            self.parts.data_ptr(),
            queue_of(self.parts),
        )

    def total(self) -> Tensor:
        return self.parts.sum(0)
