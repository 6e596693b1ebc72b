"""Kernels over a panel: the products of some anchors with all references, made by `torch.mm`.

A program owns a block of rows and some of the columns. Labels are compared as they come; nothing is
sorted. Panels are (rows of the panel, columns) float32. All arguments are flat: a tuple costs tens
of microseconds at every launch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.coefficients import coefficient_of
from dmlap_kernels.backends.triton.forward import store_state
from dmlap_kernels.backends.triton.policies import Exponents, KernelPairGradient
from dmlap_kernels.backends.triton.row_kernels import group_weights, loaded
from dmlap_kernels.backends.triton.tile import (
    APART,
    Pairs,
    apart,
    of_products,
)

# Sizes that change from batch to batch are no reason to compile again.
_SIZES = ["top", "anchors", "columns", "span", "splits", "height"]


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


@triton.jit(do_not_specialize=_SIZES)
def sweep_kernel(
    panel,
    x,  # (anchors, features), as are y and both norms: of packed rows
    y,
    x_norms,
    y_norms,
    labels_x,  # (anchors,) int64
    labels_y,  # (columns,)
    itself,  # as in `Pairs`
    table,  # (k, anchors), what formulas left of earlier sweeps
    anchor_params,  # (anchors,)
    partials,  # (size + 2, splits, rows of the panel), states, and numbers of pairs
    top,  # first row of the panel
    anchors,
    columns,
    features,
    span,  # columns of a split, whole tiles
    splits,
    p0,  # exponents
    p1,
    p2,
    p3,
    n0,
    n1,
    n2,
    n3,
    number0,  # of the formula
    number1,
    number2,
    number3,
    number4,
    number5,
    own_formula: tl.constexpr,  # of what the policy reads of an anchor; None where nothing
    slope: tl.constexpr,
    empty: tl.constexpr,
    visit: tl.constexpr,
    merge: tl.constexpr,
    size: tl.constexpr,
    mines: tl.constexpr,  # whether the policy reads columns and labels
    prefix: tl.constexpr,  # rows of the table
    height,  # of panels, rows at most
    how: tl.constexpr,
):
    pairs = Pairs(
        x, y, x_norms, y_norms, labels_x, labels_y, itself, anchors * 16, columns * 16, features
    )
    number, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    local = number * how.BM + tl.arange(0, how.BM)
    rows = top + local
    row_in = (local < height) & (rows < anchors)
    own_labels = tl.load(labels_x + rows, mask=row_in, other=0)
    values = ()
    if own_formula is not None:
        values = loaded(table, anchors, rows[:, None], row_in[:, None], prefix)
        param = tl.load(anchor_params + rows, mask=row_in, other=0.0)[:, None]
        numbers = (number0, number1, number2, number3, number4, number5)
        values = own_formula((), (), (), values, param, numbers)
    state = empty(how.BM)
    positives = tl.zeros((how.BM,), dtype=tl.int32)
    negatives = tl.zeros((how.BM,), dtype=tl.int32)
    start = split * span
    at = panel + local.to(tl.int64)[:, None] * columns
    for c in range(start, tl.minimum(start + span, columns), how.BN):
        column = c + tl.arange(0, how.BN)
        column_in = column < columns
        there = row_in[:, None] & column_in[None, :]
        dots = tl.load(at + column[None, :], mask=there, other=0.0)
        d, _ = of_products(pairs, dots, rows, row_in, column, column_in, how.itself, how)
        positive, negative = sides_by_label(
            pairs, own_labels, rows, row_in, column, column_in, how.itself, how
        )
        if mines:
            other = tl.load(labels_y + column, mask=column_in, other=0)
            own = (column[None, :], other[None, :])
        else:
            own = (values, rows[:, None])
        # Not given a name, as functions cannot be assigned.
        found = visit(
            Exponents(slope, (p0, p1, p2, p3), (n0, n1, n2, n3)),
            own,
            d,
            positive,
            negative,
            True,
            1,
        )
        state = merge(state, found)
        positives += tl.sum(positive.to(tl.int32), axis=1)
        negatives += tl.sum(negative.to(tl.int32), axis=1)
    count = tl.minimum(anchors - top, height)
    part = splits.to(tl.int64) * count
    at = split.to(tl.int64) * count + local
    store_state(partials, part, at, row_in, state, size)
    tl.store(partials + size * part + at, positives.to(tl.float32, bitcast=True), mask=row_in)
    at += (size + 1) * part
    tl.store(partials + at, negatives.to(tl.float32, bitcast=True), mask=row_in)


@triton.jit
def values_of(
    ends,
    index,
    mask,
    formula: tl.constexpr,
    prefix: tl.constexpr,
    groups: tl.constexpr,
    reduction: tl.constexpr,
):
    """The coefficients of anchors at ``index``, in its shape.

    ``ends`` is what they are made of: the table, the header, the gradient at the loss and its
    stride, anchor_params, numbers, and how many anchors there are.
    """
    table, header, grad, stride, anchor_params, numbers, anchors = ends
    weights = group_weights(
        table, header, grad, stride, anchors, index, mask, prefix, groups, reduction
    )
    values = loaded(table, anchors, index, mask, prefix)
    param = tl.load(anchor_params + index, mask=mask, other=0.0)
    return formula((), (), weights, values, param, numbers)


@triton.jit
def pair_weights(d, positive, negative, row, column, gradient, how: tl.constexpr):
    """v (BM, BN) as in `coefficients`; the ends are (values, index)."""
    v = gradient.formula(gradient, d, positive, negative, row, column)
    if how.self_case:
        v += gradient.formula(gradient, d, positive, negative, column, row)
    return coefficient_of(v, d, how)


@triton.jit(do_not_specialize=[*_SIZES, "stride"])
def weights_of_panel_kernel(
    panel,
    x,
    y,
    x_norms,
    y_norms,
    labels_x,
    labels_y,
    itself,
    table,
    header,
    grad,  # (), or (anchors,)
    anchor_params,
    at_params,  # (anchors,), gradient at anchor_params
    marks,  # (blocks of the panel, splits), whether there are near pairs
    stride,  # of grad
    top,
    anchors,
    columns,
    features,
    span,
    splits,
    p0,
    p1,
    p2,
    p3,
    n0,
    n1,
    n2,
    n3,
    number0,
    number1,
    number2,
    number3,
    number4,
    number5,
    formula: tl.constexpr,  # of the coefficients
    slope: tl.constexpr,
    kind: tl.constexpr,  # formula of a `PairGradient`, and its term
    term: tl.constexpr,
    prefix: tl.constexpr,
    groups: tl.constexpr,
    reduction: tl.constexpr,
    param_row: tl.constexpr,  # which output is the gradient at anchor_params; -1 for none
    height,
    how: tl.constexpr,
):
    """Products become weights of pairs, in place; those of near pairs become 0."""
    pairs = Pairs(
        x, y, x_norms, y_norms, labels_x, labels_y, itself, anchors * 16, columns * 16, features
    )
    numbers = (number0, number1, number2, number3, number4, number5)
    number, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    local = number * how.BM + tl.arange(0, how.BM)
    rows = top + local
    row_in = (local < height) & (rows < anchors)
    own_labels = tl.load(labels_x + rows, mask=row_in, other=0)
    ends = (table, header, grad, stride, anchor_params, numbers, anchors)
    own = values_of(ends, rows[:, None], row_in[:, None], formula, prefix, groups, reduction)
    if param_row >= 0:
        if split == 0:
            poison = tl.load(header + groups)
            tl.store(at_params + rows[:, None], own[param_row] + poison, mask=row_in[:, None])
    row = (own, rows[:, None])
    near = 0
    start = split * span
    at = panel + local.to(tl.int64)[:, None] * columns
    for c in range(start, tl.minimum(start + span, columns), how.BN):
        at_column = c + tl.arange(0, how.BN)
        column_in = at_column < columns
        there = row_in[:, None] & column_in[None, :]
        dots = tl.load(at + at_column[None, :], mask=there, other=0.0)
        d, close = of_products(pairs, dots, rows, row_in, at_column, column_in, how.itself, how)
        positive, negative = sides_by_label(
            pairs, own_labels, rows, row_in, at_column, column_in, how.itself, how
        )
        other = (own, at_column[None, :])
        if how.self_case:
            index, mask = at_column[None, :], column_in[None, :]
            values = values_of(ends, index, mask, formula, prefix, groups, reduction)
            other = (values, index)
        v = pair_weights(
            d, positive, negative, row, other,
            # Not given a name, as functions cannot be assigned.
            KernelPairGradient(
                kind, term, Exponents(slope, (p0, p1, p2, p3), (n0, n1, n2, n3)), None, None
            ),
            how,
        )  # fmt: skip
        if how.distance == "euclidean" or how.distance == "sqeuclidean":
            v = tl.where(close > 0, 0.0, v)
            near = tl.maximum(near, tl.max(close).to(tl.int32))
        tl.store(at + at_column[None, :], v, mask=there)
    if how.distance == "euclidean" or how.distance == "sqeuclidean":
        tl.store(marks + tl.program_id(0), near)
