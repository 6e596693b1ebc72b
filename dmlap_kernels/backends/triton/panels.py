"""The gradient at rows of many features: weights of pairs, a panel of rows at a time, and products.

A program of `gradient` holds some features of its rows, and others take every tile of distances
again for the next ones. Here tiles are taken once: the weights v of `gradient` are written for a
panel of rows, in memory of about one input, and multiplied with the rows of the other side.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import Weigher
from dmlap_kernels.backends.triton.configurations import (
    launch_of,
    panel_of,
    split,
    width_of,
)
from dmlap_kernels.backends.triton.factors import factors, without_near
from dmlap_kernels.backends.triton.policies import numbers_of, weighing
from dmlap_kernels.backends.triton.tile import (
    Pairs,
    Tiling,
    columns_of,
    product,
    row_block,
    rows_of,
)

# What is known of a tile: whether it has weights, of pairs that are not near and of those that are.
_ACTIVE = tl.constexpr(1)
_NEAR = tl.constexpr(2)


@triton.jit
def weights_kernel(
    pairs,
    of_rows,
    of_columns,
    weights,  # (rows of the panel, pitch): those of pairs that are not near
    sums,  # (splits, rows of the panel): of these weights
    marks,  # (blocks of the panel, tiles)
    pe,
    ne,
    top,  # first row of the panel
    pitch,
    span,
    weigh: tl.constexpr,
    slope: tl.constexpr,
    term: tl.constexpr,
    rows_weigh: tl.constexpr,
    columns_weigh: tl.constexpr,
    how: tl.constexpr,
):
    block = tl.program_id(0)
    rows, first, last, _low, _high = row_block(pairs, top // how.BM + block, how)
    local = block * how.BM + tl.arange(0, how.BM)
    at = local.to(tl.int64)[:, None] * pitch
    total = tl.zeros((how.BM,), dtype=tl.float32)
    start = tl.program_id(1) * span
    for c in range(start, tl.minimum(start + span, pitch), how.BN):
        columns = c + tl.arange(0, how.BN)
        v, lone = factors(
            pairs, rows, columns, first, last, of_rows, of_columns, pe, ne,
            weigh, slope, term, rows_weigh, columns_weigh, how,
        )  # fmt: skip
        tl.store(weights + at + columns[None, :], v)
        total += tl.sum(v, axis=1)
        mark = tl.where(tl.max(tl.abs(v)) > 0, _ACTIVE, 0)
        mark += tl.where(tl.max(tl.abs(lone)) > 0, _NEAR, 0)
        tl.store(marks + block * (pitch // how.BN) + c // how.BN, mark)
    part = tl.program_id(1) * tl.num_programs(0) * how.BM
    tl.store(sums + part + local, total)


@triton.jit
def near_kernel(
    pairs,
    of_rows,
    of_columns,
    out,  # (rows, features)
    marks,
    pe,
    ne,
    top,
    pitch,
    weigh: tl.constexpr,
    slope: tl.constexpr,
    term: tl.constexpr,
    rows_weigh: tl.constexpr,
    columns_weigh: tl.constexpr,
    MARK_ROWS: tl.constexpr,  # rows and columns of a mark, multiples of this kernel's
    MARK_COLUMNS: tl.constexpr,
    BD: tl.constexpr,
    how: tl.constexpr,
):
    """The part of near pairs, from differences."""
    block = tl.program_id(0)
    rows, first, last, _low, _high = row_block(pairs, top // how.BM + block, how)
    marks += block * how.BM // MARK_ROWS * (pitch // MARK_COLUMNS)
    feature = tl.program_id(1) * BD + tl.arange(0, BD)
    total = tl.zeros((how.BM, BD), dtype=tl.float32)
    for c in range(0, pitch, how.BN):
        if tl.load(marks + c // MARK_COLUMNS) >= _NEAR:
            columns = c + tl.arange(0, how.BN)
            _, lone = factors(
                pairs, rows, columns, first, last, of_rows, of_columns, pe, ne,
                weigh, slope, term, rows_weigh, columns_weigh, how,
            )  # fmt: skip
            total = without_near(pairs, rows, columns, lone, feature, total, how)
    at = rows.to(tl.int64)[:, None] * pairs.features + feature[None, :]
    there = (rows < rows_of(pairs))[:, None] & (feature < pairs.features)[None, :]
    tl.store(out + at, -total, mask=there)


@triton.jit
def product_kernel(
    pairs,
    weights,
    sums,  # (rows of the panel,)
    marks,
    out,  # (rows, features): the part of near pairs
    parts,  # (splits, rows of the panel, features): what is to be added, of splits after the first
    top,
    pitch,
    span,
    sparse: tl.constexpr,  # whether tiles without a weight are to be expected
    how: tl.constexpr,  # BM rows and BN features of columns, BK of which are a tile's
):
    """out + sums x - weights y"""
    block = tl.program_id(0)
    local = block * how.BM + tl.arange(0, how.BM)
    rows = top + local
    feature = tl.program_id(1) * how.BN + tl.arange(0, how.BN)
    inside = feature < pairs.features
    total = tl.zeros((how.BM, how.BN), dtype=tl.float32)
    start = tl.program_id(2) * span
    at_weights = weights + local.to(tl.int64)[:, None] * pitch
    at_y = pairs.y + feature[None, :]
    for c in range(start, tl.minimum(start + span, pitch), how.BK):
        active = True
        if sparse:
            active = tl.load(marks + block * (pitch // how.BK) + c // how.BK) % 2 != 0
        if active:
            columns = c + tl.arange(0, how.BK)
            v = tl.load(at_weights + columns[None, :])
            there = (columns < columns_of(pairs))[:, None] & inside[None, :]
            y = tl.load(at_y + columns.to(tl.int64)[:, None] * pairs.features, there, other=0.0)
            total = product(v, y, total, how)
    there = (rows < rows_of(pairs))[:, None] & inside[None, :]
    if tl.program_id(2) > 0:
        height = tl.num_programs(0) * how.BM
        part = (tl.program_id(2) - 1).to(tl.int64) * height * pairs.features
        at = local.to(tl.int64)[:, None] * pairs.features + feature[None, :]
        tl.store(parts + part + at, -total, mask=there)
    else:
        at = rows.to(tl.int64)[:, None] * pairs.features + feature[None, :]
        if how.distance == "euclidean" or how.distance == "sqeuclidean":
            near = tl.load(out + at, mask=there, other=0.0)
            x = tl.load(pairs.x + at, mask=there, other=0.0)
            total = near + tl.load(sums + local)[:, None] * x - total
        else:
            total = -total
        tl.store(out + at, total, mask=there)


def gradient(
    sides: Sides, weigher: Weigher, of_rows: Tensor | None, of_columns: Tensor | None
) -> Tensor:
    """The gradient (B, Dp) at the anchors of these sides, of rows that are not empty."""
    out = torch.empty_like(sides.x)
    height = panel_of(sides)
    panel = _Panel(sides, weigher, of_rows, of_columns, out, min(height, sides.anchors))
    for top in range(0, sides.anchors, height):
        panel.fill(top)
    return out


class _Panel:
    """The weights of a panel of rows, and its launches."""

    def __init__(
        self,
        sides: Sides,
        weigher: Weigher,
        of_rows: Tensor | None,
        of_columns: Tensor | None,
        out: Tensor,
        height: int,
    ) -> None:
        self.sides, self.out = sides, out
        self.height = height
        self.launch = launch_of("weights", sides)
        self.pitch = triton.cdiv(sides.columns, self.launch.BN) * self.launch.BN
        blocks = triton.cdiv(height, self.launch.BM)
        self.weights = out.new_empty((blocks * self.launch.BM, self.pitch))
        self.marks = torch.empty(
            (blocks, self.pitch // self.launch.BN), dtype=torch.int32, device=out.device
        )
        self.pairs = Pairs.of(sides)
        self.coefficients = of_rows, of_columns
        self.numbers = numbers_of(weigher.positive), numbers_of(weigher.negative)
        self.policy = weighing(weigher, of_rows, of_columns)
        self.sparse = weigher.sparse

    def fill(self, top: int) -> None:
        """Fills the rows of the gradient from ``top`` on."""
        rows = min(self.height, self.sides.anchors - top)
        blocks = triton.cdiv(rows, self.launch.BM)
        sums = self._weigh(top, blocks)
        if self.sides.distance in ("euclidean", "sqeuclidean"):
            self._add_near(top, rows)
        parts = self._multiply(top, blocks, sums)
        if len(parts):
            self.out[top : top + rows] += parts[:, :rows].sum(0)

    def _weigh(self, top: int, blocks: int) -> Tensor:
        launch = self.launch
        splits, span = split(self.pitch // launch.BN, blocks, self.out.device)
        sums = self.out.new_empty((splits, blocks * launch.BM))
        weights_kernel[(blocks, splits)](
            self.pairs,
            *self.coefficients,
            self.weights,
            sums,
            self.marks,
            *self.numbers,
            top,
            self.pitch,
            span * launch.BN,
            *self.policy,
            Tiling.of(self.sides, launch.BM, launch.BN, launch.BK),
            **launch.options,
        )
        return sums[0] if splits == 1 else sums.sum(0)

    def _add_near(self, top: int, rows: int) -> None:
        launch = launch_of("near", self.sides)
        width = width_of(self.out.shape[1])
        chunks = triton.cdiv(self.out.shape[1], width)
        near_kernel[(triton.cdiv(rows, launch.BM), chunks)](
            self.pairs,
            *self.coefficients,
            self.out,
            self.marks,
            *self.numbers,
            top,
            self.pitch,
            *self.policy,
            self.launch.BM,
            self.launch.BN,
            width,
            Tiling.of(self.sides, launch.BM, launch.BN, launch.BK),
            **launch.options,
        )

    def _multiply(self, top: int, blocks: int, sums: Tensor) -> Tensor:
        launch, features = launch_of("product", self.sides), self.out.shape[1]
        chunks = triton.cdiv(features, launch.BN)
        splits, span = split(self.pitch // launch.BK, blocks * chunks, self.out.device)
        parts = self.out.new_empty((splits - 1, blocks * launch.BM, features))
        product_kernel[(blocks, chunks, splits)](
            self.pairs,
            self.weights,
            sums,
            self.marks,
            self.out,
            parts,
            top,
            self.pitch,
            span * launch.BK,
            self.sparse,
            Tiling.of(self.sides, launch.BM, launch.BN, launch.BK),
            **launch.options,
        )
        return parts
