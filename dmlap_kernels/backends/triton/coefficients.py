"""Gradient coefficient of each pair in a tile, and what recomputed pairs add to a gradient.

With v_ij = d loss / d d_ij over d_ij (euclidean), times 2 (sqeuclidean), or as it is, the gradient
at x_i is (sum of v_ij) x_i - sum of v_ij y_j, for products without the first part. In the self case
the derivatives of both ends of a pair are added, so that a sweep over all tiles holds both halves.
(Half of the tiles would have to leave parts at their columns, too: in an order that is not fixed,
or in memory of many gradients.)
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.tile import columns_of, rows_of, sides_of, tile


@triton.jit
def coefficient_of(by_distance, d, how: tl.constexpr):
    """v of pairs at distances d, from d loss / d d; nothing at distance 0."""
    if how.distance == "euclidean":
        return tl.where(d > 0, by_distance / tl.where(d > 0, d, 1.0), 0.0)
    elif how.distance == "sqeuclidean":
        return 2.0 * by_distance
    else:
        return by_distance


@triton.jit
def coefficients(pairs, block, columns, gradient, how: tl.constexpr):
    """v of a tile (BM, BN): of pairs that were not recomputed, and of those that were."""
    rows = block.rows
    row_in, column_in = rows < rows_of(pairs), columns < columns_of(pairs)
    d, recomputed = tile(pairs, rows, row_in, columns, column_in, how.itself, how)
    positive, negative = sides_of(pairs, block, columns, how)
    row = (gradient.of_rows, rows_of(pairs), rows[:, None])
    column = (gradient.of_columns, columns_of(pairs), columns[None, :])
    v = tl.zeros((how.BM, how.BN), dtype=tl.float32)
    if gradient.of_rows is not None:
        v += gradient.formula(gradient, d, positive, negative, row, column)
    if gradient.of_columns is not None:
        v += gradient.formula(gradient, d, positive, negative, column, row)
    v = coefficient_of(v, d, how)
    return tl.where(recomputed > 0, 0.0, v), tl.where(recomputed > 0, v, 0.0)


@triton.jit
def minus_differences(pairs, rows, columns, v, feature, total, how: tl.constexpr):
    """total (BM, BD) less the sums of v_ij (x_i - y_j) over the columns: for recomputed pairs,
    whose weighted rows would cancel but for a few digits, and where few v are not 0."""
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
