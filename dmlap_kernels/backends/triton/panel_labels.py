"""Which pairs of a panel are positive: those of equal labels, or those that a match names.

Of a match (`Tiling.matched`) there is a byte for each pair of the panel in the place of the labels
of its rows: bit 0 where the pair is positive for the row, bit 1 where it is for the column, which
only the weights of a batch with itself ask for. Its rows are as far apart as those of the panel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.tile import APART, apart


@triton.jit
def row_stride(columns):
    """Floats between rows of a panel: from a multiple of 16 on, four are loaded at a time."""
    return tl.cdiv(columns, 16).to(tl.int64) * 16


@triton.jit
def own_labels_of(labels_x, rows, place, columns, how: tl.constexpr):
    """(BM, 1): the labels of rows; of a match, where the bytes of the rows begin."""
    if how.matched:
        return labels_x + place.to(tl.int64)[:, None] * row_stride(columns)
    else:
        return tl.load(labels_x + rows)[:, None]


@triton.jit
def _bytes_at(own_labels, column):
    """Addresses of which four neighbours are read at a time, as the numbers of a panel are."""
    return tl.max_contiguous(own_labels + column, (1, 4))


@triton.jit
def alike_at(own_labels, labels_y, column, how: tl.constexpr):
    """(BM, BN): which pairs with columns (1, BN) that all exist are positive."""
    if how.matched:
        return (tl.load(_bytes_at(own_labels, column)) & 1) != 0
    else:
        return own_labels == tl.load(labels_y + column)


@triton.jit
def alike_both_ways(own_labels, labels_y, column, column_in, how: tl.constexpr):
    """The same where not all columns exist, for the row and for the column."""
    if how.matched:
        bits = tl.load(_bytes_at(own_labels, column), mask=column_in, other=0)
        return (bits & 1) != 0, (bits & 2) != 0
    else:
        alike = own_labels == tl.load(labels_y + column, mask=column_in, other=0)
        return alike, alike


@triton.jit
def sides_by_label(
    pairs, labels_x, rows, row_in, columns, column_in, itself: tl.constexpr, how: tl.constexpr
):
    """Masks (BM, BN) of the positive and the negative pairs; ``labels_x`` (BM,) of the rows. Labels
    lie where `Pairs` has the ends of runs."""
    labels_y = tl.load(pairs.last + columns, mask=column_in, other=0)
    exists = row_in[:, None] & column_in[None, :]
    if itself != APART:
        exists &= apart(pairs, rows, row_in, columns, column_in, itself)
    alike = labels_x[:, None] == labels_y[None, :]
    return exists & alike, exists & (labels_x[:, None] != labels_y[None, :])
