"""What the rows of a tile's columns count with in the gradient at the tile's rows.

With v_ij = d loss / d d_ij over d_ij (euclidean), times 2 (sqeuclidean), or as it is, the gradient
at x_i is (sum of v_ij) x_i - sum of v_ij y_j, for products without the first part. In the self case
a pair weighs with the coefficients of both of its ends, so that a sweep over all tiles holds both
halves. (Half of the tiles would have to leave parts at their columns, too: in an order that is not
fixed, or in memory of many gradients.)
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.tile import columns_of, distances_and_near, rows_of, sides_of


@triton.jit
def factors(
    pairs, rows, columns, first, last, of_rows, of_columns, pe, ne,
    weigh: tl.constexpr, slope: tl.constexpr, term: tl.constexpr,
    rows_weigh: tl.constexpr, columns_weigh: tl.constexpr, how: tl.constexpr,
):  # fmt: skip
    """v of a tile (BM, BN): of pairs that are not near, and of those that are.

    Args:
        of_rows, of_columns: (k, rows) and (k, columns), coefficients of the ends that weigh.
    """
    d, near = distances_and_near(pairs, rows, columns, how)
    positive, negative = sides_of(pairs, rows, columns, first, last, how)
    row = (of_rows, rows_of(pairs), rows[:, None])
    column = (of_columns, columns_of(pairs), columns[None, :])
    v = tl.zeros((how.BM, how.BN), dtype=tl.float32)
    if rows_weigh:
        v += weigh(slope, term, d, positive, negative, row, column, pe, ne)
    if columns_weigh:
        v += weigh(slope, term, d, positive, negative, column, row, pe, ne)
    if how.distance == "euclidean":
        v = tl.where(d > 0, v / tl.where(d > 0, d, 1.0), 0.0)
    if how.distance == "sqeuclidean":
        v = 2.0 * v
    return tl.where(near > 0, 0.0, v), tl.where(near > 0, v, 0.0)


@triton.jit
def without_near(pairs, rows, columns, v, feature, total, how: tl.constexpr):
    """total (BM, BD) less the sums of v_ij (x_i - y_j) over the columns, whose weighted rows would
    cancel but for a few digits."""
    first = tl.min(columns)
    y_at = pairs.y + first.to(tl.int64) * pairs.features + feature
    x_at = pairs.x + rows.to(tl.int64)[:, None] * pairs.features + feature[None, :]
    there = (rows < rows_of(pairs))[:, None] & (feature < pairs.features)[None, :]
    for j in range(0, tl.minimum(how.BN, columns_of(pairs) - first)):
        weight = tl.sum(tl.where((tl.arange(0, how.BN) == j)[None, :], v, 0.0), axis=1)
        if tl.max(tl.abs(weight)) > 0:
            y = tl.load(y_at + j * pairs.features, mask=feature < pairs.features, other=0.0)
            total -= weight[:, None] * (tl.load(x_at, mask=there, other=0.0) - y[None, :])
    return total
