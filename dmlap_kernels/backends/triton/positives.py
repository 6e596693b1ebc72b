"""Windows of positives, for losses that see a positive and a negative of an anchor at once.

A window is some positives of every anchor, from the one of number ``base`` on. Buffers (B, size)
hold what belongs to a positive, at its position in the window; entries of an anchor with fewer
positives are neither written nor read. Indices of anchors, positives and columns are int64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.configurations import INTERPRETED, POSITIVES
from dmlap_kernels.backends.triton.tile import (
    APART,
    ROWS_NAMED,
    SELF,
    apart,
    constants,
    own_column,
)

NOTHING = tl.constexpr(2**63 - 1)  # in `Window.negatives`
NEVER = tl.constexpr(-(2**63))  # in `Window.fallback`
LOW = tl.constexpr(0x7FFFFFFF)  # the bits of a key that hold a column
# Positives that a program takes.
GROUP = POSITIVES if INTERPRETED else tl.constexpr(POSITIVES)


class Window(NamedTuple):
    """A window as kernels read it, with the numbers of the loss."""

    base: int
    size: int
    x_class: Any  # (rows,) as `windows.classes_of`
    y_class: Any  # (columns,)
    col_first: Any  # (columns,), the columns' runs of rows
    col_last: Any  # (columns,)
    distances: Any  # (rows, size): of anchors and positives
    negatives: Any  # (rows, size): of mined triplets a key whose low bits are the negative
    fallback: Any  # (rows,): the key of the negative for want of another
    margin: float
    spread: float  # of the angular loss, the factors of s_an + s_pn and of s_ap
    pull: float


class Slopes(NamedTuple):
    """Derivatives of the loss by distances, (rows, size) each; None where the loss has no such.

    Those of mined triplets are coefficients of the gradient as in `coefficients`.
    """

    by_ap: Any
    by_an: Any  # of mined triplets
    by_pn: Any  # of mined triplets
    by_sum: Any  # of the angular loss, by the sum over the negatives
    negatives: Any  # columns of the mined negatives


@dataclass(frozen=True)
class Terms:
    """What a (positive pair, negative) adds, as a kernel is compiled for it.

    Attributes:
        kind: ``mined`` or ``all`` triplets, or ``angular``.
        third: whether the distance of the positive and the negative counts, too.
        smooth: whether terms are the softplus of hinges.
    """

    kind: tl.constexpr
    third: tl.constexpr
    smooth: tl.constexpr

    @staticmethod
    def of(kind: str, third: bool, smooth: bool) -> Terms:
        return Terms(*constants(kind, third, smooth))


@triton.jit
def positives_of(pairs, anchors, anchor_in, how: tl.constexpr):
    """First column of each anchor's class, how many positives are in it, and the column in it that
    is left out (one beyond all columns for none)."""
    start = tl.load(pairs.first + anchors, mask=anchor_in, other=0)
    stop = tl.load(pairs.last + anchors, mask=anchor_in, other=0)
    count = stop - start
    left_out = own_column(pairs, anchors, anchor_in, how)
    if how.itself == SELF:
        count = tl.maximum(count - 1, 0)
    elif how.itself == ROWS_NAMED:
        within = (left_out >= start) & (left_out < stop)
        count -= within.to(tl.int32)
        left_out = tl.where(within, left_out, NOTHING)
    return start.to(tl.int64), count, left_out


@triton.jit
def positive_at(start, number, left_out, how: tl.constexpr):
    """Column of the positive of a number."""
    column = start + number
    if how.itself != APART:
        column += (column >= left_out).to(tl.int64)
    return column


@triton.jit
def position_of(window, start, left_out, positives, there, how: tl.constexpr):
    """The position of columns in the window, and which of those that are ``there`` have one."""
    position = positives - start - window.base
    if how.itself != APART:
        position -= (positives > left_out).to(tl.int64)
        there = there & (positives != left_out)
    return position, there & (position >= 0) & (position < window.size)


@triton.jit
def negatives_of(pairs, window, own, anchors, anchor_in, columns, column_in, how: tl.constexpr):
    """Mask (BM, BN) of the columns that are of other classes than the anchors' ``own``."""
    other = tl.load(window.y_class + columns, mask=column_in, other=-1)
    negative = (own[:, None] != other[None, :]) & column_in[None, :]
    if how.itself == ROWS_NAMED:
        negative &= apart(pairs, anchors, anchor_in, columns, column_in, how.itself)
    return negative


@triton.jit
def swap_share(d, other, slope):
    """The part of a slope by the lesser of two distances that is the first one's: half of it where
    they are equal, as of `torch.minimum`."""
    return tl.where(d < other, slope, tl.where(d == other, 0.5 * slope, 0.0))


@triton.jit
def add_sums(sums, anchors, anchor_in, total, nonzero, hinges, violated, terms):
    """Adds five numbers to each row of sums (B, 5) float64, which no other program writes."""
    at = sums + anchors * 5
    tl.store(at, tl.load(at, mask=anchor_in) + total, mask=anchor_in)
    tl.store(at + 1, tl.load(at + 1, mask=anchor_in) + nonzero, mask=anchor_in)
    tl.store(at + 2, tl.load(at + 2, mask=anchor_in) + hinges, mask=anchor_in)
    tl.store(at + 3, tl.load(at + 3, mask=anchor_in) + violated, mask=anchor_in)
    tl.store(at + 4, tl.load(at + 4, mask=anchor_in) + terms, mask=anchor_in)
