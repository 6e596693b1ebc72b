"""The gradient of a loss whose pairs have weights: tiles again, times the other side's rows."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import Both, Weigher
from dmlap_kernels.backends.triton import panels
from dmlap_kernels.backends.triton.configurations import launch_of, splits_of, width_of
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


@triton.jit
def gradient_kernel(
    pairs,
    of_rows,  # (k, rows), read if rows_weigh
    of_columns,  # (k, columns), read if columns_weigh
    out,  # (splits, rows, features)
    pe,
    ne,
    span,
    weigh: tl.constexpr,
    slope: tl.constexpr,
    term: tl.constexpr,
    rows_weigh: tl.constexpr,
    columns_weigh: tl.constexpr,
    sparse: tl.constexpr,  # whether tiles without a weight are to be expected
    BD: tl.constexpr,
    how: tl.constexpr,
):
    rows, first, last, _low, _high = row_block(pairs, tl.program_id(0), how)
    feature = tl.arange(0, BD)
    inside = feature < pairs.features
    total = tl.zeros((how.BM, BD), dtype=tl.float32)
    weights = tl.zeros((how.BM,), dtype=tl.float32)
    start = tl.program_id(1) * span
    for c in range(start, tl.minimum(start + span, columns_of(pairs)), how.BN):
        columns = c + tl.arange(0, how.BN)
        v, lone = factors(
            pairs, rows, columns, first, last, of_rows, of_columns, pe, ne,
            weigh, slope, term, rows_weigh, columns_weigh, how,
        )  # fmt: skip
        if how.distance == "euclidean" or how.distance == "sqeuclidean":
            if tl.max(tl.abs(lone)) > 0:
                total = without_near(pairs, rows, columns, lone, feature, total, how)
        active = True
        if sparse:
            active = tl.max(tl.abs(v)) > 0
        if active:
            at = columns.to(tl.int64)[:, None] * pairs.features + feature[None, :]
            there = (columns < columns_of(pairs))[:, None] & inside[None, :]
            total = product(v, tl.load(pairs.y + at, mask=there, other=0.0), total, how)
            weights += tl.sum(v, axis=1)
    at = rows.to(tl.int64)[:, None] * pairs.features + feature[None, :]
    there = (rows < rows_of(pairs))[:, None] & inside[None, :]
    if how.distance == "euclidean" or how.distance == "sqeuclidean":
        total = weights[:, None] * tl.load(pairs.x + at, mask=there, other=0.0) - total
    else:
        total = -total
    part = tl.program_id(1).to(tl.int64) * rows_of(pairs) * pairs.features
    tl.store(out + part + at, total, mask=there)


def gradient(sides: Sides, weigher: Weigher) -> Both:
    if sides.self_case:
        return _at_rows(sides, weigher, weigher.anchors, weigher.anchors), None
    gx = gy = None
    if sides.x_grad:
        gx = _at_rows(sides, weigher, weigher.anchors, weigher.columns)
    if sides.y_grad:
        gy = _at_rows(sides.swapped(), weigher, weigher.columns, weigher.anchors)
    return gx, gy


def _at_rows(
    sides: Sides, weigher: Weigher, of_rows: Tensor | None, of_columns: Tensor | None
) -> Tensor:
    """The gradient (B, Dp) at the anchors of these sides."""
    products = sides.distance in ("cosine", "dot")
    launch = launch_of("gradient_of_products" if products else "gradient", sides)
    features = sides.x.shape[1]
    width = width_of(features)
    if width < features:
        return panels.gradient(sides, weigher, of_rows, of_columns)
    splits, span = splits_of(sides, launch)
    out = sides.x.new_empty((splits, *sides.x.shape))
    if sides.anchors and features:
        gradient_kernel[(triton.cdiv(sides.anchors, launch.BM), splits)](
            Pairs.of(sides),
            of_rows,
            of_columns,
            out,
            numbers_of(weigher.positive),
            numbers_of(weigher.negative),
            span,
            *weighing(weigher, of_rows, of_columns),
            weigher.sparse,
            width,
            Tiling.of(sides, launch.BM, launch.BN, launch.BK),
            **launch.options,
        )
    return out[0] if splits == 1 else out.sum(0)
