"""A tile of distances: what every sweep is made of.

A kernel owns a block of rows and goes through tiles of columns. Tensors that all kernels read come
as one `Pairs`, compile-time choices as one `Tiling`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.triton.configurations import INTERPRETED, Launch

# Squared distances below this share of |x|^2 + |y|^2 are recomputed from differences: what the
# rounding of products leaves of them is then less than a few parts in ten thousand ("highest").
RECOMPUTE = {"highest": 2e-2, "high": 5e-2, "medium": 1e-1}

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


def constants(*values: Any) -> Iterable[Any]:
    """Values as fields of what a kernel is compiled for.

    Triton's compiler before 3.9 wants each of them to be a constexpr of its own. Its interpreter
    takes plain values, as it does for parameters: that of 3.8 cannot compare with the product of a
    constexpr and a tensor.
    """
    return values if INTERPRETED else map(tl.constexpr, values)


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
    """What a kernel is compiled for: distance, precision, and the tile's rows, columns, features;
    features of a gradient that a program holds.

    ``norms`` says whether norms are read: for products they only tell which columns exist;
    ``matched`` whether a match names the positive pairs of a panel, and not equal labels.
    """

    distance: tl.constexpr
    precision: tl.constexpr
    recompute: tl.constexpr
    self_case: tl.constexpr
    itself: tl.constexpr
    norms: tl.constexpr
    matched: tl.constexpr
    BM: tl.constexpr
    BN: tl.constexpr
    BK: tl.constexpr
    BD: tl.constexpr

    @staticmethod
    def of(sides: Sides, launch: Launch, all_exist: bool = False) -> Tiling:
        kind = sides.distance, sides.precision, RECOMPUTE[sides.precision]
        norms = not all_exist or sides.distance not in ("cosine", "dot")
        blocks = launch.BM, launch.BN, launch.BK, launch.held(sides.x.shape[1])
        named = itself_of(sides)[1]
        return Tiling(*constants(*kind, sides.self_case, named, norms, False, *blocks))


@functools.cache
def tiling(
    distance: str,
    precision: str,
    self_case: bool,
    named: int,
    launch: Launch,
    features: int,
    matched: bool = False,
) -> Tiling:
    """Of panels; ``named`` is which of the pairs of an anchor and itself there are."""
    kind = distance, precision, RECOMPUTE[precision]
    norms = distance not in ("cosine", "dot")
    blocks = launch.BM, launch.BN, launch.BK, launch.held(features)
    return Tiling(*constants(*kind, self_case, named, norms, matched, *blocks))


class Block(NamedTuple):
    """A block's anchors (BM,), their runs, and the least run of columns that holds all of these."""

    rows: Any
    first: Any
    last: Any
    low: Any
    high: Any


@triton.jit
def rows_of(pairs):
    return pairs.rows_16 // 16


@triton.jit
def columns_of(pairs):
    return pairs.columns_16 // 16


@triton.jit
def exchanged(pairs):
    """The columns against the rows, for `tile`; the runs are not theirs."""
    return Pairs(
        pairs.y,
        pairs.x,
        pairs.y_norms,
        pairs.x_norms,
        pairs.first,
        pairs.last,
        pairs.itself,
        pairs.columns_16,
        pairs.rows_16,
        pairs.features,
    )


@triton.jit
def among_columns(pairs):
    """The columns against themselves, for `tile`; the runs are not theirs."""
    return Pairs(
        pairs.y,
        pairs.y,
        pairs.y_norms,
        pairs.y_norms,
        pairs.first,
        pairs.last,
        pairs.itself,
        pairs.columns_16,
        pairs.columns_16,
        pairs.features,
    )


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
def row_block(pairs, number, how: tl.constexpr):
    rows = number * how.BM + tl.arange(0, how.BM)
    exists = rows < rows_of(pairs)
    first = tl.load(pairs.first + rows, mask=exists, other=0)
    last = tl.load(pairs.last + rows, mask=exists, other=0)
    low = tl.min(tl.where(exists, first, columns_of(pairs)))
    high = tl.max(last)
    return Block(rows, first, last, low, high)


@triton.jit
def apart(pairs, rows, row_in, columns, column_in, itself: tl.constexpr):
    """Mask (BM, BN) of the pairs that are not those of an anchor and itself."""
    if itself == ROWS_NAMED:
        own = tl.load(pairs.itself + rows, mask=row_in, other=-1)
        return own[:, None] != columns[None, :]
    elif itself == COLUMNS_NAMED:
        own = tl.load(pairs.itself + columns, mask=column_in, other=-1)
        return rows[:, None] != own[None, :]
    else:
        return rows[:, None] != columns[None, :]


@triton.jit
def own_column(pairs, rows, row_in, how: tl.constexpr):
    """The column (BM,) int64 that is the row itself, -1 for none; meaningless where all are
    APART."""
    if how.itself == ROWS_NAMED:
        return tl.load(pairs.itself + rows, mask=row_in, other=-1).to(tl.int64)
    else:
        return rows


@triton.jit
def sides_of(pairs, block, columns, how: tl.constexpr):
    """Masks (BM, BN) of the positive and the negative pairs of a tile."""
    rows = block.rows
    same = (columns[None, :] >= block.first[:, None]) & (columns[None, :] < block.last[:, None])
    row_in, column_in = rows < rows_of(pairs), columns < columns_of(pairs)
    exists = row_in[:, None] & column_in[None, :]
    positive = same & exists
    if how.itself == SELF:
        positive &= apart(pairs, rows, row_in, columns, column_in, how.itself)
    elif how.itself != APART:
        exists &= apart(pairs, rows, row_in, columns, column_in, how.itself)
        positive &= exists
    return positive, exists & ~same


@triton.jit
def tile(pairs, rows, row_in, columns, column_in, itself: tl.constexpr, how: tl.constexpr):
    """(BM, BN) distances of ``rows`` (BM,) to ``columns`` (BN,), and 1.0 for the pairs that were
    recomputed from differences, else 0.0 (a mask would have to pass through shared memory, which
    holds no single bits).

    Of what the masks leave out nothing is read, and the distance is some finite number. Indices are
    int32 where they are as near as in a block, else int64. ``itself`` is that of the two sides.
    """
    at_x = pairs.x + rows.to(tl.int64)[:, None] * pairs.features
    at_y = pairs.y + columns.to(tl.int64)[None, :] * pairs.features
    dots = tl.zeros((how.BM, how.BN), dtype=tl.float32)
    for k in range(0, pairs.features, how.BK):
        feature = k + tl.arange(0, how.BK)
        inside = feature < pairs.features
        x = tl.load(at_x + feature[None, :], row_in[:, None] & inside[None, :], other=0.0)
        y = tl.load(at_y + feature[:, None], column_in[None, :] & inside[:, None], other=0.0)
        dots = product(x, y, dots, how)
    return of_products(pairs, dots, rows, row_in, columns, column_in, itself, how)


@triton.jit
def of_products(
    pairs, dots, rows, row_in, columns, column_in, itself: tl.constexpr, how: tl.constexpr
):
    """`tile` of products (BM, BN), wherever they come from."""
    recomputed = tl.zeros((how.BM, how.BN), dtype=tl.int1)
    if not how.norms:
        q = 1.0 - dots if how.distance == "cosine" else -dots
    elif how.distance == "cosine" or how.distance == "dot":
        q = norms_of(pairs, rows, row_in, columns, column_in) - dots
    else:
        total = norms_of(pairs, rows, row_in, columns, column_in)
        q = tl.maximum(total - 2.0 * dots, 0.0, propagate_nan=tl.PropagateNan.ALL)
        recomputed = (q < how.recompute * total) & row_in[:, None] & column_in[None, :]
        if itself != APART:
            recomputed &= apart(pairs, rows, row_in, columns, column_in, itself)
        if tl.max(recomputed.to(tl.int32)) > 0:
            exact = from_differences(pairs, rows, row_in, columns, column_in, how)
            q = tl.where(recomputed, exact, q)
    if how.distance == "euclidean":
        q = tl.sqrt(q)
    return q, tl.where(recomputed, 1.0, 0.0)


@triton.jit
def norms_of(pairs, rows, row_in, columns, column_in):
    a = tl.load(pairs.x_norms + rows, mask=row_in, other=0.0)
    b = tl.load(pairs.y_norms + columns, mask=column_in, other=0.0)
    return a[:, None] + b[None, :]


@triton.jit
def from_differences(pairs, rows, row_in, columns, column_in, how: tl.constexpr):
    # Addresses of 32 bits beside one of 64, because registers are few here.
    row, column = tl.min(rows), tl.min(columns)
    of_rows, of_columns = (rows - row) * pairs.features, (columns - column) * pairs.features
    at_x = pairs.x + row.to(tl.int64) * pairs.features
    at_y = pairs.y + column.to(tl.int64) * pairs.features
    total = tl.zeros((how.BM, how.BN), dtype=tl.float32)
    for feature in range(0, pairs.features):
        x = tl.load(at_x + feature + of_rows, mask=row_in, other=0.0)
        y = tl.load(at_y + feature + of_columns, mask=column_in, other=0.0)
        difference = x[:, None] - y[None, :]
        total += difference * difference
    return total


@triton.jit
def distances(pairs, rows, columns, how: tl.constexpr):
    """`tile` of rows (BM,) and columns (BN,) that may lie beyond the last ones."""
    row_in, column_in = rows < rows_of(pairs), columns < columns_of(pairs)
    d, _ = tile(pairs, rows, row_in, columns, column_in, how.itself, how)
    return d


@triton.jit
def tile_among_columns(pairs, rows, row_in, columns, column_in, how: tl.constexpr):
    """The distances of `tile`, where ``rows`` are columns too, which all exist."""
    d, _ = tile(among_columns(pairs), rows, row_in, columns, column_in, SELF, how)
    return d


@triton.jit
def tile_exchanged(pairs, rows, row_in, columns, column_in, how: tl.constexpr):
    """The distances of `tile`, where ``rows`` are columns and ``columns`` rows."""
    if how.itself == ROWS_NAMED:
        d, _ = tile(exchanged(pairs), rows, row_in, columns, column_in, COLUMNS_NAMED, how)
    else:
        d, _ = tile(exchanged(pairs), rows, row_in, columns, column_in, how.itself, how)
    return d


@triton.jit
def was_recomputed(pairs, rows, row_in, columns, column_in, d, how: tl.constexpr):
    """What `tile` said of these distances, but for rounding and as a mask; of (sq)euclidean ones.

    For kernels that have no registers to keep it.
    """
    squared = d * d if how.distance == "euclidean" else d
    return squared < how.recompute * norms_of(pairs, rows, row_in, columns, column_in)


@triton.jit
def listed(pairs, rows, columns, exists, how: tl.constexpr):
    """Distances (BM,) of rows (BM,) to columns (BM,), pair by pair; indices are int64."""
    total = tl.zeros((how.BM,), tl.float32)
    for k in range(0, pairs.features, how.BK):
        feature = k + tl.arange(0, how.BK)
        mask = exists[:, None] & (feature < pairs.features)[None, :]
        x_at = rows[:, None] * pairs.features + feature[None, :]
        y_at = columns[:, None] * pairs.features + feature[None, :]
        x = tl.load(pairs.x + x_at, mask=mask, other=0.0)
        y = tl.load(pairs.y + y_at, mask=mask, other=0.0)
        if how.distance == "cosine" or how.distance == "dot":
            total += tl.sum(x * y, 1)
        else:
            total += tl.sum((x - y) * (x - y), 1)
    if how.distance == "cosine":
        return 1 - total
    elif how.distance == "dot":
        return -total
    elif how.distance == "euclidean":
        return tl.sqrt(total)
    else:
        return total
