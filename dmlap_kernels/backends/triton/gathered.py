"""Distances of rows taken by index: tiles of them, and lists of pairs.

Rows are float32, contiguous, `width` features long, a multiple of 16. Indices are int64 vectors;
what lies outside of a mask is never read.
"""

from __future__ import annotations

import triton
import triton.language as tl

_NAN_BITS = tl.constexpr(0x7FC00000)


@triton.jit
def matmul(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b in the precision of `Sides.precision`."""
    if PRECISION == "medium":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), total)
    elif PRECISION == "high":
        return tl.dot(a, b, total, input_precision="tf32")
    else:
        return tl.dot(a, b, total, input_precision="tf32x3")


@triton.jit
def tile(
    X, x_norms, rows, row_in, Y, y_norms, columns, column_in, width,
    SAME: tl.constexpr, DISTANCE: tl.constexpr, PRECISION: tl.constexpr, NEAR: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Distances (BM, BN) of rows (BM,) of X to columns (BN,), which are rows of Y.

    With SAME the two are one matrix, and a row is not compared with itself. Squared distances below
    the share NEAR of the squared norms are taken again from differences.
    """
    product = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    features = tl.arange(0, CHUNK)
    for start in range(0, width, CHUNK):
        at = start + features
        a = tl.load(
            X + rows[:, None] * width + at[None, :],
            mask=row_in[:, None] & (at < width)[None, :],
            other=0.0,
        )
        b = tl.load(
            Y + columns[None, :] * width + at[:, None],
            mask=column_in[None, :] & (at < width)[:, None],
            other=0.0,
        )
        product = matmul(a, b, product, PRECISION)
    if DISTANCE == "cosine":
        return 1 - product
    elif DISTANCE == "dot":
        return -product
    else:
        norms = tl.load(x_norms + rows, mask=row_in, other=0.0)[:, None]
        norms = norms + tl.load(y_norms + columns, mask=column_in, other=0.0)[None, :]
        squared = norms - 2 * product
        squared = tl.where(squared < 0, 0.0, squared)
        near = (squared < NEAR * norms) & row_in[:, None] & column_in[None, :]
        if SAME:
            near = near & (rows[:, None] != columns[None, :])
        if tl.max(tl.max(near.to(tl.int32), 1), 0) > 0:
            exact = tl.zeros_like(squared)
            for feature in range(0, width):
                a = tl.load(X + rows * width + feature, mask=row_in, other=0.0)
                b = tl.load(Y + columns * width + feature, mask=column_in, other=0.0)
                difference = a[:, None] - b[None, :]
                exact += difference * difference
            squared = tl.where(near, exact, squared)
        if DISTANCE == "euclidean":
            return tl.sqrt(squared)
        else:
            return squared


@triton.jit
def listed(
    X, rows, Y, columns, pair_in, width, DISTANCE: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """Distances (BM,) of rows (BM,) of X to rows columns (BM,) of Y, pair by pair."""
    total = tl.zeros((rows.shape[0],), tl.float32)
    features = tl.arange(0, CHUNK)
    for start in range(0, width, CHUNK):
        at = start + features
        mask = pair_in[:, None] & (at < width)[None, :]
        a = tl.load(X + rows[:, None] * width + at[None, :], mask=mask, other=0.0)
        b = tl.load(Y + columns[:, None] * width + at[None, :], mask=mask, other=0.0)
        if DISTANCE == "cosine" or DISTANCE == "dot":
            total += tl.sum(a * b, 1)
        else:
            total += tl.sum((a - b) * (a - b), 1)
    if DISTANCE == "cosine":
        return 1 - total
    elif DISTANCE == "dot":
        return -total
    elif DISTANCE == "euclidean":
        return tl.sqrt(total)
    else:
        return total


@triton.jit
def ordered(d):
    """int64 numbers in the order of the floats d, below 2^31 in size; NaN comes last."""
    bits = tl.where(d != d, _NAN_BITS, (d + 0.0).to(tl.int32, bitcast=True))
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def log1p(t):
    """log(1 + t) for t >= 0, with the digits of a small t."""
    one_more = 1 + t
    rounded = one_more - 1
    return tl.where(rounded == 0, t, tl.log(one_more) * (t / tl.where(rounded == 0, 1, rounded)))


@triton.jit
def softplus(z):
    return tl.maximum(z, 0.0) + log1p(tl.exp(-tl.abs(z)))


@triton.jit
def sigmoid(z):
    small = tl.exp(-tl.abs(z))
    return tl.where(z > 0, 1.0, small) / (1 + small)
