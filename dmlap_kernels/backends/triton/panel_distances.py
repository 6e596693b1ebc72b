"""Distances of the pairs of a panel where all pairs of a tile are taken alike, near ones among
them; and what near pairs add to a gradient, out of a panel that holds their weights.

Kernels that write weights to a panel of their own leave those of near pairs out, and write them to
the panel of products: whole tiles, each with a mark that says so.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.coefficients import minus_differences
from dmlap_kernels.backends.triton.panel_kernels import rooted, row_stride, squares_or_distances
from dmlap_kernels.backends.triton.tile import APART, Pairs, apart, columns_of, from_differences


@triton.jit
def panel_distances(
    panel, pairs, local, rows, row_in, columns, column_in, how: tl.constexpr, at: tl.constexpr
):
    """Distances (BM, BN) and the mask of the near ones, of differences; ``local`` are rows of the
    panel. ``how`` is of the problem, and ``at`` has the tile."""
    exists = row_in[:, None] & column_in[None, :]
    if how.itself != APART:
        exists &= apart(pairs, rows, row_in, columns, column_in, how.itself)
    to = panel + local.to(tl.int64)[:, None] * row_stride(columns_of(pairs)) + columns[None, :]
    dots = tl.load(to, mask=row_in[:, None] & column_in[None, :], other=0.0)
    if how.norms:
        x_norms = tl.load(pairs.x_norms + rows, mask=row_in, other=0.0)[:, None]
        y_norms = tl.load(pairs.y_norms + columns, mask=column_in, other=0.0)[None, :]
        q, near = squares_or_distances(dots, x_norms, y_norms, at)
        near &= exists
        if tl.max(tl.max(near.to(tl.int32), 1), 0) > 0:
            exact = from_differences(pairs, rows, row_in, columns, column_in, at)
            q = tl.where(near, exact, q)
        return rooted(q, how), near
    else:
        return squares_or_distances(dots, 0.0, 0.0, at)


@triton.jit
def store_weights(weights, panel, mark, at, inside, v, near, how: tl.constexpr):
    """Stores a tile of weights v (BM, BN) at ``at``, near ones apart, and its mark."""
    some = 0
    if how.norms:
        some = tl.max(tl.max((near & inside & (v != 0)).to(tl.int32), 1), 0)
        if some > 0:
            tl.store(panel + at, tl.where(near, v, 0.0), mask=inside)
            v = tl.where(near, 0.0, v)
    tl.store(weights + at, v, mask=inside)
    tl.store(mark, some)


@triton.jit
def _at_rows(
    panel, pairs, marks, local, rows, row_in, feature, total,
    MARK_ROWS: tl.constexpr, MARK_COLUMNS: tl.constexpr, how: tl.constexpr,
):  # fmt: skip
    """Less what near pairs add to the gradient (BM, BD) at a block of anchors, and 1 if there are
    any."""
    columns = columns_of(pairs)
    tiles = tl.cdiv(columns, MARK_COLUMNS)
    at = panel + local.to(tl.int64)[:, None] * row_stride(columns)
    some = 0
    for t in range(0, tiles):
        mark = tl.load(marks + (local // MARK_ROWS) * tiles + t, mask=row_in, other=0) > 0
        if tl.max(mark.to(tl.int32), 0) > 0:
            some = 1
            start = t * MARK_COLUMNS
            for c in range(start, tl.minimum(start + MARK_COLUMNS, columns), how.BN):
                column = c + tl.arange(0, how.BN)
                there = mark[:, None] & (column < columns)[None, :]
                v = tl.load(at + column[None, :], mask=there, other=0.0)
                total = minus_differences(pairs, rows, column, v, feature, total, how)
    return total, some


@triton.jit
def _at_columns(
    panel, pairs, marks, top, count, columns, column_in, feature, total, width,
    MARK_ROWS: tl.constexpr, MARK_COLUMNS: tl.constexpr, how: tl.constexpr,
):  # fmt: skip
    """The same at a block of ``width`` references, which are the rows of ``pairs``."""
    tiles = tl.cdiv(width, MARK_COLUMNS)
    tile = tl.min(columns, 0) // MARK_COLUMNS
    some = 0
    for r in range(0, count, how.BN):
        local = r + tl.arange(0, how.BN)
        there = local < count
        mark = tl.load(marks + (local // MARK_ROWS) * tiles + tile, mask=there, other=0) > 0
        if tl.max(mark.to(tl.int32), 0) > 0:
            some = 1
            at = panel + local.to(tl.int64)[None, :] * row_stride(width) + columns[:, None]
            v = tl.load(at, mask=mark[None, :] & column_in[:, None], other=0.0)
            total = minus_differences(pairs, columns, top + local, v, feature, total, how)
    return total, some


@triton.jit
def _add(near, marks, total, some, before, rows, row_in, feature, features):
    """Adds to what earlier panels left, if there are ``before``."""
    if some > 0:
        to = near + rows.to(tl.int64)[:, None] * features + feature[None, :]
        there = row_in[:, None] & (feature < features)[None, :]
        if before > 0:
            total -= tl.load(to, mask=there, other=0.0)
        tl.store(to, -total, mask=there)
    tl.store(marks, tl.maximum(some, before))


@triton.jit(do_not_specialize=["top", "anchors", "columns", "count", "blocks"])
def near_sums_kernel(
    panel,
    x,
    y,
    marks,  # (blocks of MARK_ROWS rows of the panel, tiles of MARK_COLUMNS columns)
    x_near,  # (anchors, features) and (columns, features): what is added
    y_near,
    x_marks,  # (chunks, blocks): whether it is
    y_marks,
    top,
    anchors,
    columns,
    features,
    count,  # rows of the panel
    blocks,  # of its anchors, 0 where their gradient is not wanted; in the self case of all
    MARK_ROWS: tl.constexpr,
    MARK_COLUMNS: tl.constexpr,
    how: tl.constexpr,
):
    """In the self case the rows have parts as anchors and as references."""
    feature = tl.program_id(1) * how.BD + tl.arange(0, how.BD)
    number = tl.program_id(0)
    total = tl.zeros((how.BM, how.BD), dtype=tl.float32)
    lanes = tl.arange(0, how.BM)
    # What the fields are of which nothing is read does not matter.
    if number < blocks:
        chunk = tl.program_id(1) * tl.cdiv(anchors, how.BM)
        pairs = Pairs(x, y, x, y, marks, marks, marks, anchors * 16, columns * 16, features)
        if how.self_case:
            rows = number * how.BM + lanes
            local = rows - top
            in_panel = (local >= 0) & (local < count)
            total, some = _at_rows(
                panel, pairs, marks, local, rows, in_panel, feature, total, MARK_ROWS,
                MARK_COLUMNS, how,
            )  # fmt: skip
            total, also = _at_columns(
                panel, pairs, marks, top, count, rows, rows < anchors, feature, total, columns,
                MARK_ROWS, MARK_COLUMNS, how,
            )  # fmt: skip
            mark = x_marks + chunk + number
            before = 0
            if top > 0:
                before = tl.load(mark)
            some = tl.maximum(some, also)
            _add(x_near, mark, total, some, before, rows, rows < anchors, feature, features)
        else:
            local = number * how.BM + lanes
            rows = top + local
            total, some = _at_rows(
                panel, pairs, marks, local, rows, local < count, feature, total, MARK_ROWS,
                MARK_COLUMNS, how,
            )  # fmt: skip
            mark = x_marks + chunk + top // how.BM + number
            _add(x_near, mark, total, some, 0, rows, local < count, feature, features)
    else:
        rows = (number - blocks) * how.BM + lanes
        pairs = Pairs(y, x, y, x, marks, marks, marks, columns * 16, anchors * 16, features)
        total, some = _at_columns(
            panel, pairs, marks, top, count, rows, rows < columns, feature, total, columns,
            MARK_ROWS, MARK_COLUMNS, how,
        )  # fmt: skip
        mark = y_marks + tl.program_id(1) * tl.cdiv(columns, how.BM) + number - blocks
        before = 0
        if top > 0:
            before = tl.load(mark)
        _add(y_near, mark, total, some, before, rows, rows < columns, feature, features)
