"""The first two rows of every class as pairs, for N-pairs without references.

Classes of two rows or more have a slot each, in the order of their first rows. There are as many
slots as the rows allow for, because nobody waits to know how many classes there are. A slot without
a class has an anchor without positives, and a reference so far away that e^-distance is 0: of
Euclidean distances by one more feature, of products by one that all anchors have.
"""

from __future__ import annotations

import triton
import triton.language as tl

# As `row_kernels` has it.
_SHORT = tl.constexpr(1e-12)
# The one more feature of references in slots without a class, and their squared norm.
_FAR = tl.constexpr(1e18)
_FAR_NORM = tl.constexpr(1e36)
_FAR_PRODUCT = tl.constexpr(-1e36)


@triton.jit(do_not_specialize=["count"])
def partners_kernel(
    labels,  # (count,) int64
    partners,  # (count,) int32
    count,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Of the first and the second row of a class the other one, of other rows themselves."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    own = tl.load(labels + rows, mask=rows < count, other=0)
    earlier = tl.zeros((BM,), tl.int32)
    before = tl.zeros((BM,), tl.int32)
    after = tl.full((BM,), 2147483647, tl.int32)
    for start in range(0, count, BN):
        others = start + tl.arange(0, BN)
        there = others < count
        label = tl.load(labels + others, mask=there, other=0)
        alike = there[None, :] & (own[:, None] == label[None, :])
        smaller = others[None, :] < rows[:, None]
        earlier += tl.sum((alike & smaller).to(tl.int32), 1)
        before = tl.maximum(before, tl.max(tl.where(alike & smaller, others[None, :], 0), 1))
        larger = others[None, :] > rows[:, None]
        after = tl.minimum(after, tl.min(tl.where(alike & larger, others[None, :], 2147483647), 1))
    partner = tl.where((earlier == 0) & (after < 2147483647), after, rows)
    partner = tl.where(earlier == 1, before, partner)
    tl.store(partners + rows, partner, mask=rows < count)


@triton.jit(do_not_specialize=["count", "slots"])
def slots_kernel(
    partners,
    slot_of,  # (count,) int32, the slots of first rows, 0 elsewhere
    first,  # (slots,) int64, the first rows of slots, 0 where there is no class
    labels_x,  # (slots,) int64
    labels_y,
    filled,  # (1,) int32, how many slots have a class
    count,
    slots,
    BLOCK: tl.constexpr,
):
    """Gives slots to classes; of one program."""
    number = 0
    for start in range(0, count, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        new = tl.load(partners + rows, mask=rows < count, other=0) > rows
        slot = number + tl.cumsum(new.to(tl.int32), 0) - 1
        tl.store(slot_of + rows, tl.where(new, slot, 0), mask=rows < count)
        tl.store(first + slot, rows.to(tl.int64), mask=new)
        number += tl.sum(new.to(tl.int32), 0)
    tl.store(filled, number)
    for start in range(0, slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        tl.store(first + slot, tl.zeros((BLOCK,), tl.int64), mask=(slot >= number) & (slot < slots))
        tl.store(labels_x + slot, slot.to(tl.int64), mask=slot < slots)
        label = tl.where(slot < number, slot, -1)
        tl.store(labels_y + slot, label.to(tl.int64), mask=slot < slots)


@triton.jit
def _roles(partners, slot_of, rows, row_in):
    """The slots of rows, which are those of their classes, and which rows are first and second."""
    partner = tl.load(partners + rows, mask=row_in, other=0)
    first, second = row_in & (partner > rows), row_in & (partner < rows)
    slot = tl.load(slot_of + tl.minimum(partner, rows), mask=row_in, other=0)
    return slot.to(tl.int64), first, second


@triton.jit
def _store(x, y, at, value, first, second):
    tl.store(x + at, value, mask=first)
    tl.store(y + at, value, mask=second)


@triton.jit
def _load(x, y, at, first, second):
    one = tl.load(x + at, mask=first, other=0.0)
    return one + tl.load(y + at, mask=second, other=0.0)


@triton.jit
def _pack(
    raw, partners, slot_of, x_packed, y_packed, x_norms, y_norms, x_lengths, y_lengths, flags,
    block, count, features, width, stride, step, near_x,
    unit: tl.constexpr, ones: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    rows = block * BM + tl.arange(0, BM)
    row_in = rows < count
    slot, first, second = _roles(partners, slot_of, rows, row_in)
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
        _store(x_lengths, y_lengths, slot, length, first, second)
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
        if ones:
            values = tl.where((feature == width - 16)[None, :], 1.0, values)
        to = slot[:, None] * width + feature[None, :]
        inside = (feature < width)[None, :]
        tl.store(y_packed + to, values, mask=second[:, None] & inside)
        values = tl.where((feature == features)[None, :], near_x, values)
        tl.store(x_packed + to, values, mask=first[:, None] & inside)
    _store(x_norms, y_norms, slot, total, first, second)
    tl.store(flags, tl.sum(poison))


@triton.jit
def _fill(
    filled, x_packed, y_packed, x_norms, y_norms, block, slots, features, width, near_x, far_y,
    far_norm, ones: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Slots without a class."""
    slot = block * BM + tl.arange(0, BM)
    empty = (slot >= tl.load(filled)) & (slot < slots)
    for k in range(0, width, BK):
        feature = k + tl.arange(0, BK)
        values = tl.zeros((BM, BK), tl.float32)
        if ones:
            values = tl.where((feature == width - 16)[None, :], 1.0, values)
        extra = (feature == features)[None, :]
        to = slot.to(tl.int64)[:, None] * width + feature[None, :]
        mask = empty[:, None] & (feature < width)[None, :]
        tl.store(x_packed + to, tl.where(extra, near_x, values), mask=mask)
        tl.store(y_packed + to, tl.where(extra, far_y, values), mask=mask)
    zeros = tl.zeros((BM,), tl.float32)
    tl.store(x_norms + slot, zeros, mask=empty)
    tl.store(y_norms + slot, zeros + far_norm, mask=empty)


@triton.jit(do_not_specialize=["count", "slots", "blocks"])
def pack_pairs_kernel(
    raw, partners, slot_of, filled,
    x_packed, y_packed, x_norms, y_norms, x_lengths, y_lengths,  # of slots
    flags,  # a number of each block of rows, 0 or NaN
    count, slots, features, width, stride, step,
    blocks,  # of rows
    unit: tl.constexpr, ones: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """As `row_kernels.pack_kernel`, of the rows that are in pairs. ``ones`` is of Euclidean
    distances."""
    number = tl.program_id(0)
    near_x = 0.0 if ones else 1.0
    if number < blocks:
        _pack(
            raw, partners, slot_of, x_packed, y_packed, x_norms, y_norms, x_lengths, y_lengths,
            flags + number, number, count, features, width, stride, step, near_x,
            unit, ones, BM, BK,
        )  # fmt: skip
    else:
        far_y = _FAR if ones else _FAR_PRODUCT
        far_norm = _FAR_NORM if ones else 0.0
        _fill(
            filled, x_packed, y_packed, x_norms, y_norms, number - blocks, slots, features, width,
            near_x, far_y, far_norm, ones, BM, BK,
        )  # fmt: skip


@triton.jit
def _gradient_at(
    x_packed, y_packed, x_product, y_product, x_near, y_near, at, first, second, sums, extra,
    ones: tl.constexpr,
):  # fmt: skip
    """Packed rows, and the gradient at them; ``sums`` of weights, ``extra`` where there are near
    pairs."""
    packed = _load(x_packed, y_packed, at, first, second)
    found = -_load(x_product, y_product, at, first, second)
    if ones:
        found += sums[:, None] * packed
        found += _load(x_near, y_near, at, first & extra[:, None], second & extra[:, None])
    return packed, found


@triton.jit(do_not_specialize=["count"])
def unpack_pairs_kernel(
    out,  # (count, features), gradient at the caller's rows
    partners, slot_of, x_packed, y_packed,
    x_product, y_product,  # weights of pairs times the rows of the other side
    x_near, y_near,  # what near pairs add
    x_marks, y_marks,  # whether there are such, of each BM slots
    x_lengths, y_lengths, header, count, features, width,
    groups: tl.constexpr, unit: tl.constexpr, ones: tl.constexpr, BM: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """As `row_kernels.unpack_kernel`; rows that are in no pair get 0."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    row_in = rows < count
    slot, first, second = _roles(partners, slot_of, rows, row_in)
    poison = tl.load(header + groups)
    sums = tl.zeros((BM,), tl.float32)
    extra = row_in
    if ones:
        sums = _load(x_product, y_product, slot * width + width - 16, first, second)
        marks = tl.load(x_marks + slot // BM, mask=first, other=0)
        extra = (marks + tl.load(y_marks + slot // BM, mask=second, other=0)) > 0
    along = tl.zeros((BM,), tl.float32)
    inverse = tl.full((BM,), 1.0, tl.float64)
    if unit:
        length = _load(x_lengths, y_lengths, slot, first, second)
        inverse = 1.0 / tl.maximum(length, _SHORT, propagate_nan=tl.PropagateNan.ALL)
        for k in range(0, features, BK):
            feature = k + tl.arange(0, BK)
            inside = (feature < features)[None, :]
            at = slot[:, None] * width + feature[None, :]
            packed, found = _gradient_at(
                x_packed, y_packed, x_product, y_product, x_near, y_near, at,
                first[:, None] & inside, second[:, None] & inside, sums, extra, ones,
            )  # fmt: skip
            along += tl.sum(packed * found, axis=1)
        # A row too short to be brought to unit length is divided by a constant.
        along = tl.where(length < _SHORT, 0.0, along)
    for k in range(0, features, BK):
        feature = k + tl.arange(0, BK)
        inside = (feature < features)[None, :]
        at = slot[:, None] * width + feature[None, :]
        packed, found = _gradient_at(
            x_packed, y_packed, x_product, y_product, x_near, y_near, at,
            first[:, None] & inside, second[:, None] & inside, sums, extra, ones,
        )  # fmt: skip
        if unit:
            found -= packed * along[:, None]
            found = (found.to(tl.float64) * inverse[:, None]).to(tl.float32)
            found = tl.where((first | second)[:, None], found, 0.0)
        to = out + rows.to(tl.int64)[:, None] * features + feature[None, :]
        tl.store(to, (found + poison).to(out.dtype.element_ty), mask=row_in[:, None] & inside)
