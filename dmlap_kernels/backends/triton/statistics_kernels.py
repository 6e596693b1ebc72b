"""Kernels that make `PairStats` of what sweeps over panels left of anchors."""

from __future__ import annotations

import triton
import triton.language as tl

from dmlap_kernels.backends.triton.forward import merged_state
from dmlap_kernels.backends.triton.row_kernels import loaded

# Numbers that a block of anchors adds up: terms, how many of them are positive, and their sum;
# distances of positives and of negatives; how many of these there are.
SUMS = 7


@triton.jit(
    do_not_specialize=[
        "top",
        "anchors",
        "table_anchors",
        "splits",
        "pair_splits",
        "block",
        "blocks",
        "height",
    ]
)
def anchor_statistics_kernel(
    partials,  # (size + 2, splits, rows of the panel), of the loss's last sweep
    pair_partials,  # (10, pair_splits, rows of the panel), of that for statistics
    table,
    anchor_params,
    terms,  # (3, anchors) float64: the first of `SUMS` of each anchor, without a formula of these
    sums,  # (7, blocks) float64
    farthest,  # (anchors,): distances of the farthest positives
    hardest_positive,  # (anchors,) int64
    hardest_negative,
    top,
    anchors,
    table_anchors,  # the first ones, which have terms
    splits,
    pair_splits,
    block,  # number of the panel's first block
    blocks,
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
    size: tl.constexpr,  # 0 where the formula reads nothing of a sweep
    rows_read: tl.constexpr,  # of the table
    pair_empty: tl.constexpr,
    pair_merge: tl.constexpr,
    pair_size: tl.constexpr,
    height,
    BLOCK: tl.constexpr,
):
    """Grid: blocks of the panel's anchors."""
    local = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rows = top + local
    count = tl.minimum(anchors - top, height)
    mask = local < count
    part = pair_splits.to(tl.int64) * count
    pairs = pair_empty(BLOCK)
    positives = tl.zeros((BLOCK,), tl.int64)
    negatives = tl.zeros((BLOCK,), tl.int64)
    for split in range(0, pair_splits):
        at = split * count.to(tl.int64) + local
        pairs = merged_state(pair_partials, part, at, mask, pairs, pair_size, pair_merge)
        bits = tl.load(pair_partials + pair_size * part + at, mask=mask, other=0.0)
        positives += bits.to(tl.int32, bitcast=True).to(tl.int64)
        bits = tl.load(pair_partials + (pair_size + 1) * part + at, mask=mask, other=0.0)
        negatives += bits.to(tl.int32, bitcast=True).to(tl.int64)
    none = 2147483647
    tl.store(farthest + rows, -pairs[0], mask=mask)
    column = tl.where(pairs[1] == none, -1, pairs[1])
    tl.store(hardest_positive + rows, column.to(tl.int64), mask=mask)
    column = tl.where(pairs[3] == none, -1, pairs[3])
    tl.store(hardest_negative + rows, column.to(tl.int64), mask=mask)
    to = sums + block + tl.program_id(0)
    if formula is None:
        for k in tl.static_range(3):
            one = tl.load(terms + anchors.to(tl.int64) * k + rows, mask=mask, other=0.0)
            tl.store(to + k * blocks, tl.sum(one, 0))
    else:
        found = ()
        if size > 0:
            state = empty(BLOCK)
            part = splits.to(tl.int64) * count
            for split in range(0, splits):
                at = split * count.to(tl.int64) + local
                state = merged_state(partials, part, at, mask, state, size, merge)
            found = finish(state)
        in_table = rows < table_anchors
        values = loaded(table, table_anchors, rows, mask & in_table, rows_read)
        param = tl.load(anchor_params + rows, mask=mask, other=0.0)
        numbers = (number0, number1, number2, number3, number4, number5)
        results = formula(found, (positives, negatives), (), values, param, numbers)
        for k in tl.static_range(3):
            one = tl.where(mask & in_table, results[k], 0.0).to(tl.float64)
            tl.store(to + k * blocks, tl.sum(one, 0))
    to += 3 * blocks
    tl.store(to, tl.sum(tl.where(mask, pairs[6], 0.0).to(tl.float64), 0))
    tl.store(to + blocks, tl.sum(tl.where(mask, pairs[7], 0.0).to(tl.float64), 0))
    tl.store(to + 2 * blocks, tl.sum(tl.where(mask, positives, 0), 0).to(tl.float64))
    tl.store(to + 3 * blocks, tl.sum(tl.where(mask, negatives, 0), 0).to(tl.float64))


@triton.jit
def _total(sums, blocks, BLOCK: tl.constexpr):
    found = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, blocks, BLOCK):
        at = start + tl.arange(0, BLOCK)
        found += tl.load(sums + at, mask=at < blocks, other=0.0)
    return tl.sum(found, 0)


@triton.jit
def _mean(total, count):
    """Not a number where there is nothing."""
    return tl.where(count > 0, total / tl.maximum(count, 1.0), float("nan"))


@triton.jit(do_not_specialize=["blocks"])
def sum_statistics_kernel(
    sums,  # (7, blocks) float64
    counts,  # (2,) int64: terms, and how many are positive
    values,  # (3,): their sum, mean distances of positives and of negatives
    blocks,
    BLOCK: tl.constexpr,
):
    """By one program, so that sums are in a fixed order."""
    tl.store(counts, _total(sums, blocks, BLOCK).to(tl.int64))
    tl.store(counts + 1, _total(sums + blocks, blocks, BLOCK).to(tl.int64))
    tl.store(values, _total(sums + 2 * blocks, blocks, BLOCK).to(tl.float32))
    positive = _mean(
        _total(sums + 3 * blocks, blocks, BLOCK), _total(sums + 5 * blocks, blocks, BLOCK)
    )
    negative = _mean(
        _total(sums + 4 * blocks, blocks, BLOCK), _total(sums + 6 * blocks, blocks, BLOCK)
    )
    tl.store(values + 1, positive.to(tl.float32))
    tl.store(values + 2, negative.to(tl.float32))
