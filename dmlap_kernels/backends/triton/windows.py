"""Triplets other than the hardest, and the angular loss: launches over windows of positives.

How many positives the largest class has is known on the device alone. So there are as many launches
as the largest class possible needs, few for ordinary batches, and a program whose window no class
reaches ends at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import Both, Triplets
from dmlap_kernels.backends.triton import draws, window_mining
from dmlap_kernels.backends.triton.configurations import (
    POSITIVES,
    Launch,
    launch_of,
    semihard_splits,
    window_of,
)
from dmlap_kernels.backends.triton.positives import Slopes, Terms, Window
from dmlap_kernels.backends.triton.tile import Pairs, Tiling
from dmlap_kernels.backends.triton.window_gradient import window_gradient
from dmlap_kernels.backends.triton.window_sums import window_sums


class _Task(NamedTuple):
    """What the kernels are asked for: the kind of `Terms`, the numbers of the loss."""

    kind: str
    triplets: Triplets
    spread: float = 0.0
    pull: float = 0.0

    @property
    def mined(self) -> bool:
        return self.kind == "mined"

    @property
    def third(self) -> bool:
        """Whether pairs of a positive and a negative count."""
        return self.kind == "angular" or self.triplets.swap


def triplet_sums(sides: Sides, triplets: Triplets) -> Tensor:
    """`Sweeps.triplet_sums`."""
    return _sums(sides, _task(triplets))


def triplet_gradient(sides: Sides, triplets: Triplets, weight: Tensor) -> Both:
    """`Sweeps.triplet_gradient`."""
    return _gradient(sides, _task(triplets), weight)


def angular_terms(sides: Sides, tangent: float) -> Tensor:
    """`Sweeps.angular_terms`."""
    return _sums(sides, _angular(tangent))[:, :2].T.float()


def angular_gradient(sides: Sides, tangent: float, weight: Tensor) -> Both:
    """`Sweeps.angular_gradient`."""
    return _gradient(sides, _angular(tangent), weight)


def _task(triplets: Triplets) -> _Task:
    return _Task("all" if triplets.mining == "all" else "mined", triplets)


def _angular(tangent: float) -> _Task:
    square = tangent**2
    return _Task("angular", Triplets("all", 0.0), 4 * square, 2 * (1 + square))


def _sums(sides: Sides, task: _Task) -> Tensor:
    groups = 1 if task.mined else window_of(sides) // POSITIVES
    sums = torch.zeros(groups, sides.anchors, 5, dtype=torch.float64, device=sides.x.device)
    if sides.anchors and sides.columns:
        call = _Call(sides, task, backward=False)
        for window in call.windows():
            call.fill(window, None, sums)
    found = sums.sum(0)
    if not task.mined:
        found[:, 4] = (sides.positives * sides.negatives).double()
    return found


def _gradient(sides: Sides, task: _Task, weight: Tensor) -> Both:
    gx = torch.zeros_like(sides.x) if sides.x_grad else None
    gy = None if sides.self_case or not sides.y_grad else torch.zeros_like(sides.y)
    if not (sides.anchors and sides.columns):
        return gx, gy
    call = _Call(sides, task, backward=True)
    weight = weight.float().contiguous()
    for window in call.windows():
        call.fill(window, weight, None)
        if gx is not None:
            call.add_gradient(window, weight, gx, "both" if sides.self_case else "anchors")
        if gy is not None:
            call.add_gradient(window, weight, gy, "references")
        # Pairs of a positive and a negative are of two references.
        of_references = gx if sides.self_case else gy
        if task.third and of_references is not None:
            call.add_gradient(window, weight, of_references, "positives")
    return gx, gy


class _Call:
    """The buffers of one call, of sides that are not empty, and its launches."""

    def __init__(self, sides: Sides, task: _Task, backward: bool) -> None:
        self.sides, self.task = sides, task
        self.pairs = Pairs.of(sides)
        self.terms = Terms.of(task.kind, task.third, task.triplets.smooth)
        self.largest = sides.positives.max().reshape(1)
        size, device = window_of(sides), sides.x.device

        def buffer(dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty((sides.anchors, size), dtype=dtype, device=device)

        mined, third = task.mined, task.third
        self.window = Window(
            0,
            size,
            *classes_of(sides),
            sides.col_first,
            sides.col_last,
            buffer(),
            buffer(torch.int64) if mined else None,
            torch.full((sides.anchors,), -(2**63), dtype=torch.int64, device=device),
            task.triplets.margin,
            task.spread,
            task.pull,
        )
        self.slopes = None
        if backward:
            self.slopes = Slopes(
                buffer(),
                buffer() if mined else None,
                buffer() if mined and third else None,
                buffer() if task.kind == "angular" else None,
                buffer(torch.int32) if mined else None,
            )

    def windows(self) -> Iterator[Window]:
        sides, size = self.sides, self.window.size
        for base in range(0, sides.columns - int(sides.self_case), size):
            yield self.window._replace(base=base)

    def fill(self, window: Window, weight: Tensor | None, sums: Tensor | None) -> None:
        """Fills the buffers of a window; adds to the sums, or given weights (B,) differentiates."""
        groups = window.size // POSITIVES
        launch, how, blocks = self._launch("positive_distances")
        window_mining.positive_distances[(blocks, groups)](
            self.pairs, window, self.task.mined, how, **launch.options
        )
        if not self.task.mined:
            launch, how, blocks = self._launch("window_sums")
            window_sums[(blocks, groups)](
                self.pairs, window, weight, sums, self.slopes, self.terms, how, **launch.options
            )
            return
        self._mine(window)
        launch, how, blocks = self._launch("mined_terms")
        window_mining.mined_terms[(blocks,)](
            self.pairs, window, weight, sums, self.slopes, self.terms, how, **launch.options
        )

    def _mine(self, window: Window) -> None:
        sides, triplets = self.sides, self.task.triplets
        if triplets.mining == "semihard":
            launch, how, blocks = self._launch("semihard")
            splits, span = semihard_splits(sides, launch)
            window_mining.semihard[(blocks, splits)](
                self.pairs, window, span, how, **launch.options
            )
            return
        launch, how, blocks = self._launch("draw")
        window_mining.draw[(blocks,)](
            self.pairs,
            window,
            sides.numbers,
            draws.mixed(triplets.seed),
            draws.Density.of(triplets.cutoff, triplets.beyond, sides.features),
            how,
            **launch.options,
        )

    def add_gradient(self, window: Window, weight: Tensor, gradient: Tensor, rows_are: str) -> None:
        launch, how, _ = self._launch("window_gradient")
        rows, features = gradient.shape
        grid = triton.cdiv(rows, launch.BM), triton.cdiv(features, launch.held(features))
        window_gradient[grid](
            self.pairs,
            window,
            weight,
            self.slopes,
            self.largest,
            gradient,
            rows_are,
            self.terms,
            how,
            **launch.options,
        )

    def _launch(self, kernel: str) -> tuple[Launch, Tiling, int]:
        """How a kernel is launched, and blocks of anchors."""
        launch = launch_of(kernel, self.sides)
        return (
            launch,
            Tiling.of(self.sides, launch, all_exist=True),
            triton.cdiv(self.sides.anchors, launch.BM),
        )


def classes_of(sides: Sides) -> tuple[Tensor, Tensor]:
    """Numbers (B,) and (N,) int32, equal where labels are, of classes that have rows on both sides.

    Others have -2 among the anchors and -1 among the references: they are in no triplet but as a
    negative.
    """
    begin = sides.first.long().clamp(max=sides.columns - 1)
    x = torch.where(sides.last > sides.first, sides.col_first[begin], -2)
    y = torch.where(sides.col_last > sides.col_first, sides.col_first, -1)
    return x.int(), y.int()
