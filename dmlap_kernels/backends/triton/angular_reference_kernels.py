"""The angular loss against references: as `angular_kernels`, over the products of anchors with
references and those among references, each as one panel.

A program owns an anchor, and goes through the references of its label; or a reference, and goes
through the anchors of its label. With s the similarities, the term of an anchor a and a positive p
is softplus(z_ap - pull s_ap), where z_ap is the log-sum over the negatives n of a of
spread (s_an + s_pn).
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.policies import sigmoid, softplus
from dmlap_kernels.backends.triton.row_kernels import group_weights

# In the place of -inf, so that it may be subtracted.
_LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def _negatives(labels_y, columns, column, label, own):
    """Mask of the columns of another label, but for ``own``."""
    other = tl.load(labels_y + column, mask=column < columns, other=0) != label
    return (column < columns) & other & (column != own)


@triton.jit
def _log_sum(of_anchor, of_positive, labels_y, columns, label, own, spread, BN: tl.constexpr):
    """z of an anchor and a positive, _LOWEST where there is no negative."""
    top = tl.full((BN,), _LOWEST, tl.float32)
    total = tl.zeros((BN,), tl.float32)
    for c in range(0, columns, BN):
        column = c + tl.arange(0, BN)
        negative = _negatives(labels_y, columns, column, label, own)
        s = tl.load(of_anchor + column, mask=negative, other=0.0)
        s += tl.load(of_positive + column, mask=negative, other=0.0)
        e = tl.where(negative, spread * s, _LOWEST)
        higher = tl.maximum(top, e)
        here = tl.where(negative, tl.exp(e - higher), 0.0)
        total = total * tl.exp(top - higher) + here
        top = higher
    highest = tl.max(top, 0)
    total = tl.sum(total * tl.exp(top - highest), 0)
    return tl.where(total > 0, highest + tl.log(tl.where(total > 0, total, 1.0)), _LOWEST)


@triton.jit
def _own(itself, row, named: tl.constexpr):
    """The column that is the anchor itself, -1 for none."""
    if named:
        return tl.load(itself + row)
    else:
        return tl.full((), -1, tl.int64)


@triton.jit(do_not_specialize=["anchors", "columns"])
def angular_reference_kernel(
    products,  # (anchors, columns)
    among,  # (columns, columns)
    labels_x,
    labels_y,
    itself,
    order_x,  # (anchors,) int64, anchors label by label
    order_y,  # (columns,) references label by label
    begins,  # (anchors,), as `class_bounds.bounds_kernel` has them
    ends,
    table,  # (3, anchors): of each anchor's terms the sum, how many there are and are positive
    anchors,
    columns,
    spread,
    pull,
    named: tl.constexpr,
    BN: tl.constexpr,
):
    """Grid: anchors."""
    row = tl.load(order_x + tl.program_id(0))
    label, own = tl.load(labels_x + row), _own(itself, row, named)
    begin, end = tl.load(begins + row), tl.load(ends + row)
    of_anchor = products + row * columns
    sums = 0.0
    number = 0.0
    nonzero = 0.0
    for place in range(begin, end):
        p = tl.load(order_y + place)
        z = tl.full((), _LOWEST, tl.float32)
        if p != own:
            of_positive = among + p * columns
            z = _log_sum(of_anchor, of_positive, labels_y, columns, label, own, spread, BN)
        some = z > _LOWEST
        s = tl.load(of_anchor + p)
        term = tl.where(some, softplus(tl.where(some, z - pull * s, 0.0)), 0.0)
        sums += term
        number += tl.where(p != own, 1.0, 0.0)
        nonzero += tl.where(term > 0, 1.0, 0.0)
    tl.store(table + row, sums)
    tl.store(table + anchors + row, number)
    tl.store(table + 2 * anchors + row, nonzero)


@triton.jit(do_not_specialize=["anchors", "columns", "stride"])
def angular_anchor_weights_kernel(
    products,  # (anchors, columns); of positives the log-sums take their place
    weights,  # (anchors, columns), d loss / d distance
    among,
    labels_x,
    labels_y,
    itself,
    order_x,
    order_y,
    begins,
    ends,
    table,
    header,
    grad,  # (), or (anchors,)
    stride,  # of grad
    anchors,
    columns,
    spread,
    pull,
    named: tl.constexpr,
    reduction: tl.constexpr,
    BN: tl.constexpr,
):
    """Grid: anchors."""
    row = tl.load(order_x + tl.program_id(0))
    label, own = tl.load(labels_x + row), _own(itself, row, named)
    begin, end = tl.load(begins + row), tl.load(ends + row)
    at = row * columns
    upstream = group_weights(
        table, header, grad, stride, anchors, row, row < anchors, 0, 1, reduction
    )
    # First the positives, of which a column may be the anchor itself.
    for place in range(begin, end):
        p = tl.load(order_y + place)
        # Read by all threads before the first of them writes there.
        s = tl.load(products + at + p)
        z = tl.full((), _LOWEST, tl.float32)
        if p != own:
            of_anchor, of_positive = products + at, among + p * columns
            z = _log_sum(of_anchor, of_positive, labels_y, columns, label, own, spread, BN)
        some = z > _LOWEST
        slope = tl.where(some, sigmoid(tl.where(some, z - pull * s, 0.0)) * upstream[0], 0.0)
        tl.store(products + at + p, z)
        tl.store(weights + at + p, pull * slope)
    tl.debug_barrier()
    for c in range(0, columns, BN):
        column = c + tl.arange(0, BN)
        negative = _negatives(labels_y, columns, column, label, own)
        s = tl.load(products + at + column, mask=negative, other=0.0)
        total = tl.zeros((BN,), tl.float32)
        for place in range(begin, end):
            p = tl.load(order_y + place)
            z = tl.load(products + at + p)
            slope = tl.load(weights + at + p) * (spread / pull)
            both = s + tl.load(among + p * columns + column, mask=negative, other=0.0)
            total -= slope * tl.exp(tl.minimum(spread * both - z, 0.0))
        alike = tl.load(labels_y + column, mask=column < columns, other=0) == label
        there = (column < columns) & (alike == 0)
        tl.store(weights + at + column, tl.where(negative, total, 0.0), mask=there)


@triton.jit(do_not_specialize=["columns"])
def angular_reference_weights_kernel(
    products,  # as `angular_anchor_weights_kernel` leaves them
    weights,
    among,  # (columns, columns), in place d loss / d distance
    labels_y,
    itself,
    order_x,
    order_y,
    begins,  # (columns,)
    ends,
    columns,
    spread,
    pull,
    named: tl.constexpr,
    BN: tl.constexpr,
):
    """Grid: references. The distances of each to the negatives of the anchors of its label."""
    p = tl.load(order_y + tl.program_id(0))
    label = tl.load(labels_y + p)
    begin, end = tl.load(begins + p), tl.load(ends + p)
    at = among + p * columns
    for c in range(0, columns, BN):
        column = c + tl.arange(0, BN)
        negative = _negatives(labels_y, columns, column, label, -1)
        s = tl.load(at + column, mask=negative, other=0.0)
        total = tl.zeros((BN,), tl.float32)
        for place in range(begin, end):
            row = tl.load(order_x + place)
            z = tl.load(products + row * columns + p)
            slope = tl.load(weights + row * columns + p) * (spread / pull)
            both = s + tl.load(products + row * columns + column, mask=negative, other=0.0)
            share = slope * tl.exp(tl.minimum(spread * both - z, 0.0))
            total -= tl.where(column != _own(itself, row, named), share, 0.0)
        tl.store(at + column, tl.where(negative, total, 0.0), mask=column < columns)
