"""The angular loss over all products of a batch with itself, as one panel.

A program owns a row r, and goes through the other rows q of its class. With s the similarities,
spread = 4 t^2 and pull = 2 (1 + t^2), the term of r and q is softplus(z_rq - pull s_rq), where z_rq
is the log-sum over the rows n of other classes of spread (s_rn + s_qn).
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.policies import sigmoid, softplus
from dmlap_kernels.backends.triton.row_kernels import group_weights

# In the place of -inf, so that it may be subtracted.
_LOWEST = tl.constexpr(-3.0e38)


@triton.jit(do_not_specialize=["count"])
def runs_kernel(
    labels,  # (count,) ascending
    order,  # (count,) int64, which row each is
    begins,  # (count + 1,) int32, where classes begin, and where the last one ends
    classes,  # (count,) int32, of each row the number of its class
    count,
    BLOCK: tl.constexpr,
):
    """Which rows are of one class; of one program."""
    number = 0
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        there = at < count
        label = tl.load(labels + at, mask=there, other=0)
        before = tl.load(labels + at - 1, mask=there & (at > 0), other=0)
        new = there & ((at == 0) | (label != before))
        of_row = number + tl.cumsum(new.to(tl.int32), 0) - 1
        tl.store(begins + of_row, at, mask=new)
        row = tl.load(order + at, mask=there, other=0)
        tl.store(classes + row, of_row, mask=there)
        number += tl.sum(new.to(tl.int32), 0)
    tl.store(begins + number, count)


@triton.jit
def _run(order, begins, classes):
    """The row of this program, its class, and where the class begins and ends in the order."""
    row = tl.load(order + tl.program_id(0))
    own = tl.load(classes + row)
    return row, own, tl.load(begins + own), tl.load(begins + own + 1)


@triton.jit
def _log_sum(products, row, other, own, classes, count, spread, BN: tl.constexpr):
    """z of two rows, at most _LOWEST where there is no other class."""
    top = tl.full((BN,), _LOWEST, tl.float32)
    total = tl.zeros((BN,), tl.float32)
    for c in range(0, count, BN):
        column = c + tl.arange(0, BN)
        there = column < count
        negative = there & (tl.load(classes + column, mask=there, other=0) != own)
        s = tl.load(products + row * count + column, mask=there, other=0.0)
        s += tl.load(products + other * count + column, mask=there, other=0.0)
        e = tl.where(negative, spread * s, _LOWEST)
        higher = tl.maximum(top, e)
        here = tl.where(negative, tl.exp(e - higher), 0.0)
        total = total * tl.exp(top - higher) + here
        top = higher
    highest = tl.max(top, 0)
    total = tl.sum(total * tl.exp(top - highest), 0)
    return tl.where(total > 0, highest + tl.log(tl.where(total > 0, total, 1.0)), _LOWEST)


@triton.jit(do_not_specialize=["count"])
def angular_kernel(
    products,  # (count, count)
    order,
    begins,
    classes,
    table,  # (3, count): of each row's terms the sum, how many there are, how many are positive
    count,
    spread,
    pull,
    BN: tl.constexpr,
):
    """Grid: rows, those of a class one after the other."""
    row, own, begin, end = _run(order, begins, classes)
    sums = 0.0
    nonzero = 0.0
    for place in range(begin, end):
        other = tl.load(order + place)
        z = tl.full((), _LOWEST, tl.float32)
        if other != row:
            z = _log_sum(products, row, other, own, classes, count, spread, BN)
        s = tl.load(products + row * count + other)
        some = z > _LOWEST
        term = tl.where(some, softplus(tl.where(some, z - pull * s, 0.0)), 0.0)
        sums += term
        nonzero += tl.where(term > 0, 1.0, 0.0)
    tl.store(table + row, sums)
    tl.store(table + count + row, (end - begin - 1).to(tl.float32))
    tl.store(table + 2 * count + row, nonzero)


@triton.jit(do_not_specialize=["count", "stride"])
def angular_weights_kernel(
    products,  # (count, count), of rows of one class they are lost
    weights,  # (count, count), d loss / d distance, of either order of a pair a part
    order,
    begins,
    classes,
    table,
    header,
    grad,  # (), or (count,)
    stride,  # of grad
    count,
    spread,
    pull,
    reduction: tl.constexpr,
    BN: tl.constexpr,
):
    """As `angular_kernel`."""
    row, own, begin, end = _run(order, begins, classes)
    at = row * count
    own_weight = _weight(table, header, grad, stride, count, row, reduction)
    # First the pairs within the class: their log-sums take the place of their products.
    for place in range(begin, end):
        other = tl.load(order + place)
        # Read by all threads before the first of them writes there.
        s = tl.load(products + at + other)
        z = tl.full((), _LOWEST, tl.float32)
        if other != row:
            z = _log_sum(products, row, other, own, classes, count, spread, BN)
        # The terms of both orders are the same.
        weight = own_weight + _weight(table, header, grad, stride, count, other, reduction)
        some = z > _LOWEST
        slope = tl.where(some, weight * sigmoid(tl.where(some, z - pull * s, 0.0)), 0.0)
        tl.store(products + at + other, z)
        # Either row of the pair has this weight, so that each brings half.
        tl.store(weights + at + other, 0.5 * pull * slope)
    tl.debug_barrier()
    for c in range(0, count, BN):
        column = c + tl.arange(0, BN)
        there = column < count
        negative = there & (tl.load(classes + column, mask=there, other=0) != own)
        s = tl.load(products + at + column, mask=there, other=0.0)
        total = tl.zeros((BN,), tl.float32)
        for place in range(begin, end):
            other = tl.load(order + place)
            z = tl.load(products + at + other)
            slope = tl.load(weights + at + other) * (2.0 * spread / pull)
            both = s + tl.load(products + other * count + column, mask=there, other=0.0)
            total -= slope * tl.exp(tl.minimum(spread * both - z, 0.0))
        tl.store(weights + at + column, total, mask=negative)


@triton.jit
def _weight(table, header, grad, stride, count, row, reduction: tl.constexpr):
    weights = group_weights(table, header, grad, stride, count, row, row < count, 0, 1, reduction)
    return weights[0]
