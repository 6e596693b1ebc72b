"""A tile of distances: what every sweep is made of.

A kernel owns a block of anchors and goes through tiles of columns. Tensors that all kernels read
come as one `Pairs`, compile-time choices as one `Tiling`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Squared distances below this share of |x|^2 + |y|^2 are taken again from differences: what the
# rounding of products leaves of them is then less than a few parts in ten thousand ("highest").
NEAR = {"highest": 2e-2, "high": 5e-2, "medium": 1e-1}

# Which pairs of an anchor and itself there are among rows and columns, and so left out: none;
# those of equal numbers; those of which a list has the column of each row, or the row of each
# column.
APART = tl.constexpr(0)
SELF = tl.constexpr(1)
ROWS_NAMED = tl.constexpr(2)
COLUMNS_NAMED = tl.constexpr(3)


def itself_of(sides: Sides) -> tuple[Tensor, int]:
    """The list (any tensor where there is none), and which of these it is."""
    if sides.itself is not None:
        return sides.itself, ROWS_NAMED.value
    if sides.col_itself is not None:
        return sides.col_itself, COLUMNS_NAMED.value
    return sides.first, (SELF if sides.self_case else APART).value


class Pairs(NamedTuple):
    """`Sides` as a kernel reads them; in kernels ``x`` and the others are pointers.

    Triton compiles anew for numbers that 16 divides. Features are such ones; of rows and columns
    there are 16 times as many as here said, so that one kernel serves batches of every size.
    """

    x: Any  # (rows, features)
    y: Any  # (columns, features)
    x_norms: Any  # (rows,)
    y_norms: Any  # (columns,)
    first: Any  # (rows,)
    last: Any  # (rows,)
    itself: Any  # as `itself_of` has it
    rows_16: int
    columns_16: int
    features: int

    @staticmethod
    def of(sides: Sides) -> Pairs:
        sizes = 16 * sides.anchors, 16 * sides.columns, sides.x.shape[1]
        tensors = sides.x, sides.y, sides.x_norms, sides.y_norms, sides.first, sides.last
        return Pairs(*tensors, itself_of(sides)[0], *sizes)


@dataclass(frozen=True)
class Tiling:
    """What a kernel is compiled for: distance, precision, and the tile's rows, columns, features.

    Triton's compiler before 3.9 wants each of them to be a constexpr of its own. Its interpreter
    takes plain values, as it does for parameters: that of 3.8 cannot compare with the product of a
    constexpr and a tensor.
    """

    distance: tl.constexpr
    precision: tl.constexpr
    near: tl.constexpr
    self_case: tl.constexpr
    itself: tl.constexpr
    BM: tl.constexpr
    BN: tl.constexpr
    BK: tl.constexpr

    @staticmethod
    def of(sides: Sides, BM: int, BN: int, BK: int) -> Tiling:
        constants = (
            sides.distance,
            sides.precision,
            NEAR[sides.precision],
            sides.self_case,
            itself_of(sides)[1],
            BM,
            BN,
            BK,
        )
        return Tiling(*(constants if INTERPRETED else map(tl.constexpr, constants)))


@triton.jit
def rows_of(pairs):
    return pairs.rows_16 // 16


@triton.jit
def columns_of(pairs):
    return pairs.columns_16 // 16


@triton.jit
def product(a, b, total, how: tl.constexpr):
    """total + a @ b, of float32 (M, K) and (K, N), in the precision asked for."""
    if how.precision == "medium":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), total)
    elif how.precision == "high":
        return tl.dot(a, b, total, input_precision="tf32")
    else:
        return tl.dot(a, b, total, input_precision="tf32x3")


@triton.jit
def row_block(pairs, block, how: tl.constexpr):
    """A block's anchors (BM,), their runs, and the least run of columns that holds all of these."""
    rows = block * how.BM + tl.arange(0, how.BM)
    exists = rows < rows_of(pairs)
    first = tl.load(pairs.first + rows, mask=exists, other=0)
    last = tl.load(pairs.last + rows, mask=exists, other=0)
    low = tl.min(tl.where(exists, first, columns_of(pairs)))
    high = tl.max(last)
    return rows, first, last, low, high


@triton.jit
def apart(pairs, rows, columns, how: tl.constexpr):
    """Mask (BM, BN) of the pairs that are not those of an anchor and itself."""
    if how.itself == ROWS_NAMED:
        own = tl.load(pairs.itself + rows, mask=rows < rows_of(pairs), other=-1)
        return own[:, None] != columns[None, :]
    elif how.itself == COLUMNS_NAMED:
        own = tl.load(pairs.itself + columns, mask=columns < columns_of(pairs), other=-1)
        return rows[:, None] != own[None, :]
    else:
        return rows[:, None] != columns[None, :]


@triton.jit
def sides_of(pairs, rows, columns, first, last, how: tl.constexpr):
    """Masks (BM, BN) of the positive and the negative pairs of a tile."""
    same = (columns[None, :] >= first[:, None]) & (columns[None, :] < last[:, None])
    exists = (rows < rows_of(pairs))[:, None] & (columns < columns_of(pairs))[None, :]
    positive = same & exists
    if how.itself == SELF:
        positive &= apart(pairs, rows, columns, how)
    elif how.itself != APART:
        exists &= apart(pairs, rows, columns, how)
        positive &= exists
    return positive, exists & ~same


@triton.jit
def distances_and_near(pairs, rows, columns, how: tl.constexpr):
    """`distances`, and 1.0 for the pairs (BM, BN) that were taken from differences, near as they
    are, else 0.0 (a mask would have to pass through shared memory, which holds no single bits)."""
    at_x = pairs.x + rows.to(tl.int64)[:, None] * pairs.features
    at_y = pairs.y + columns.to(tl.int64)[None, :] * pairs.features
    row_exists, column_exists = rows < rows_of(pairs), columns < columns_of(pairs)
    dots = tl.zeros((how.BM, how.BN), dtype=tl.float32)
    for k in range(0, pairs.features, how.BK):
        feature = k + tl.arange(0, how.BK)
        inside = feature < pairs.features
        x = tl.load(at_x + feature[None, :], row_exists[:, None] & inside[None, :], other=0.0)
        y = tl.load(at_y + feature[:, None], column_exists[None, :] & inside[:, None], other=0.0)
        dots = product(x, y, dots, how)
    a = tl.load(pairs.x_norms + rows, mask=row_exists, other=0.0)
    b = tl.load(pairs.y_norms + columns, mask=column_exists, other=0.0)
    total = a[:, None] + b[None, :]
    near = tl.zeros((how.BM, how.BN), dtype=tl.int1)
    if how.distance == "cosine" or how.distance == "dot":
        q = total - dots
    else:
        q = tl.maximum(total - 2.0 * dots, 0.0)
        near = (q < how.near * total) & row_exists[:, None] & column_exists[None, :]
        if how.itself != APART:
            near &= apart(pairs, rows, columns, how)
        if tl.max(near.to(tl.int32)) > 0:
            q = tl.where(near, _from_differences(pairs, rows, columns, how), q)
    if how.distance == "euclidean":
        q = tl.sqrt(q)
    return q, tl.where(near, 1.0, 0.0)


@triton.jit
def _from_differences(pairs, rows, columns, how: tl.constexpr):
    # Addresses of 32 bits beside one of 64, because registers are few here.
    row, column = tl.min(rows), tl.min(columns)
    of_rows, of_columns = (rows - row) * pairs.features, (columns - column) * pairs.features
    at_x = pairs.x + row.to(tl.int64) * pairs.features
    at_y = pairs.y + column.to(tl.int64) * pairs.features
    row_exists, column_exists = rows < rows_of(pairs), columns < columns_of(pairs)
    total = tl.zeros((how.BM, how.BN), dtype=tl.float32)
    for feature in range(0, pairs.features):
        x = tl.load(at_x + feature + of_rows, mask=row_exists, other=0.0)
        y = tl.load(at_y + feature + of_columns, mask=column_exists, other=0.0)
        difference = x[:, None] - y[None, :]
        total += difference * difference
    return total


@triton.jit
def distances(pairs, rows, columns, how: tl.constexpr):
    """(BM, BN) distances of a block's anchors ``rows`` (BM,) to ``columns`` (BN,).

    What lies outside of the sides is some finite number.
    """
    d, _ = distances_and_near(pairs, rows, columns, how)
    return d
