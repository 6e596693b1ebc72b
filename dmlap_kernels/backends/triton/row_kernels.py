"""Kernels over rows: all of a step but pairs.

Rows are packed in the order in which they come, anchors and then references: float32, of unit
length where the loss asks for it, padded with zeros to a multiple of 16 features. For (sq)euclidean
distances 16 more hold a 1 and zeros, so that a product with weights of pairs brings their sums:
those of references, as those of anchors come with the weights, unless a loss makes its own.

Where products are those of bfloat16, rows are split as well: x = x1 + x2 + x3, each of the eight
leading bits of what the ones before it leave, so that the sum is exact. Of the nine products of
their parts the three smallest are below the rounding of float32; the other six are neighbours in
(1, 3, 1, 2, 2, 1, 1). So rows that hold these parts side by side, without the last one times
without the first one, are one product of all six. Small ones come first, as tensor cores cut off
what a sum has no bits for.

What formulas make of an anchor is a column of a table (k, anchors); see `plans.Plan`. A header has
the share of each term of a group in the loss, and after the groups 0, or NaN where an embedding is
not finite.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.forward import merged_state

# Rows shorter than this are not brought to unit length, as in torch.nn.functional.normalize.
_SHORT = tl.constexpr(1e-12)


@triton.jit
def loaded(table, count, index, mask, size: tl.constexpr):
    """The first rows of a table (k, count) at ``index``."""
    values = ()
    for k in tl.static_range(size):
        one = (tl.load(table + count.to(tl.int64) * k + index, mask=mask, other=0.0),)
        values = values + one  # type: ignore[assignment]
    return values


@triton.jit
def group_weights(
    table,
    header,
    grad,
    stride,
    anchors,
    index,
    mask,
    prefix: tl.constexpr,
    groups: tl.constexpr,
    reduction: tl.constexpr,
):
    """What the sums of each group of anchors at ``index`` count with, the gradient at the loss
    included."""
    upstream = tl.load(grad + index * stride, mask=mask, other=0.0)
    weights = ()
    for g in tl.static_range(groups):
        first = table + anchors.to(tl.int64) * (prefix + 3 * g) + index
        if reduction == "none":
            number = tl.load(first + anchors, mask=mask, other=0.0)
            one = (upstream / tl.maximum(number, 1.0),)
        elif reduction == "mean_nonzero":
            positive = tl.load(first + 2 * anchors, mask=mask, other=0.0)
            one = (tl.where(positive > 0, tl.load(header + g) * upstream, 0.0),)
        else:
            one = (tl.load(header + g) * upstream,)
        weights = weights + one  # type: ignore[assignment]
    return weights


@triton.jit
def _leading(values):
    """The eight leading bits of float32 numbers, as such."""
    bits = values.to(tl.int32, bitcast=True) & -65536
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _split(parts, values, mask, depth):
    """Stores the parts of ``values`` at ``parts``, of which each row has seven times ``depth``."""
    first = _leading(values)
    second = _leading(values - first)
    third = values - first - second
    for place in tl.static_range(7):
        one = first
        if place == 3 or place == 4:
            one = second
        if place == 1:
            one = third
        tl.store(parts + place * depth, one.to(tl.bfloat16), mask=mask)


@triton.jit
def _pack(
    raw, packed, parts, norms, lengths, flags, block, count, features, width, stride, step,
    unit: tl.constexpr, ones: tl.constexpr, split: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A block of rows; ``stride`` and ``step`` of the caller's rows."""
    rows = block * BM + tl.arange(0, BM)
    row_in = rows < count
    at = raw + rows.to(tl.int64)[:, None] * stride
    inverse = tl.full((BM,), 1.0, tl.float64)
    if unit:
        squares = tl.zeros((BM,), tl.float64)
        for k in range(0, features, BK):
            feature = k + tl.arange(0, BK)
            mask = row_in[:, None] & (feature < features)[None, :]
            values = tl.load(at + feature.to(tl.int64)[None, :] * step, mask=mask, other=0.0)
            values = values.to(tl.float32).to(tl.float64)
            squares += tl.sum(values * values, axis=1)
        length = tl.sqrt(squares)
        tl.store(lengths + rows, length, mask=row_in)
        inverse = 1.0 / tl.maximum(length, _SHORT, propagate_nan=tl.PropagateNan.ALL)
    total = tl.zeros((BM,), tl.float32)
    poison = tl.zeros((BM,), tl.float32)
    for k in range(0, width, BK):
        feature = k + tl.arange(0, BK)
        mask = row_in[:, None] & (feature < features)[None, :]
        values = tl.load(at + feature.to(tl.int64)[None, :] * step, mask=mask, other=0.0)
        values = values.to(tl.float32)
        if unit:
            values = (values.to(tl.float64) * inverse[:, None]).to(tl.float32)
        total += tl.sum(values * values, axis=1)
        poison += tl.sum(values * 0.0, axis=1)
        if split:
            depth = width - 16 if ones else width
            to = parts + rows.to(tl.int64)[:, None] * (7 * depth) + feature[None, :]
            _split(to, values, row_in[:, None] & (feature < depth)[None, :], depth)
        if ones:
            # Features are padded to a multiple of 16, and one of the 16 that follow is 1.
            values = tl.where((feature == width - 16)[None, :], 1.0, values)
        out = packed + rows.to(tl.int64)[:, None] * width + feature[None, :]
        tl.store(out, values, mask=row_in[:, None] & (feature < width)[None, :])
    tl.store(norms + rows, total, mask=row_in)
    tl.store(flags, tl.sum(poison))


@triton.jit(do_not_specialize=["anchors", "columns", "blocks"])
def pack_kernel(
    x, y,  # as the caller has them
    x_packed, y_packed,
    x_parts, y_parts,  # bfloat16, (rows, 7 * features) where rows are split
    x_norms, y_norms, x_lengths, y_lengths,
    flags,  # a number of each program, 0 or NaN
    anchors, columns, features, width, x_stride, x_step, y_stride, y_step,
    blocks,  # of anchors
    unit: tl.constexpr, ones: tl.constexpr, split: tl.constexpr, BM: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    if number < blocks:
        _pack(
            x, x_packed, x_parts, x_norms, x_lengths, flags + number, number, anchors, features,
            width, x_stride, x_step, unit, ones, split, BM, BK,
        )  # fmt: skip
    else:
        _pack(
            y, y_packed, y_parts, y_norms, y_lengths, flags + number, number - blocks, columns,
            features, width, y_stride, y_step, unit, ones, split, BM, BK,
        )  # fmt: skip


@triton.jit(do_not_specialize=["top", "anchors", "splits", "height"])
def formula_kernel(
    partials,  # (size + 2, splits, rows of the panel), as the sweep left them
    table,
    anchor_params,
    top,
    anchors,
    splits,
    number0,
    number1,
    number2,
    number3,
    number4,
    number5,
    formula: tl.constexpr,
    empty: tl.constexpr,
    merge: tl.constexpr,
    finish: tl.constexpr,
    size: tl.constexpr,
    prefix: tl.constexpr,  # rows of the table before those of this formula
    outputs: tl.constexpr,
    height,
    BLOCK: tl.constexpr,
):
    """What a sweep found of the rows of a panel, as the formula has it."""
    local = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rows = top + local
    mask = (local < height) & (rows < anchors)
    count = tl.minimum(anchors - top, height)
    part = splits.to(tl.int64) * count
    state = empty(BLOCK)
    positives = tl.zeros((BLOCK,), tl.int64)
    negatives = tl.zeros((BLOCK,), tl.int64)
    for split in range(0, splits):
        at = split * count.to(tl.int64) + local
        state = merged_state(partials, part, at, mask, state, size, merge)
        bits = tl.load(partials + size * part + at, mask=mask, other=0.0)
        positives += bits.to(tl.int32, bitcast=True).to(tl.int64)
        bits = tl.load(partials + (size + 1) * part + at, mask=mask, other=0.0)
        negatives += bits.to(tl.int32, bitcast=True).to(tl.int64)
    numbers = (number0, number1, number2, number3, number4, number5)
    values = loaded(table, anchors, rows, mask, prefix)
    param = tl.load(anchor_params + rows, mask=mask, other=0.0)
    results = formula(finish(state), (positives, negatives), (), values, param, numbers)
    for k in tl.static_range(outputs):
        at = table + anchors.to(tl.int64) * (prefix + k) + rows
        tl.store(at, results[k], mask=mask)


@triton.jit(do_not_specialize=["anchors", "blocks"])
def reduce_kernel(
    table,
    flags,
    header,
    loss,  # (), or (anchors,)
    anchors,
    blocks,  # flags
    prefix: tl.constexpr,
    groups: tl.constexpr,
    reduction: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The loss and the header, by one program, so that sums are in a fixed order."""
    poison = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, blocks, BLOCK):
        at = start + tl.arange(0, BLOCK)
        poison += tl.load(flags + at, mask=at < blocks, other=0.0)
    nonfinite = tl.sum(poison)
    tl.store(header + groups, nonfinite)
    value = nonfinite.to(tl.float64)
    for g in tl.static_range(groups):
        totals = tl.zeros((BLOCK,), tl.float64)
        counts = tl.zeros((BLOCK,), tl.float64)
        first = table + anchors.to(tl.int64) * (prefix + 3 * g)
        for start in range(0, anchors, BLOCK):
            at = start + tl.arange(0, BLOCK)
            mask = at < anchors
            total = tl.load(first + at, mask=mask, other=0.0)
            if reduction == "mean_nonzero":
                count = tl.load(first + 2 * anchors + at, mask=mask, other=0.0)
                total = tl.where(count > 0, total, 0.0)
            else:
                count = tl.load(first + anchors + at, mask=mask, other=0.0)
            totals += total.to(tl.float64)
            counts += count.to(tl.float64)
            if reduction == "none":
                one = total / tl.maximum(count, 1.0) + nonfinite
                if g > 0:
                    one += tl.load(loss + at, mask=mask, other=0.0)
                tl.store(loss + at, one, mask=mask)
        share = tl.full((), 1.0, tl.float64)
        if reduction == "mean" or reduction == "mean_nonzero":
            share = 1.0 / tl.maximum(tl.sum(counts), 1.0)
        tl.store(header + g, share.to(tl.float32))
        value += tl.sum(totals) * share
    if reduction != "none":
        tl.store(loss, value.to(tl.float32))


@triton.jit
def _unpack(
    out, raw, packed, product, near, marks, lengths, header, parts_of_sums, parts, block, count,
    features, width, groups: tl.constexpr, unit: tl.constexpr, ones: tl.constexpr,
    summed: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    rows = block * BM + tl.arange(0, BM)
    row_in = rows < count
    poison = tl.load(header + groups)
    at = rows.to(tl.int64)[:, None] * width
    sums = tl.zeros((BM,), tl.float32)
    extra = False
    # Of the product, which has no ones where sums came with the weights.
    at_product = at
    if ones:
        if summed:
            at_product = rows.to(tl.int64)[:, None] * (width - 16)
            one = parts_of_sums + rows
            for _ in range(0, parts):
                sums += tl.load(one, mask=row_in, other=0.0)
                one += count
        else:
            own = rows.to(tl.int64) * width + width - 16
            sums = tl.load(product + own, mask=row_in, other=0.0)
        extra = tl.load(marks + block) > 0
    along = tl.zeros((BM,), tl.float32)
    inverse = tl.full((BM,), 1.0, tl.float64)
    if unit:
        length = tl.load(lengths + rows, mask=row_in, other=1.0)
        inverse = 1.0 / tl.maximum(length, _SHORT, propagate_nan=tl.PropagateNan.ALL)
        for k in range(0, features, BK):
            feature = k + tl.arange(0, BK)
            mask = row_in[:, None] & (feature < features)[None, :]
            rows_of = tl.load(packed + at + feature[None, :], mask=mask, other=0.0)
            found = _gradient_at(
                product + at_product + feature[None, :], near + at + feature[None, :], rows_of,
                mask, sums, extra, ones,
            )  # fmt: skip
            along += tl.sum(rows_of * found, axis=1)
        # A row too short to be brought to unit length is divided by a constant.
        along = tl.where(length < _SHORT, 0.0, along)
    for k in range(0, features, BK):
        feature = k + tl.arange(0, BK)
        mask = row_in[:, None] & (feature < features)[None, :]
        rows_of = tl.load(packed + at + feature[None, :], mask=mask, other=0.0)
        found = _gradient_at(
            product + at_product + feature[None, :], near + at + feature[None, :], rows_of, mask,
            sums, extra, ones,
        )  # fmt: skip
        if unit:
            found -= rows_of * along[:, None]
            found = (found.to(tl.float64) * inverse[:, None]).to(tl.float32)
        to = out + rows.to(tl.int64)[:, None] * features + feature[None, :]
        tl.store(to, (found + poison).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gradient_at(product, near, rows_of, mask, sums, extra, ones: tl.constexpr):
    found = -tl.load(product, mask=mask, other=0.0)
    if ones:
        found += sums[:, None] * rows_of
        if extra:
            found += tl.load(near, mask=mask, other=0.0)
    return found


@triton.jit(do_not_specialize=["anchors", "columns", "blocks", "parts"])
def unpack_kernel(
    at_x, at_y,  # gradients at the caller's rows, contiguous
    x, y, x_packed, y_packed,
    x_product, y_product,  # weights of pairs times the rows of the other side
    x_near, y_near,  # what pairs add that are not in the weights
    x_marks, y_marks,  # whether there are such, of each block
    x_lengths, y_lengths, header,
    sums,  # (parts, anchors), of the weights of anchors, if ``summed``
    anchors, columns, features, width,
    blocks,  # of anchors, 0 where their gradient is not wanted
    parts, groups: tl.constexpr, unit: tl.constexpr, ones: tl.constexpr, summed: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    if number < blocks:
        _unpack(
            at_x, x, x_packed, x_product, x_near, x_marks, x_lengths, header, sums, parts,
            number, anchors, features, width, groups, unit, ones, summed, BM, BK,
        )  # fmt: skip
    else:
        _unpack(
            at_y, y, y_packed, y_product, y_near, y_marks, y_lengths, header, sums, parts,
            number - blocks, columns, features, width, groups, unit, ones, False, BM, BK,
        )  # fmt: skip
