"""Triplets other than the hardest: launches over the positives of each anchor by number, its slots.

Forward is one launch. Backward keeps numbers of each positive pair, and so goes through windows of
slots: how many positives the largest class has is known on the device alone, so there are as many
launches as the largest class possible needs, and those that no class reaches end at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.cuda.arguments import Inputs, addresses_of, arguments_of, queue_of
from dmlap_kernels.backends.device.packing import Sides, norms, runs
from dmlap_kernels.backends.device.sweeps import Triplets

# Positive pairs that numbers are kept of at a time, about, and slots of a window at least.
MOST_PAIRS = 2**22
LEAST_SLOTS = 64

_MINING = {"semihard": 0, "distance_weighted": 1}


def triplet_sums(extension: Any, sides: Sides, triplets: Triplets) -> Tensor:
    """`Sweeps.triplet_sums`."""
    sums = sides.x.new_zeros(sides.anchors, 5, dtype=torch.float64)
    _mine(extension, sides, triplets, (0, sides.columns), None, [sums, None, None, None, None])
    return sums


def triplet_gradient(
    extension: Any, sides: Sides, triplets: Triplets, weight: Tensor
) -> tuple[Tensor, Tensor | None]:
    """`Sweeps.triplet_gradient`."""
    gx = torch.zeros_like(sides.x)
    gy = gx if sides.self_case else torch.zeros_like(sides.y)
    for window in windows(sides):
        shape = window[1], sides.anchors
        pairs = [gx.new_empty(shape) if wanted else None for wanted in (True, True, triplets.swap)]
        negative = sides.first.new_empty(shape)
        _mine(extension, sides, triplets, window, weight, [None, *pairs, negative])
        most = largest(sides)
        extension.cuda_mined_gradient(
            arguments_of(sides),
            window,
            most.data_ptr(),
            addresses_of(*pairs, negative),
            addresses_of(gx, gy),
            queue_of(gx),
        )
    return gx, None if sides.self_case else gy


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
    return sides.positives.amax(0, keepdim=True)


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
    triplets: Triplets,
    window: tuple[int, int],
    weight: Tensor | None,
    out: list[Tensor | None],
) -> None:
    """Mines the slots of a window: adds to the sums, or given weights (B,) differentiates."""
    if not sides.anchors or not sides.columns:
        return
    among = references_of(sides) if triplets.swap else sides
    numbers = sides.order_x.contiguous()
    rule = float(triplets.margin), float(triplets.smooth), float(triplets.swap)
    draw = float(triplets.cutoff), float(triplets.beyond), float(triplets.seed)
    mining = _MINING[triplets.mining], (*rule, *draw), sides.features, numbers.data_ptr()
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
