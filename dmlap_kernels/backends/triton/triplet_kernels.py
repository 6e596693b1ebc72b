"""All triplets or semi-hard ones, over panels of distances.

A program owns an anchor, and takes its positives a few at a time against its negatives. Where
distances are Euclidean, those of near pairs, which come from differences, have the sign bit: the
gradient of such pairs does not go through products. With ``third``, for swap, the distances
``among`` references count as well.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.coefficients import coefficient_of
from dmlap_kernels.backends.triton.keys import ordered
from dmlap_kernels.backends.triton.panel_kernels import row_stride
from dmlap_kernels.backends.triton.policies import sigmoid, softplus
from dmlap_kernels.backends.triton.positives import swap_share
from dmlap_kernels.backends.triton.run_kernels import own_of, weights_of
from dmlap_kernels.backends.triton.tile import APART, Pairs, of_products

_NOTHING = tl.constexpr(2**63 - 1)
_NEVER = tl.constexpr(-(2**63))
_LOW = tl.constexpr(0x7FFFFFFF)  # the bits of a key that hold a place


@triton.jit(do_not_specialize=["top", "anchors", "columns", "span", "splits", "height"])
def distances_kernel(
    panel,
    x,  # (anchors, features), as are y and both norms: of packed rows
    y,
    x_norms,
    y_norms,
    itself,  # as in `Pairs`
    top,  # first row of the panel
    anchors,
    columns,
    features,
    span,  # columns of a split, whole tiles
    splits,
    height,  # of panels, rows at most
    how: tl.constexpr,
):
    """Products become distances, in place."""
    pairs = Pairs(x, y, x_norms, y_norms, x, x, itself, anchors * 16, columns * 16, features)
    number, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    local = number * how.BM + tl.arange(0, how.BM)
    row_in = local < tl.minimum(anchors - top, height)
    rows = top + local
    at = panel + local.to(tl.int64)[:, None] * row_stride(columns)
    for c in range(split * span, tl.minimum((split + 1) * span, columns), how.BN):
        line = c + tl.arange(0, how.BN)
        line_in = line < columns
        there = row_in[:, None] & line_in[None, :]
        dots = tl.load(at + line[None, :], mask=there, other=0.0)
        d, close = of_products(pairs, dots, rows, row_in, line, line_in, how.itself, how)
        if how.norms:
            d = tl.where(close > 0, -d, d)
        tl.store(at + line[None, :], d, mask=there)


@triton.jit
def distance_at(at, mask, how: tl.constexpr):
    d = tl.load(at, mask=mask, other=0.0)
    return tl.abs(d) if how.norms else d


@triton.jit
def slope_of(excess, smooth: tl.constexpr):
    if smooth:
        return sigmoid(excess)
    else:
        return tl.where(excess > 0, 1.0, 0.0)


@triton.jit
def term_of(excess, smooth: tl.constexpr):
    if smooth:
        return softplus(excess)
    else:
        return tl.maximum(excess, 0.0)


@triton.jit
def partners(order, first, end, left_out, BM: tl.constexpr):
    """Rows (BM,) from this place of a class on, and which there are; one may be left out."""
    place = first + tl.arange(0, BM)
    there = place < end
    row = tl.load(order + place, mask=there, other=0)
    return row, there & (row != left_out)


@triton.jit
def _columns(c, label, own, labels_y, columns, BN: tl.constexpr):
    """Columns (BN,) from c on, and which are negatives."""
    column = c + tl.arange(0, BN)
    there = column < columns
    other = tl.load(labels_y + column, mask=there, other=0)
    return column, there & (other != label) & (column != own)


@triton.jit
def _farthest(d, place, negative):
    """Keys of which the greatest is the farthest negative; of equal ones the first in the order."""
    return tl.where(negative, (ordered(d) << 32) | (-place + _LOW), _NEVER)


@triton.jit
def _nearest(d, place, negative):
    """Keys of which the least is the nearest negative; of equal ones the first in the order."""
    return tl.where(negative, (ordered(d) << 32) | place, _NOTHING)


@triton.jit
def _mined(nearest, farthest, order):
    """The column of the nearest negative that is farther than the positive, else of the farthest;
    -1 for none."""
    place = tl.where(nearest < _NOTHING, nearest & _LOW, -(farthest & _LOW) + _LOW)
    exists = farthest > _NEVER
    return tl.where(exists, tl.load(order + tl.where(exists, place, 0)), -1)


@triton.jit
def _farthest_of(
    at, label, own, labels_y, places, columns, BN: tl.constexpr, how: tl.constexpr
):  # fmt: skip
    """The greatest key of an anchor."""
    best = tl.full((BN,), _NEVER, tl.int64)
    for c in range(0, columns, BN):
        column, negative = _columns(c, label, own, labels_y, columns, BN)
        place = tl.load(places + column, mask=negative, other=0).to(tl.int64)
        best = tl.maximum(best, _farthest(distance_at(at + column, negative, how), place, negative))
    return tl.max(best, 0)


@triton.jit
def _mined_of(
    at, d_ap, farthest, label, own, labels_y, order, places, columns, BM: tl.constexpr,
    BN: tl.constexpr, how: tl.constexpr,
):  # fmt: skip
    """Columns (BM,) of the negatives of an anchor's positives, -1 for none."""
    best = tl.full((BM, BN), _NOTHING, tl.int64)
    for c in range(0, columns, BN):
        column, negative = _columns(c, label, own, labels_y, columns, BN)
        place = tl.load(places + column, mask=negative, other=0).to(tl.int64)
        d = distance_at(at + column, negative, how)
        key = _nearest(d, place, negative)[None, :]
        best = tl.minimum(best, tl.where(d[None, :] > d_ap[:, None], key, _NOTHING))
    nearest = tl.min(best, 1)
    return _mined(nearest, tl.zeros_like(nearest) + farthest, order)


@triton.jit
def _to_negatives(
    at, among, positive, there, column, negative, stride, third: tl.constexpr, how: tl.constexpr
):
    """Distances of negatives to the anchor (1, BN), and the lesser ones to it and its positives
    (BM, BN), with both."""
    d = distance_at(at + column, negative, how)[None, :]
    other = d
    if third:
        mask = there[:, None] & negative[None, :]
        other = distance_at(among + positive[:, None] * stride + column[None, :], mask, how)
    return d, other


@triton.jit(do_not_specialize=["top", "anchors", "columns"])
def triplets_kernel(
    distances,  # of the panel
    among,  # (columns, columns), any panel where not ``third``
    order, places, begins, ends,  # as `runs_kernel` has them
    labels_x, labels_y, itself,
    table,  # (3, anchors): of each anchor the sum of terms, how many there are and are positive
    statistics,  # (3, anchors) float64: how many terms there are, hinges above 0, and their sum
    top, anchors, columns, margin,
    every: tl.constexpr,  # all triplets, or semi-hard ones
    smooth: tl.constexpr, third: tl.constexpr,
    told: tl.constexpr,  # whether statistics are wanted
    BM: tl.constexpr,  # positives
    BN: tl.constexpr, how: tl.constexpr,
):  # fmt: skip
    """Grid: anchors of the panel."""
    row = top + tl.program_id(0)
    stride = row_stride(columns)
    at = distances + tl.program_id(0) * stride
    label, begin, end = tl.load(labels_x + row), tl.load(begins + row), tl.load(ends + row)
    own = own_of(itself, row, True, how)
    total = tl.zeros((), tl.float64)
    nonzero = tl.zeros((), tl.int64)
    hinges = tl.zeros((), tl.float64)
    violated = tl.zeros((), tl.int64)
    farthest = tl.zeros((), tl.int64)
    if every == 0:
        farthest = _farthest_of(at, label, own, labels_y, places, columns, BN, how)
    for first in range(begin, end, BM):
        positive, there = partners(order, first, end, own, BM)
        d_ap = distance_at(at + positive, there, how)
        if every:
            sums = tl.zeros((BM, BN), tl.float32)
            some = tl.zeros((BM, BN), tl.int32)
            plain = tl.zeros((BM, BN), tl.float32)
            above = tl.zeros((BM, BN), tl.int32)
            for c in range(0, columns, BN):
                column, negative = _columns(c, label, own, labels_y, columns, BN)
                d, other = _to_negatives(
                    at, among, positive, there, column, negative, stride, third, how
                )
                excess = d_ap[:, None] - tl.minimum(d, other) + margin
                mask = there[:, None] & negative[None, :]
                term = tl.where(mask, term_of(excess, smooth), 0.0)
                sums += term
                some += (term > 0).to(tl.int32)
                if told and smooth:
                    hinge = tl.where(mask, tl.maximum(excess, 0.0), 0.0)
                    plain += hinge
                    above += (hinge > 0).to(tl.int32)
            total += tl.sum(tl.sum(sums, 1), 0).to(tl.float64)
            nonzero += tl.sum(tl.sum(some, 1), 0).to(tl.int64)
            if told and smooth:
                hinges += tl.sum(tl.sum(plain, 1), 0).to(tl.float64)
                violated += tl.sum(tl.sum(above, 1), 0).to(tl.int64)
        else:
            found = _mined_of(
                at, d_ap, farthest, label, own, labels_y, order, places, columns, BM, BN, how
            )
            there &= found >= 0
            d_an = distance_at(at + found, there, how)
            if third:
                d_pn = distance_at(among + positive * stride + found, there, how)
                d_an = tl.minimum(d_an, d_pn)
            excess = d_ap - d_an + margin
            term = tl.where(there, term_of(excess, smooth), 0.0)
            total += tl.sum(term, 0).to(tl.float64)
            nonzero += tl.sum((term > 0).to(tl.int32), 0).to(tl.int64)
            if told and smooth:
                hinge = tl.where(there, tl.maximum(excess, 0.0), 0.0)
                hinges += tl.sum(hinge, 0).to(tl.float64)
                violated += tl.sum((hinge > 0).to(tl.int32), 0).to(tl.int64)
    positives, negatives = end - begin, columns - (end - begin)
    if how.itself != APART:
        if own >= 0:
            alike = tl.load(labels_y + own) == label
            positives -= alike.to(tl.int32)
            negatives -= (alike == 0).to(tl.int32)
    if every == 0:
        negatives = tl.minimum(negatives, 1)
    tl.store(table + row, total.to(tl.float32))
    terms = positives.to(tl.float64) * negatives.to(tl.float64)
    tl.store(table + anchors + row, terms.to(tl.float32))
    tl.store(table + 2 * anchors + row, nonzero.to(tl.float32))
    if told:
        if smooth == 0:
            hinges, violated = total, nonzero
        tl.store(statistics + row, terms)
        tl.store(statistics + anchors + row, violated.to(tl.float64))
        tl.store(statistics + 2 * anchors + row, hinges)


@triton.jit
def add_at(to, column, values, there):
    """Adds values (BM,) at columns (BM,), some of which may be the same."""
    same = (column[:, None] == column[None, :]) & there[None, :]
    total = tl.sum(tl.where(same, values[None, :], 0.0), 1)
    # All threads have read before the first of them writes, and written before one reads.
    tl.debug_barrier()
    before = tl.load(to + column, mask=there, other=0.0)
    tl.debug_barrier()
    tl.store(to + column, before + total, mask=there)


@triton.jit
def _of_all(
    at, to, among, weight, label, own, begin, end, order, labels_y, columns, margin,
    smooth: tl.constexpr, third: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    how: tl.constexpr,
):  # fmt: skip
    """Writes d loss / d d of an anchor's pairs to a row of weights."""
    stride = row_stride(columns)
    for first in range(begin, end, BM):
        positive, there = partners(order, first, end, own, BM)
        d_ap = distance_at(at + positive, there, how)[:, None]
        slopes = tl.zeros((BM, BN), tl.float32)
        for c in range(0, columns, BN):
            column, negative = _columns(c, label, own, labels_y, columns, BN)
            d, other = _to_negatives(
                at, among, positive, there, column, negative, stride, third, how
            )
            slope = slope_of(d_ap - tl.minimum(d, other) + margin, smooth)
            slopes += tl.where(negative[None, :], slope, 0.0)
        tl.store(to + positive, weight * tl.sum(slopes, 1), mask=there)
    for c in range(0, columns, BN):
        column, negative = _columns(c, label, own, labels_y, columns, BN)
        slopes = tl.zeros((BM, BN), tl.float32)
        for first in range(begin, end, BM):
            positive, there = partners(order, first, end, own, BM)
            d_ap = distance_at(at + positive, there, how)[:, None]
            d, other = _to_negatives(
                at, among, positive, there, column, negative, stride, third, how
            )
            slope = slope_of(d_ap - tl.minimum(d, other) + margin, smooth)
            if third:
                slope = swap_share(d, other, slope)
            slopes += tl.where(there[:, None], slope, 0.0)
        tl.store(to + column, -weight * tl.sum(slopes, 0), mask=negative)
    if how.itself != APART:
        if own >= 0:
            tl.store(to + own, 0.0)


@triton.jit
def _of_semihard(
    at, to, among, weight, label, own, begin, end, order, places, labels_y, columns, margin,
    smooth: tl.constexpr, third: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    how: tl.constexpr,
):  # fmt: skip
    """The same; several positives may have one negative."""
    for c in range(0, columns, BN):
        column = c + tl.arange(0, BN)
        tl.store(to + column, tl.zeros((BN,), tl.float32), mask=column < columns)
    farthest = _farthest_of(at, label, own, labels_y, places, columns, BN, how)
    for first in range(begin, end, BM):
        positive, there = partners(order, first, end, own, BM)
        d_ap = distance_at(at + positive, there, how)
        found = _mined_of(
            at, d_ap, farthest, label, own, labels_y, order, places, columns, BM, BN, how
        )
        there &= found >= 0
        d_an = distance_at(at + found, there, how)
        if third:
            d_pn = distance_at(among + positive * row_stride(columns) + found, there, how)
            slope = weight * slope_of(d_ap - tl.minimum(d_an, d_pn) + margin, smooth)
            add_at(to, found, -swap_share(d_an, d_pn, slope), there)
        else:
            slope = weight * slope_of(d_ap - d_an + margin, smooth)
            add_at(to, found, -slope, there)
        tl.store(to + positive, slope, mask=there)


@triton.jit
def _third_of_all(
    at, to, distances, ends, label, row, begin, end, order, itself, labels_y, columns, margin,
    adds: tl.constexpr, smooth: tl.constexpr, reduction: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, how: tl.constexpr,
):  # fmt: skip
    """Writes or adds d loss / d d of a reference, as a positive, and negatives. Its distances are
    ``at``, its anchors from ``begin`` on."""
    stride = row_stride(columns)
    table, header, grad, grad_stride, anchors = ends
    for c in range(0, columns, BN):
        column, negative = _columns(c, label, -1, labels_y, columns, BN)
        d = distance_at(at + column, negative, how)[None, :]
        total = tl.zeros((BM, BN), tl.float32)
        for first in range(begin, end, BM):
            anchor, there = partners(order, first, end, -1, BM)
            own = own_of(itself, anchor, there, how)
            there &= own != row
            of_anchor = distances + anchor[:, None] * stride
            d_ap = distance_at(of_anchor + row, there[:, None], how)
            mask = there[:, None] & negative[None, :] & (own[:, None] != column[None, :])
            d_an = distance_at(of_anchor + column[None, :], mask, how)
            weight = weights_of(table, header, grad, grad_stride, anchors, anchor, there, reduction)
            slope = weight[:, None] * slope_of(d_ap - tl.minimum(d_an, d) + margin, smooth)
            total += tl.where(mask, swap_share(d, d_an, slope), 0.0)
        found = -tl.sum(total, 0)
        if adds:
            found += tl.load(to + column, mask=negative, other=0.0)
            tl.store(to + column, found, mask=negative)
        else:
            tl.store(to + column, tl.where(negative, found, 0.0), mask=column < columns)


@triton.jit
def _third_of_semihard(
    at, to, distances, ends, label, row, begin, end, order, itself, labels_y, columns, margin,
    order_y, places, adds: tl.constexpr, smooth: tl.constexpr, reduction: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, how: tl.constexpr,
):  # fmt: skip
    """The same. Negatives of the pairs are mined again."""
    stride = row_stride(columns)
    table, header, grad, grad_stride, anchors = ends
    if adds == 0:
        for c in range(0, columns, BN):
            column = c + tl.arange(0, BN)
            tl.store(to + column, tl.zeros((BN,), tl.float32), mask=column < columns)
    for first in range(begin, end, BM):
        anchor, there = partners(order, first, end, -1, BM)
        own = own_of(itself, anchor, there, how)
        there &= own != row
        of_anchor = distances + anchor * stride
        d_ap = distance_at(of_anchor + row, there, how)
        near = tl.full((BM, BN), _NOTHING, tl.int64)
        far = tl.full((BM, BN), _NEVER, tl.int64)
        for c in range(0, columns, BN):
            column, negative = _columns(c, label, -1, labels_y, columns, BN)
            place = tl.load(places + column, mask=negative, other=0).to(tl.int64)[None, :]
            mask = there[:, None] & negative[None, :] & (own[:, None] != column[None, :])
            d_an = distance_at(of_anchor[:, None] + column[None, :], mask, how)
            far = tl.maximum(far, _farthest(d_an, place, mask))
            near = tl.minimum(near, _nearest(d_an, place, mask & (d_an > d_ap[:, None])))
        found = _mined(tl.min(near, 1), tl.max(far, 1), order_y)
        there &= found >= 0
        d_an, d_pn = distance_at(of_anchor + found, there, how), distance_at(at + found, there, how)
        weight = weights_of(table, header, grad, grad_stride, anchors, anchor, there, reduction)
        slope = weight * slope_of(d_ap - tl.minimum(d_an, d_pn) + margin, smooth)
        add_at(to, found, -swap_share(d_pn, d_an, slope), there)


@triton.jit(do_not_specialize=["stride", "top", "anchors", "columns"])
def triplet_weights_kernel(
    distances,
    among,
    weights,  # (rows of the panel, columns): d loss / d d of the pairs of their anchors alone
    order, places, begins, ends, labels_x, labels_y, itself, table, header,
    grad,  # (), or (anchors,)
    stride,  # of grad
    top, anchors, columns, margin,
    every: tl.constexpr, smooth: tl.constexpr, third: tl.constexpr, reduction: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, how: tl.constexpr,
):  # fmt: skip
    """As `triplets_kernel`. Of a batch with itself, rows are those of positives, too."""
    row = top + tl.program_id(0)
    own_row = tl.program_id(0) * row_stride(columns)
    at, to = distances + own_row, weights + own_row
    label, begin, end = tl.load(labels_x + row), tl.load(begins + row), tl.load(ends + row)
    own = own_of(itself, row, True, how)
    weight = weights_of(table, header, grad, stride, anchors, row, row < anchors, reduction)
    if every:
        _of_all(
            at, to, among, weight, label, own, begin, end, order, labels_y, columns, margin,
            smooth, third, BM, BN, how,
        )  # fmt: skip
    else:
        _of_semihard(
            at, to, among, weight, label, own, begin, end, order, places, labels_y, columns,
            margin, smooth, third, BM, BN, how,
        )  # fmt: skip
    if third and how.self_case:
        tl.debug_barrier()
        of_terms = (table, header, grad, stride, anchors)
        if every:
            _third_of_all(
                at, to, distances, of_terms, label, row, begin, end, order, itself, labels_y,
                columns, margin, True, smooth, reduction, BM, BN, how,
            )  # fmt: skip
        else:
            _third_of_semihard(
                at, to, distances, of_terms, label, row, begin, end, order, itself, labels_y,
                columns, margin, order, places, True, smooth, reduction, BM, BN, how,
            )  # fmt: skip


@triton.jit(do_not_specialize=["stride", "anchors", "columns"])
def third_weights_kernel(
    distances,  # (anchors, columns)
    among,
    weights,  # (columns, columns): d loss / d d of pairs of references
    order_x, begins, ends,  # of anchors, and of each reference where its class is among them
    order, places, labels_y, itself, table, header, grad, stride, anchors, columns, margin,
    every: tl.constexpr, smooth: tl.constexpr, reduction: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, how: tl.constexpr,
):  # fmt: skip
    """Grid: references, as positives."""
    row = tl.program_id(0)
    own_row = row * row_stride(columns)
    at, to = among + own_row, weights + own_row
    label, begin, end = tl.load(labels_y + row), tl.load(begins + row), tl.load(ends + row)
    of_terms = (table, header, grad, stride, anchors)
    if every:
        _third_of_all(
            at, to, distances, of_terms, label, row, begin, end, order_x, itself, labels_y,
            columns, margin, False, smooth, reduction, BM, BN, how,
        )  # fmt: skip
    else:
        _third_of_semihard(
            at, to, distances, of_terms, label, row, begin, end, order_x, itself, labels_y,
            columns, margin, order, places, False, smooth, reduction, BM, BN, how,
        )  # fmt: skip


@triton.jit(do_not_specialize=["top", "anchors", "columns", "span", "splits", "height"])
def coefficients_kernel(
    distances,  # become the coefficients of near pairs, and 0
    weights,  # d loss / d d; become v of the other pairs, as in `coefficients`
    marks,  # (splits, rows of the panel), which have near pairs with a coefficient
    top, anchors, columns, span, splits, height, how: tl.constexpr,
):  # fmt: skip
    """Of Euclidean distances."""
    number, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    local = number * how.BM + tl.arange(0, how.BM)
    count = tl.minimum(anchors - top, height)
    row_in = local < count
    at = local.to(tl.int64)[:, None] * row_stride(columns)
    close = tl.zeros((how.BM, how.BN), tl.int32)
    for c in range(split * span, tl.minimum((split + 1) * span, columns), how.BN):
        line = c + tl.arange(0, how.BN)[None, :]
        there = row_in[:, None] & (line < columns)
        d = tl.load(distances + at + line, mask=there, other=0.0)
        near = d.to(tl.int32, bitcast=True) < 0
        v = tl.load(weights + at + line, mask=there, other=0.0)
        v = coefficient_of(v, tl.abs(d), how)
        tl.store(weights + at + line, tl.where(near, 0.0, v), mask=there)
        v = tl.where(near, v, 0.0)
        tl.store(distances + at + line, v, mask=there)
        close = tl.where(v != 0, 1, close)
    tl.store(marks + split * count + local, tl.max(close, 1), mask=row_in)
