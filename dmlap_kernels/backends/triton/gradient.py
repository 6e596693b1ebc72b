"""The gradient of a loss of single pairs: tiles again, times the other side's rows."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import Both, PairGradient
from dmlap_kernels.backends.triton import panels
from dmlap_kernels.backends.triton.coefficients import coefficients, minus_differences
from dmlap_kernels.backends.triton.configurations import launch_of, splits_of
from dmlap_kernels.backends.triton.policies import KernelPairGradient
from dmlap_kernels.backends.triton.tile import (
    Pairs,
    Tiling,
    columns_of,
    product,
    row_block,
    rows_of,
)


@triton.jit
def gradient_kernel(
    pairs,
    gradient,  # a `KernelPairGradient`
    out,  # (splits, rows, features)
    span,
    sparse: tl.constexpr,  # whether tiles without a coefficient are to be expected
    how: tl.constexpr,
):
    block = row_block(pairs, tl.program_id(0), how)
    rows = block.rows
    feature = tl.arange(0, how.BD)
    inside = feature < pairs.features
    total = tl.zeros((how.BM, how.BD), dtype=tl.float32)
    sums = tl.zeros((how.BM,), dtype=tl.float32)
    start = tl.program_id(1) * span
    for c in range(start, tl.minimum(start + span, columns_of(pairs)), how.BN):
        columns = c + tl.arange(0, how.BN)
        v, recomputed = coefficients(pairs, block, columns, gradient, how)
        if how.distance == "euclidean" or how.distance == "sqeuclidean":
            if tl.max(tl.abs(recomputed)) > 0:
                total = minus_differences(pairs, rows, columns, recomputed, feature, total, how)
        active = True
        if sparse:
            active = tl.max(tl.abs(v)) > 0
        if active:
            at = columns.to(tl.int64)[:, None] * pairs.features + feature[None, :]
            there = (columns < columns_of(pairs))[:, None] & inside[None, :]
            total = product(v, tl.load(pairs.y + at, mask=there, other=0.0), total, how)
            sums += tl.sum(v, axis=1)
    at = rows.to(tl.int64)[:, None] * pairs.features + feature[None, :]
    there = (rows < rows_of(pairs))[:, None] & inside[None, :]
    if how.distance == "euclidean" or how.distance == "sqeuclidean":
        total = sums[:, None] * tl.load(pairs.x + at, mask=there, other=0.0) - total
    else:
        total = -total
    part = tl.program_id(1).to(tl.int64) * rows_of(pairs) * pairs.features
    tl.store(out + part + at, total, mask=there)


def gradient(sides: Sides, pair_gradient: PairGradient) -> Both:
    if sides.self_case:
        return _at_rows(sides, pair_gradient, pair_gradient.anchors, pair_gradient.anchors), None
    gx = gy = None
    if sides.x_grad:
        gx = _at_rows(sides, pair_gradient, pair_gradient.anchors, pair_gradient.columns)
    if sides.y_grad:
        gy = _at_rows(sides.swapped(), pair_gradient, pair_gradient.columns, pair_gradient.anchors)
    return gx, gy


def _at_rows(
    sides: Sides, pair_gradient: PairGradient, of_rows: Tensor | None, of_columns: Tensor | None
) -> Tensor:
    """The gradient (B, Dp) at the anchors of these sides."""
    products = sides.distance in ("cosine", "dot")
    launch = launch_of("gradient_of_products" if products else "gradient", sides)
    features = sides.x.shape[1]
    of_kernel = KernelPairGradient.of(pair_gradient, of_rows, of_columns)
    if launch.held(features) < features:
        return panels.gradient(sides, of_kernel, pair_gradient.sparse)
    splits, span = splits_of(sides, launch)
    out = sides.x.new_empty((splits, *sides.x.shape))
    if sides.anchors and features:
        gradient_kernel[(triton.cdiv(sides.anchors, launch.BM), splits)](
            Pairs.of(sides),
            of_kernel,
            out,
            span,
            pair_gradient.sparse,
            Tiling.of(sides, launch),
            **launch.options,
        )
    return out[0] if splits == 1 else out.sum(0)
