"""The gradient at rows of many features: coefficients of pairs, a panel of rows at a time, and
products.

A program of `gradient` holds some features of its rows, and others take every tile of distances
again for the next ones. Here tiles are taken once: the coefficients v of the pairs are written for
a panel of rows, in memory of about one input, and multiplied with the rows of the other side.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.triton.coefficients import coefficients, minus_differences
from dmlap_kernels.backends.triton.configurations import launch_of, panel_of, split
from dmlap_kernels.backends.triton.policies import KernelPairGradient
from dmlap_kernels.backends.triton.tile import (
    Pairs,
    Tiling,
    columns_of,
    product,
    row_block,
    rows_of,
)

# What is known of a tile: whether it has coefficients, of pairs that were not recomputed and of
# those that were.
_ACTIVE = tl.constexpr(1)
_RECOMPUTED = tl.constexpr(2)


@triton.jit
def weights_kernel(
    pairs,
    gradient,  # a `KernelPairGradient`
    weights,  # (rows of the panel, pitch): coefficients of pairs that were not recomputed
    sums,  # (splits, rows of the panel): of these
    marks,  # (blocks of the panel, tiles)
    top,  # first row of the panel
    pitch,
    span,
    how: tl.constexpr,
):
    number = tl.program_id(0)
    block = row_block(pairs, top // how.BM + number, how)
    local = number * how.BM + tl.arange(0, how.BM)
    at = local.to(tl.int64)[:, None] * pitch
    total = tl.zeros((how.BM,), dtype=tl.float32)
    start = tl.program_id(1) * span
    for c in range(start, tl.minimum(start + span, pitch), how.BN):
        columns = c + tl.arange(0, how.BN)
        v, recomputed = coefficients(pairs, block, columns, gradient, how)
        tl.store(weights + at + columns[None, :], v)
        total += tl.sum(v, axis=1)
        mark = tl.where(tl.max(tl.abs(v)) > 0, _ACTIVE, 0)
        mark += tl.where(tl.max(tl.abs(recomputed)) > 0, _RECOMPUTED, 0)
        tl.store(marks + number * (pitch // how.BN) + c // how.BN, mark)
    part = tl.program_id(1) * tl.num_programs(0) * how.BM
    tl.store(sums + part + local, total)


@triton.jit
def recomputed_kernel(
    pairs,
    gradient,
    out,  # (rows, features)
    marks,
    top,
    pitch,
    MARK_ROWS: tl.constexpr,  # rows and columns of a mark, multiples of this kernel's
    MARK_COLUMNS: tl.constexpr,
    how: tl.constexpr,
):
    """The part of recomputed pairs, from differences."""
    number = tl.program_id(0)
    block = row_block(pairs, top // how.BM + number, how)
    rows = block.rows
    marks += number * how.BM // MARK_ROWS * (pitch // MARK_COLUMNS)
    feature = tl.program_id(1) * how.BD + tl.arange(0, how.BD)
    total = tl.zeros((how.BM, how.BD), dtype=tl.float32)
    for c in range(0, pitch, how.BN):
        if tl.load(marks + c // MARK_COLUMNS) >= _RECOMPUTED:
            columns = c + tl.arange(0, how.BN)
            _, v = coefficients(pairs, block, columns, gradient, how)
            total = minus_differences(pairs, rows, columns, v, feature, total, how)
    at = rows.to(tl.int64)[:, None] * pairs.features + feature[None, :]
    there = (rows < rows_of(pairs))[:, None] & (feature < pairs.features)[None, :]
    tl.store(out + at, -total, mask=there)


@triton.jit
def product_kernel(
    pairs,
    weights,
    sums,  # (rows of the panel,)
    marks,
    out,  # (rows, features): the part of recomputed pairs
    parts,  # (splits, rows of the panel, features): what is to be added, of splits after the first
    top,
    pitch,
    span,
    sparse: tl.constexpr,  # whether tiles without a coefficient are to be expected
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
            recomputed = tl.load(out + at, mask=there, other=0.0)
            x = tl.load(pairs.x + at, mask=there, other=0.0)
            total = recomputed + tl.load(sums + local)[:, None] * x - total
        else:
            total = -total
        tl.store(out + at, total, mask=there)


def gradient(sides: Sides, gradient: KernelPairGradient, sparse: bool) -> Tensor:
    """The gradient (B, Dp) at the anchors of these sides, of rows that are not empty; ``sparse``
    says whether many pairs may have no coefficient, those of whole tiles among them."""
    out = torch.empty_like(sides.x)
    height = panel_of(sides)
    panel = _Panel(sides, gradient, sparse, out, min(height, sides.anchors))
    for top in range(0, sides.anchors, height):
        panel.fill(top)
    return out


class _Panel:
    """The coefficients of a panel of rows, and its launches."""

    def __init__(
        self, sides: Sides, gradient: KernelPairGradient, sparse: bool, out: Tensor, height: int
    ) -> None:
        self.sides, self.gradient, self.sparse, self.out = sides, gradient, sparse, out
        self.height = height
        self.launch = launch_of("weights", sides)
        self.pitch = triton.cdiv(sides.columns, self.launch.BN) * self.launch.BN
        blocks = triton.cdiv(height, self.launch.BM)
        self.weights = out.new_empty((blocks * self.launch.BM, self.pitch))
        self.marks = torch.empty(
            (blocks, self.pitch // self.launch.BN), dtype=torch.int32, device=out.device
        )
        self.pairs = Pairs.of(sides)

    def fill(self, top: int) -> None:
        """Fills the rows of the gradient from ``top`` on."""
        rows = min(self.height, self.sides.anchors - top)
        blocks = triton.cdiv(rows, self.launch.BM)
        sums = self._differentiate(top, blocks)
        if self.sides.distance in ("euclidean", "sqeuclidean"):
            self._add_recomputed(top, rows)
        parts = self._multiply(top, blocks, sums)
        if len(parts):
            self.out[top : top + rows] += parts[:, :rows].sum(0)

    def _differentiate(self, top: int, blocks: int) -> Tensor:
        launch = self.launch
        splits, span = split(self.pitch // launch.BN, blocks, self.out.device)
        sums = self.out.new_empty((splits, blocks * launch.BM))
        weights_kernel[(blocks, splits)](
            self.pairs,
            self.gradient,
            self.weights,
            sums,
            self.marks,
            top,
            self.pitch,
            span * launch.BN,
            Tiling.of(self.sides, launch),
            **launch.options,
        )
        return sums[0] if splits == 1 else sums.sum(0)

    def _add_recomputed(self, top: int, rows: int) -> None:
        launch, features = launch_of("recomputed", self.sides), self.out.shape[1]
        chunks = triton.cdiv(features, launch.held(features))
        recomputed_kernel[(triton.cdiv(rows, launch.BM), chunks)](
            self.pairs,
            self.gradient,
            self.out,
            self.marks,
            top,
            self.pitch,
            self.launch.BM,
            self.launch.BN,
            Tiling.of(self.sides, launch),
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
            Tiling.of(self.sides, launch),
            **launch.options,
        )
        return parts
