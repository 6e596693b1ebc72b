"""Nearest rows and hard classes where all products are one panel: one kernel packs, the library
multiplies, one kernel chooses.

Larger searches go by the primitives of `dmlap_kernels.backends.device.search`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from dmlap_kernels.backends.device.packing import TILE_WIDTH
from dmlap_kernels.backends.triton import configurations
from dmlap_kernels.backends.triton.angular_kernels import runs_kernel
from dmlap_kernels.backends.triton.kinds import blocks_in
from dmlap_kernels.backends.triton.launching import Launch, Launcher, Layout
from dmlap_kernels.backends.triton.row_kernels import pack_kernel
from dmlap_kernels.backends.triton.search_kernels import (
    hard_classes_kernel,
    nearest_of_panel_kernel,
)
from dmlap_kernels.backends.triton.steps import plain
from dmlap_kernels.backends.triton.tile import APART, RECOMPUTE, SELF, tiling
from dmlap_kernels.problem import HardClasses, Nearest

# Neighbours and hard classes are to be exact.
PRECISION = "highest"
# Neighbours that the smaller tile of the kernel keeps.
FEW = 64


class _Kind:
    """What searches have in common whose tensors have the same shapes, and what Triton compiled."""

    def __init__(self, x: Tensor, y: Tensor, self_case: bool, distance: str, unit: bool) -> None:
        self.self_case, self.distance = self_case, distance
        self.known: dict[Any, dict[Any, Any]] = {}
        self.count, features = x.shape
        self.columns = y.shape[0]
        self.width = -(-features // TILE_WIDTH) * TILE_WIDTH
        self.stride = configurations.row_floats(self.columns)
        layout = self.layout = Layout()
        # Packed rows, norms, lengths.
        self.x = self._side(self.count)
        self.y = self.x if self_case else self._side(self.columns)
        row = configurations.row_launch()
        blocks = blocks_in(self.count, row.BM)
        flags = blocks + (0 if self_case else blocks_in(self.columns, row.BM))
        self.flags, self.panel = layout.add(flags), layout.add(self.count, self.stride)
        # Where classes begin, and of each row the number of its class.
        self.classes = (
            layout.add(self.count + 1, dtype=torch.int32),
            layout.add(self.count, dtype=torch.int32),
        )
        others = (
            self.count, self.columns, features, self.width, *x.stride(), *y.stride(), blocks, unit,
            False, False, row.BM, row.BK,
        )  # fmt: skip
        self.pack = Launch((flags, 1, 1), others, {"num_warps": row.warps})
        self.runs = Launch((1, 1, 1), (self.count, configurations.ROWS_REDUCED), {"num_warps": 8})

    def _side(self, rows: int) -> tuple[int, int, int]:
        add = self.layout.add
        return add(rows, self.width), add(rows), add(rows, dtype=torch.float64)

    def nearest(self, k: int) -> Launch:
        launch = configurations.panel_launch("nearest" if k <= FEW else "nearest_128")
        named = SELF.value if self.self_case else APART.value
        how = tiling(self.distance, PRECISION, self.self_case, named, launch, self.width)
        others = self.count, self.columns, self.width, k, how
        return Launch((blocks_in(self.count, launch.BM), 1, 1), others, launch.options)

    def hard_classes(self, k: int, margin: float) -> Launch:
        lanes = max(16, triton.next_power_of_2(self.count))
        others = self.count, self.width, k, margin, self.distance, RECOMPUTE[PRECISION], lanes
        return Launch((self.count, 1, 1), others, {"num_warps": 4 if lanes <= 1024 else 8})


_kinds: dict[Any, _Kind] = {}
# Where searches are of ever new sizes, what the last ones had in common is kept.
_MOST_KINDS = 256


def _kind_of(x: Tensor, y: Tensor | None, distance: str, unit: bool) -> _Kind:
    given = (x,) if y is None else (x, y)
    tensors = [(one.shape, one.dtype, one.data_ptr() % 16, one.stride()) for one in given]
    key = x.device, distance, unit, *tensors
    found = _kinds.get(key)
    if found is None:
        if len(_kinds) >= _MOST_KINDS:
            _kinds.pop(next(iter(_kinds)))
        other = x if y is None else y
        found = _kinds[key] = _Kind(x, other, y is None, distance, unit)
    return found


class _Search:
    """The buffer and launches of one search; the caller sees to the precision of products."""

    def __init__(
        self, x: Tensor, y: Tensor | None, distance: str, normalize: bool, words: Any
    ) -> None:
        self.given = plain(x), plain(x if y is None else y)
        unit = normalize or distance == "cosine"
        kind = self.kind = _kind_of(
            self.given[0], None if y is None else self.given[1], distance, unit
        )
        self.buffer = x.new_empty(kind.layout.floats, dtype=torch.float32)
        self.launch = Launcher(kind.known.setdefault(words, {}))
        self.at = self.launch.pieces(kind.layout, self.buffer)

    def panel(self) -> Any:
        """All products, as kernels take them."""
        kind, at, launch = self.kind, self.at, self.launch
        x, y = kind.x, kind.y
        # Rows are split for no products here.
        launch(
            "pack", pack_kernel, kind.pack, *map(launch.pointer, self.given), at[x[0]], at[y[0]],
            at[x[0]], at[y[0]], at[x[1]], at[y[1]], at[x[2]], at[y[2]], at[kind.flags],
        )  # fmt: skip
        out = self._piece(kind.panel, (kind.count, kind.columns), kind.stride)
        left = self._piece(x[0], (kind.count, kind.width), kind.width)
        right = self._piece(y[0], (kind.columns, kind.width), kind.width)
        torch.mm(left, right.T, out=out)
        return at[kind.panel]

    def _piece(self, number: int, shape: tuple[int, int], stride: int) -> Tensor:
        begin = self.kind.layout.pieces[number].begin // 4
        return self.buffer.as_strided(shape, (stride, 1), begin)


def nearest(x: Tensor, y: Tensor | None, k: int, distance: str, normalize: bool) -> Nearest:
    search = _Search(x, y, distance, normalize, ("nearest", k <= FEW))
    kind, at, launch = search.kind, search.at, search.launch
    panel = search.panel()
    distances = search.buffer.new_empty(kind.count, k)
    indices = torch.empty(kind.count, k, dtype=torch.int64, device=x.device)
    launch(
        "nearest", nearest_of_panel_kernel, kind.nearest(k), panel, at[kind.x[0]], at[kind.y[0]],
        at[kind.x[1]], at[kind.y[1]], launch.pointer(distances), launch.pointer(indices),
    )  # fmt: skip
    launch.done()
    return Nearest(distances, indices)


def hard_classes(
    rows: Tensor, labels: Tensor, k: int, margin: float, distance: str, normalize: bool
) -> HardClasses:
    """Waits for the device at its end, to know how many classes there are."""
    search = _Search(rows, None, distance, normalize, "hard_classes")
    kind, at, launch = search.kind, search.at, search.launch
    names, order = labels.sort(stable=True)
    classes = [at[number] for number in kind.classes]
    by_class = launch.pointer(names), launch.pointer(order)
    launch("runs", runs_kernel, kind.runs, *by_class, *classes)
    panel = search.panel()
    # Whole numbers and others, of as many classes as there may be.
    whole = torch.empty(kind.count * (k + 1) + 1, dtype=torch.int64, device=rows.device)
    found, neighbors = whole[: kind.count + 1], whole[kind.count + 1 :].view(kind.count, k)
    scores, distances = (search.buffer.new_empty(kind.count, k) for _ in range(2))
    launch(
        "classes", hard_classes_kernel, kind.hard_classes(k, margin), panel, at[kind.x[0]],
        at[kind.x[1]], *by_class, *classes,
        *map(launch.pointer, (found, neighbors, scores, distances)),
    )  # fmt: skip
    launch.done()
    number = int(found[-1])
    return HardClasses(found[:number], neighbors[:number], scores[:number], distances[:number])
