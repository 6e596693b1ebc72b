"""Kernels over a panel: the products of some anchors with all references, made by `torch.mm`.

A program owns a block of rows and some of the columns. Labels are compared as they come; nothing is
sorted. Panels are (rows of the panel, columns) float32. All arguments are flat: a tuple costs tens
of microseconds at every launch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.configurations import INTERPRETED
from dmlap_kernels.backends.triton.forward import store_state
from dmlap_kernels.backends.triton.panel_policies import reciprocal
from dmlap_kernels.backends.triton.policies import Exponents, KernelPairGradient
from dmlap_kernels.backends.triton.row_kernels import group_weights, loaded
from dmlap_kernels.backends.triton.tile import (
    APART,
    ROWS_NAMED,
    SELF,
    Pairs,
    apart,
    from_differences,
)

_INTERPRETED = tl.constexpr(INTERPRETED)
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


@triton.jit
def row_stride(columns):
    """Floats between rows of a panel: from a multiple of 16 on, four are loaded at a time."""
    return tl.cdiv(columns, 16).to(tl.int64) * 16


@triton.jit
def squares_or_distances(dots, x_norms, y_norms, how: tl.constexpr):
    """Of products (BM, BN): squared distances, or distances that are no root, and the mask of the
    near ones, which products do not give well enough."""
    if how.distance == "euclidean" or how.distance == "sqeuclidean":
        total = x_norms + y_norms
        q = total - 2.0 * dots
        # Nor is what is not a number beyond.
        return q, (q > how.recompute * total) == 0
    else:
        q = 1.0 - dots if how.distance == "cosine" else -dots
        return q, tl.zeros((how.BM, how.BN), tl.int1)


@triton.jit
def rooted(q, how: tl.constexpr):
    return tl.sqrt(q) if how.distance == "euclidean" else q


@triton.jit
def _either(a, b):
    return a | b


@triton.jit
def _any_bits(bits):
    """The bits (BM, BN) that are set anywhere."""
    return tl.reduce(tl.reduce(bits, 1, _either), 0, _either)


@triton.jit
def zeros_as(numbers):
    """Zeros that lie in threads as these numbers do, which else the compiler does not know."""
    if _INTERPRETED:
        return tl.zeros_like(numbers)
    else:
        return tl.inline_asm_elementwise("mov.b32 $0, 0;", "=f,f", [numbers], tl.float32, True, 1)


@triton.jit
def own_columns(itself, rows, how: tl.constexpr):
    """(BM,) int32: which column is the row itself, -1 for none."""
    if how.itself == ROWS_NAMED:
        return tl.load(itself + rows).to(tl.int32)
    elif how.itself == SELF:
        return rows
    else:
        return tl.full((how.BM,), -1, tl.int32)


@triton.jit
def tiles_without_masks(first, end, whole, row, how: tl.constexpr):
    """Of tiles from ``first`` to ``end``, of which those before ``whole`` have all their columns:
    the tile that has pairs of an anchor and itself by their number, -1 for none; how many tiles
    there are without it and the last; and which of them comes after it. ``row`` is the block's
    first."""
    alone = -1
    fast = tl.minimum(end, whole) - first
    skipped = fast
    if how.itself == SELF:
        alone = row // how.BN
        if (alone >= first) & (alone < first + fast):
            skipped = alone - first
            fast -= 1
    return alone, fast, skipped


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
    begin: tl.constexpr,
    visit: tl.constexpr,
    reduce: tl.constexpr,
    empty: tl.constexpr,
    merge: tl.constexpr,
    size: tl.constexpr,
    kind: tl.constexpr,  # of the policy
    prefix: tl.constexpr,  # rows of the table
    height,  # of panels, rows at most
    how: tl.constexpr,
):
    """Most tiles are visited without masks, and but for near pairs. What else there is in a tile
    sets a bit, and a second loop visits it: pairs in the last tile and in those that have pairs of
    an anchor and itself by their number, and near pairs, from differences. Of equal extremes all
    are visited again, with their labels; of sweeps over positives, tiles that have some."""
    number, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    count = tl.minimum(anchors - top, height)
    local = number * how.BM + tl.arange(0, how.BM)
    row_in = local < count
    # The rows beyond are the last one again, so that loads need no masks.
    place = tl.minimum(local, count - 1)
    rows = top + place
    at = panel + place.to(tl.int64)[:, None] * row_stride(columns)
    own_labels = tl.load(labels_x + rows)[:, None]
    own_norms = tl.load(x_norms + rows)[:, None]
    own_column = own_columns(itself, rows, how)[:, None]
    values = ()
    if own_formula is not None:
        values = loaded(table, anchors, rows[:, None], row_in[:, None], prefix)
        param = tl.load(anchor_params + rows)[:, None]
        numbers = (number0, number1, number2, number3, number4, number5)
        values = own_formula((), (), (), values, param, numbers)
    first = split * (span // how.BN)
    end = tl.minimum(first + span // how.BN, tl.cdiv(columns, how.BN))
    whole = columns // how.BN
    # Tiles share a bit where they are more than 32.
    shift = 0
    while (end - first - 1) >> (5 + shift) > 0:
        shift += 1
    alone, fast, skipped = tiles_without_masks(first, end, whole, top + number * how.BM, how)
    state = begin(how.BM, how.BN)
    bits = tl.zeros((how.BM, how.BN), tl.int32)
    lanes = tl.arange(0, how.BN)[None, :]
    dots = tl.zeros((how.BM, how.BN), tl.float32)
    if kind != "positives":
        if fast > 0:
            dots = tl.load(at + (first + (skipped == 0).to(tl.int32)) * how.BN + lanes)
    positives = zeros_as(dots)
    for i in range(0, fast):
        t = first + i + (i >= skipped).to(tl.int32)
        column = t * how.BN + lanes
        alike = own_labels == tl.load(labels_y + column)
        bit = 1 << ((t - first) >> shift)
        if kind == "positives":
            bits = tl.where(alike, bits | bit, bits)
        else:
            following = tl.minimum(i + 1, fast - 1)
            following += first + (following >= skipped).to(tl.int32)
            later = tl.load(at + following * how.BN + lanes)
            norms = own_norms
            if how.norms:
                norms = tl.load(y_norms + column)
            q, near = squares_or_distances(dots, own_norms, norms, how)
            within = near == 0
            if how.itself == ROWS_NAMED:
                within &= column != own_column
                positives = tl.where(alike & (column != own_column), positives + 1.0, positives)
            else:
                positives = tl.where(alike, positives + 1.0, positives)
            if how.norms:
                bits = tl.where(near, bits | bit, bits)
            # Not given names, as functions cannot be assigned.
            state = visit(
                Exponents(slope, (p0, p1, p2, p3), (n0, n1, n2, n3)),
                (column,) if kind == "extremes" else (values, rows[:, None]),
                rooted(q, how),
                alike,
                within,
                state,
            )
            dots = later
    # From here on few registers hold the state, as near pairs take many.
    rows_state = reduce(state, labels_y)
    positive = tl.sum(positives.to(tl.int32), 1)
    found = _any_bits(bits)
    again = False
    if kind == "extremes":
        again = tl.max(tl.max(state[-1], 1), 0) > 0
        if again:
            rows_state = empty(how.BM)
    for t in range(first, end):
        special = (t == alone) | (t >= whole)
        marked = ((found >> ((t - first) >> shift)) & 1) > 0
        if special | again | marked:
            line = t * how.BN + tl.arange(0, how.BN)
            line_in = line < columns
            column, column_in = line[None, :], line_in[None, :]
            exists = column_in & (column != own_column)
            dots = tl.load(at + column, mask=column < row_stride(columns), other=0.0)
            norms = own_norms
            if how.norms:
                norms = tl.load(y_norms + column, mask=column_in, other=0.0)
            q, near = squares_or_distances(dots, own_norms, norms, how)
            near &= exists
            if how.norms:
                if tl.max(tl.max(near.to(tl.int32), 1), 0) > 0:
                    pairs = Pairs(
                        x, y, x_norms, y_norms, labels_x, labels_y, itself, anchors * 16,
                        columns * 16, features,
                    )  # fmt: skip
                    exact = from_differences(pairs, rows, row_in, line, line_in, how)
                    q = tl.where(near, exact, q)
            alike = own_labels == tl.load(labels_y + column, mask=column_in, other=0)
            if kind == "positives":
                found_positive = alike & exists
                within = exists
            else:
                found_positive = alike & exists & special
                within = (exists & (special | again)) | near
            positive += tl.sum(found_positive.to(tl.int32), 1)
            found_state = visit(
                Exponents(slope, (p0, p1, p2, p3), (n0, n1, n2, n3)),
                (column,) if kind == "extremes" else (values, rows[:, None]),
                rooted(q, how),
                alike,
                within,
                begin(how.BM, how.BN),
            )
            rows_state = merge(rows_state, reduce(found_state, labels_y))
    start, stop = first * how.BN, tl.minimum(end * how.BN, columns)
    itself_in = tl.sum(((own_column >= start) & (own_column < stop)).to(tl.int32), 1)
    negative = stop - start - itself_in - positive
    part = splits.to(tl.int64) * count
    at = split.to(tl.int64) * count + local
    store_state(partials, part, at, row_in, rows_state, size)
    tl.store(partials + size * part + at, positive.to(tl.float32, bitcast=True), mask=row_in)
    at += (size + 1) * part
    tl.store(partials + at, negative.to(tl.float32, bitcast=True), mask=row_in)


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
def pair_weights(d, alike, within, row, column, gradient, how: tl.constexpr):
    """v (BM, BN) as in `coefficients`, 0 of what is not ``within``; the ends are (values, index).
    No pair within is at the Euclidean distance 0."""
    v = gradient.formula(gradient, d, alike, row, column)
    if how.self_case:
        v += gradient.formula(gradient, d, alike, column, row)
    if how.distance == "euclidean":
        v *= reciprocal(d)
    elif how.distance == "sqeuclidean":
        v *= 2.0
    return tl.where(within, v, 0.0)


@triton.jit
def weights_of_tile(
    pairs, at, t, dots, own, own_labels, own_norms, own_column, rows, row_in, near_at, total, ends,
    gradient,
    formula: tl.constexpr, prefix: tl.constexpr, groups: tl.constexpr, reduction: tl.constexpr,
    summed: tl.constexpr, masked: tl.constexpr, how: tl.constexpr,
):  # fmt: skip
    """Writes the weights of a tile; ``near_at`` with 1 where there are near pairs, and ``total``
    with them if it is ``summed``. Without ``masked`` all its columns exist, and are other rows, but
    for named ones."""
    column = t * how.BN + tl.arange(0, how.BN)[None, :]
    column_in = tl.full((1, how.BN), True, tl.int1)
    if masked:
        column_in = column < pairs.columns_16 // 16
    exists = column_in
    if masked or how.itself == ROWS_NAMED:
        exists = column_in & (column != own_column)
    norms = own_norms
    if how.norms:
        norms = tl.load(pairs.y_norms + column, mask=column_in, other=0.0)
    q, near = squares_or_distances(dots, own_norms, norms, how)
    within = exists
    if how.norms:
        within = exists & (near == 0)
        near_at = tl.where(near & exists, 1.0, near_at)
    alike = own_labels == tl.load(pairs.last + column, mask=column_in, other=0)
    other = (own, column)
    if how.self_case:
        other = (
            values_of(ends, column, column_in, formula, prefix, groups, reduction),
            column,
        )
    v = pair_weights(rooted(q, how), alike, within, (own, rows), other, gradient, how)
    tl.store(at + column, v, mask=row_in & (column < row_stride(pairs.columns_16 // 16)))
    if summed:
        total += sums_of_four(v, how)
    return near_at, total


@triton.jit
def sums_of_four(v, how: tl.constexpr):
    """Of (BM, BN) numbers those of four neighbours, which one thread holds."""
    return tl.sum(tl.reshape(v, (how.BM, how.BN // 4, 4)), 2)


@triton.jit(do_not_specialize=[*_SIZES, "stride", "parts"])
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
    sums,  # (parts, anchors), of the weights of each row, if they are summed
    stride,  # of grad
    top,
    anchors,
    columns,
    features,
    span,
    splits,
    parts,  # splits of this panel or more, those beyond with sums of 0
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
    summed: tl.constexpr,
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
    count = tl.minimum(anchors - top, height)
    local = number * how.BM + tl.arange(0, how.BM)
    row_in = local < count
    # The rows beyond are the last one again, but not written.
    place = tl.minimum(local, count - 1)
    rows = top + place
    at = panel + place.to(tl.int64)[:, None] * row_stride(columns)
    own_labels = tl.load(labels_x + rows)[:, None]
    own_norms = tl.load(x_norms + rows)[:, None]
    own_column = own_columns(itself, rows, how)[:, None]
    ends = (table, header, grad, stride, anchor_params, numbers, anchors)
    own = values_of(ends, rows[:, None], row_in[:, None], formula, prefix, groups, reduction)
    if param_row >= 0:
        if split == 0:
            poison = tl.load(header + groups)
            tl.store(at_params + rows[:, None], own[param_row] + poison, mask=row_in[:, None])
    first = split * (span // how.BN)
    end = tl.minimum(first + span // how.BN, tl.cdiv(columns, how.BN))
    whole = columns // how.BN
    alone, fast, skipped = tiles_without_masks(first, end, whole, top + number * how.BM, how)
    lanes = tl.arange(0, how.BN)[None, :]
    dots = tl.zeros((how.BM, how.BN), tl.float32)
    if fast > 0:
        dots = tl.load(at + (first + (skipped == 0).to(tl.int32)) * how.BN + lanes)
    near_at = zeros_as(dots)
    total = near_at
    if summed:
        total = sums_of_four(near_at, how)
    for i in range(0, fast):
        following = tl.minimum(i + 1, fast - 1)
        following += first + (following >= skipped).to(tl.int32)
        later = tl.load(at + following * how.BN + lanes)
        near_at, total = weights_of_tile(
            pairs, at, first + i + (i >= skipped).to(tl.int32), dots, own, own_labels, own_norms,
            own_column, rows[:, None], row_in[:, None], near_at, total, ends,
            # Not given a name, as functions cannot be assigned.
            KernelPairGradient(
                kind, term, Exponents(slope, (p0, p1, p2, p3), (n0, n1, n2, n3)), None, None
            ),
            formula, prefix, groups, reduction, summed, False, how,
        )  # fmt: skip
        dots = later
    for t in range(first, end):
        if (t == alone) | (t >= whole):
            column = t * how.BN + lanes
            dots = tl.load(at + column, mask=column < row_stride(columns), other=0.0)
            near_at, total = weights_of_tile(
                pairs, at, t, dots, own, own_labels, own_norms, own_column, rows[:, None],
                row_in[:, None], near_at, total, ends,
                KernelPairGradient(
                    kind, term, Exponents(slope, (p0, p1, p2, p3), (n0, n1, n2, n3)), None, None
                ),
                formula, prefix, groups, reduction, summed, True, how,
            )  # fmt: skip
    if how.norms:
        tl.store(marks + tl.program_id(0), tl.max(tl.max(near_at, 1), 0).to(tl.int32))
    if summed:
        to = sums + split.to(tl.int64) * anchors + rows
        tl.store(to, tl.sum(total, 1), mask=row_in)
        if split == 0:
            to += splits.to(tl.int64) * anchors
            for _ in range(splits, parts):
                tl.store(to, tl.zeros((how.BM,), tl.float32), mask=row_in)
                to += anchors
