"""Triplets other than the hardest, and the angular loss: launches over windows of positives.

How many positives the largest class has is known on the device alone. So there are as many launches
as the largest class possible needs, few for ordinary batches, and a program whose window no class
reaches ends at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import Both, Triplets
from dmlap_kernels.backends.triton import slot_mining, slot_sums
from dmlap_kernels.backends.triton.configurations import Launch
from dmlap_kernels.backends.triton.slot_gradient import slot_gradient
from dmlap_kernels.backends.triton.tile import INTERPRETED, NEAR, itself_of

# Positive pairs that buffers hold, about; the least positives of an anchor in a window; those
# that a program takes.
MOST_PAIRS = 1 if INTERPRETED else 2**22
LEAST_SLOTS = 8 if INTERPRETED else 64
GROUP = 4 if INTERPRETED else 16
# Not measured. Larger tiles of the last two would spill.
LAUNCHES = {
    "positive_distances": Launch(64, 0, 64, 4, 2),
    "semihard": Launch(32, 64, 32, 4, 2),
    "draw": Launch(16, 32, 32, 4, 2),
    "mined_terms": Launch(32, 0, 32, 4, 2),
    "slot_sums": Launch(16, 32, 32, 4, 2),
    "slot_gradient": Launch(16, 32, 32, 4, 1),
}
_INTERPRETED = Launch(32, 32, 32, 4, 1)
# Columns are split among so many programs at most, where the results of parts can meet.
_MOST_SPLITS = 16

_MINED, _PLAIN, _SWAPPED, _ANGULAR = range(4)


class _Task(NamedTuple):
    """What the kernels are asked for: the kind of `slot_sums`, the numbers of the loss."""

    kind: int
    triplets: Triplets
    spread: float = 0.0
    pull: float = 0.0

    @property
    def third(self) -> bool:
        """Whether pairs of a positive and a negative count."""
        return self.kind == _ANGULAR or self.triplets.swap


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
    if triplets.mining == "all":
        return _Task(_SWAPPED if triplets.swap else _PLAIN, triplets)
    return _Task(_MINED, triplets)


def _angular(tangent: float) -> _Task:
    square = tangent**2
    return _Task(_ANGULAR, Triplets("all", 0.0), 4 * square, 2 * (1 + square))


def _sums(sides: Sides, task: _Task) -> Tensor:
    groups = 1 if task.kind == _MINED else window_of(sides) // GROUP
    sums = torch.zeros(groups, sides.anchors, 5, dtype=torch.float64, device=sides.x.device)
    call = _Call(sides, task, sums)
    for base in call.windows():
        call.fill(base, None)
    found = sums.sum(0)
    if task.kind != _MINED:
        found[:, 4] = (sides.positives * sides.negatives).double()
    return found


def _gradient(sides: Sides, task: _Task, weight: Tensor) -> Both:
    call = _Call(sides, task, None)
    gx = torch.zeros_like(sides.x) if sides.x_grad else None
    gy = None if sides.self_case or not sides.y_grad else torch.zeros_like(sides.y)
    weight = weight.float().contiguous()
    for base in call.windows():
        call.fill(base, weight)
        if gx is not None:
            call.add_gradient(base, weight, gx, "both" if sides.self_case else "anchors")
        if gy is not None:
            call.add_gradient(base, weight, gy, "references")
        # Pairs of a positive and a negative are of two references.
        of_references = gx if sides.self_case else gy
        if task.third and of_references is not None:
            call.add_gradient(base, weight, of_references, "positives")
    return gx, gy


def launch(name: str) -> tuple[int, int, int, dict[str, Any]]:
    """Rows and columns of a kernel's tile, its features, and what else a launch says."""
    chosen = _INTERPRETED if INTERPRETED else LAUNCHES[name]
    return chosen.BM, chosen.BN, chosen.BK, chosen.options


def window_of(sides: Sides) -> int:
    """Positives of each anchor in a window, whole groups."""
    wanted = min(sides.columns, MOST_PAIRS // max(1, sides.anchors))
    return triton.cdiv(max(LEAST_SLOTS, wanted), GROUP) * GROUP


def wide(width: int) -> int:
    """Features of a gradient that one program gathers."""
    return min(32 if INTERPRETED else 64, triton.next_power_of_2(width))


class _Call:
    """The buffers of one call, and its launches."""

    def __init__(self, sides: Sides, task: _Task, sums: Tensor | None) -> None:
        self.sides, self.task = sides, task
        self.width = sides.x.shape[1]
        self.itself, self.named = itself_of(sides)
        device = sides.x.device
        self.window = window_of(sides)
        shape = (sides.anchors, self.window)
        backward = sums is None
        mined = task.kind == _MINED

        def buffer(wanted: bool, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape if wanted else (1, 1), dtype=dtype, device=device)

        self.dp = buffer(True)
        self.best = buffer(mined, torch.int64)
        self.fallback = torch.full((sides.anchors,), -(2**63), dtype=torch.int64, device=device)
        self.by_ap = buffer(backward)
        self.by_an = buffer(backward and mined)
        self.by_pn = buffer(backward and mined and task.third)
        self.share = buffer(backward and task.kind == _ANGULAR)
        self.mined = buffer(backward and mined, torch.int32)
        self.sums = buffer(False, torch.float64) if sums is None else sums
        if sides.anchors and sides.columns:
            self.x_class, self.y_class = classes_of(sides)
            self.largest = sides.positives.max().reshape(1)

    def windows(self) -> Iterator[int]:
        """The first slot of every window."""
        sides = self.sides
        if sides.anchors and sides.columns:
            yield from range(0, sides.columns - int(sides.self_case), self.window)

    def fill(self, base: int, weight: Tensor | None) -> None:
        """Fills the buffers of a window; adds to the sums, or given weights (B,) differentiates."""
        sides, task = self.sides, self.task
        rows, _, chunk, meta = launch("positive_distances")
        slot_mining.positive_distances[(triton.cdiv(sides.anchors, rows), self.window // GROUP)](
            sides.x, sides.y, sides.first, sides.last, self.itself, self.dp, self.best,
            base, self.window, sides.anchors, self.width,
            MINED=task.kind == _MINED, ITSELF=self.named, DISTANCE=sides.distance,
            GROUP=GROUP, ROWS=rows, CHUNK=chunk, **meta,
        )  # fmt: skip
        if task.kind == _MINED:
            self._mine(base)
            self._mined_terms(base, weight)
        else:
            self._slot_sums(base, weight)

    def _pairs(self) -> tuple[Tensor, ...]:
        sides = self.sides
        return (
            sides.x, sides.y, sides.x_norms, sides.y_norms,
            self.x_class, self.y_class, sides.first, sides.last, self.itself,
        )  # fmt: skip

    def _kind_of_distance(self) -> dict[str, Any]:
        sides = self.sides
        return {
            "ITSELF": self.named,
            "DISTANCE": sides.distance,
            "PRECISION": sides.precision,
            "NEAR": NEAR[sides.precision],
        }

    def _mine(self, base: int) -> None:
        sides, triplets = self.sides, self.task.triplets
        rows, columns, chunk, meta = launch("semihard" if triplets.mining == "semihard" else "draw")
        blocks = triton.cdiv(sides.anchors, rows)
        shape = {"ROWS": rows, "COLUMNS": columns, "CHUNK": chunk}
        options = self._kind_of_distance() | shape | meta
        sizes = base, self.window, sides.anchors, sides.columns, self.width
        if triplets.mining == "semihard":
            tiles = triton.cdiv(sides.columns, columns)
            each = triton.cdiv(tiles, _MOST_SPLITS)
            slot_mining.semihard[(blocks, triton.cdiv(tiles, each))](
                *self._pairs(), self.dp, self.best, self.fallback, *sizes, each * columns, **options
            )
            return
        slot_mining.draw[(blocks,)](
            *self._pairs(), sides.order_x, self.best, self.fallback, *sizes,
            slot_mining.mixed(triplets.seed), triplets.cutoff**2, triplets.beyond**2,
            (2 - sides.features) / 2, (3 - sides.features) / 2, **options,
        )  # fmt: skip

    def _mined_terms(self, base: int, weight: Tensor | None) -> None:
        sides, triplets = self.sides, self.task.triplets
        rows, _, chunk, meta = launch("mined_terms")
        slot_mining.mined_terms[(triton.cdiv(sides.anchors, rows),)](
            sides.x, sides.y, sides.first, sides.last, self.itself,
            self.dp, self.best, self.fallback,
            self.dp if weight is None else weight, self.sums,
            self.by_ap, self.by_an, self.by_pn, self.mined,
            base, self.window, triplets.margin, sides.anchors, self.width,
            SMOOTH=triplets.smooth, SWAP=triplets.swap, BACKWARD=weight is not None,
            ITSELF=self.named, DISTANCE=sides.distance,
            ROWS=rows, CHUNK=chunk, **meta,
        )  # fmt: skip

    def _slot_sums(self, base: int, weight: Tensor | None) -> None:
        sides, task = self.sides, self.task
        rows, columns, chunk, meta = launch("slot_sums")
        slot_sums.slot_sums[(triton.cdiv(sides.anchors, rows), self.window // GROUP)](
            *self._pairs(), self.dp, self.dp if weight is None else weight, self.sums,
            self.by_ap, self.share, base, self.window, task.triplets.margin, task.spread, task.pull,
            sides.anchors, sides.columns, self.width,
            KIND=task.kind, SMOOTH=task.triplets.smooth, BACKWARD=weight is not None,
            GROUP=GROUP, ROWS=rows, COLUMNS=columns, CHUNK=chunk,
            **self._kind_of_distance(), **meta,
        )  # fmt: skip

    def add_gradient(self, base: int, weight: Tensor, gradient: Tensor, rows_are: str) -> None:
        sides, task = self.sides, self.task
        rows, columns, chunk, meta = launch("slot_gradient")
        features = wide(self.width)
        grid = triton.cdiv(gradient.shape[0], rows), triton.cdiv(self.width, features)
        slot_gradient[grid](
            *self._pairs(), sides.col_first, sides.col_last, self.largest,
            self.dp, weight, self.by_ap, self.by_an, self.by_pn, self.share, self.mined,
            gradient, base, self.window, task.triplets.margin, task.spread,
            sides.anchors, sides.columns, self.width,
            ROWS_ARE=rows_are, KIND=task.kind, SMOOTH=task.triplets.smooth,
            ROWS=rows, COLUMNS=columns, CHUNK=chunk, WIDE=features,
            **self._kind_of_distance(), **meta,
        )  # fmt: skip


def classes_of(sides: Sides) -> tuple[Tensor, Tensor]:
    """Numbers (B,) and (N,) int32, equal where labels are, of classes that have rows on both sides.

    Others have -2 among the anchors and -1 among the references: they are in no triplet but as a
    negative.
    """
    begin = sides.first.long().clamp(max=sides.columns - 1)
    x = torch.where(sides.last > sides.first, sides.col_first[begin], -2)
    y = torch.where(sides.col_last > sides.col_first, sides.col_first, -1)
    return x.int(), y.int()
