"""The forward sweep: what each anchor keeps of its pairs, by tiles of distances.

A policy is three functions, handed to the kernel as compile-time arguments. A state is what an
anchor keeps, as a tuple of vectors of 32 bits, of a number for each anchor:

    empty(count)            the state of ``count`` anchors before their first pair
    visit(exponents, own, d, positive, negative, runs, axis)
                            the state of a tile's rows (axis 1) or columns (axis 0), whose numbers
                            are the end ``own`` (see `coefficient`); without ``runs`` no pair of the
                            tile is positive
    merge(state, other)     what both states hold; states are merged in a fixed order

In the self case only pairs of groups g <= h of rows are visited, each pair off the diagonal serving
both: a program takes two groups, and what it finds of one lies in the slot of the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.triton.configurations import groups_of, launch_of, splits_of
from dmlap_kernels.backends.triton.policies import Exponents
from dmlap_kernels.backends.triton.tile import (
    Pairs,
    Tiling,
    columns_of,
    distances,
    row_block,
    rows_of,
    sides_of,
)


class Policy(NamedTuple):
    """Functions as above."""

    empty: Any
    visit: Any
    merge: Any


@triton.jit
def store_state(partials, part, at, mask, state, size: tl.constexpr):
    for k in tl.static_range(size):
        tl.store(partials + k * part + at, state[k].to(tl.float32, bitcast=True), mask=mask)


@triton.jit
def merged_state(partials, part, at, mask, state, size: tl.constexpr, merge: tl.constexpr):
    """The stored state with this one merged into it."""
    stored = ()
    for k in tl.static_range(size):
        bits = tl.load(partials + k * part + at, mask=mask, other=0.0)
        number = (bits.to(state[k].dtype, bitcast=True),)
        stored = stored + number  # type: ignore[assignment]
    return merge(stored, state)


@triton.jit
def forward_kernel(
    pairs,
    numbers,  # (k, rows), those that the policy reads; in the self case of the columns, too
    partials,  # (size, slots, rows)
    length,  # columns of a slot, in the self case rows of a group
    exponents,
    policy,
    size: tl.constexpr,  # vectors of a state
    how: tl.constexpr,
):
    group, slot = tl.program_id(0), tl.program_id(1)
    height = how.BM
    if how.self_case:
        if group > slot:
            return
        height = length
    part = tl.num_programs(1).to(tl.int64) * rows_of(pairs)
    of_rows = slot.to(tl.int64) * rows_of(pairs)
    of_columns = group.to(tl.int64) * rows_of(pairs)
    begin, start = group * height, slot * length
    end = tl.minimum(begin + height, rows_of(pairs))
    stop = tl.minimum(start + length, columns_of(pairs))
    for r in range(begin, end, how.BM):
        block = row_block(pairs, r // how.BM, how)
        row = (numbers, rows_of(pairs), block.rows[:, None])
        own = policy.empty(how.BM)
        for c in range(start, stop, how.BN):
            columns = c + tl.arange(0, how.BN)
            d = distances(pairs, block.rows, columns, how)
            positive, negative = sides_of(pairs, block, columns, how)
            runs = (c < block.high) & (c + how.BN > block.low)
            own = policy.merge(own, policy.visit(exponents, row, d, positive, negative, runs, 1))
            if how.self_case:
                if group < slot:
                    column = (numbers, rows_of(pairs), columns[None, :])
                    found = policy.visit(exponents, column, d, positive, negative, runs, 0)
                    at, there = of_columns + columns, columns < columns_of(pairs)
                    if r > begin:
                        found = merged_state(partials, part, at, there, found, size, policy.merge)
                    store_state(partials, part, at, there, found, size)
        store_state(partials, part, of_rows + block.rows, block.rows < rows_of(pairs), own, size)
        if how.self_case:
            tl.debug_barrier()  # the next rows read what these left of the columns


def forward(
    kernel: str, sides: Sides, policy: Policy, size: int, numbers: Tensor | None, e: Exponents
) -> Tensor:
    """The states of all anchors (size, slots, B), to be merged over the slots; what is not float32
    as the bits of such a number.

    Args:
        kernel: the name of its configuration.
        size: of how many vectors a state is.
        numbers: (k, B) float32, what the policy reads of an anchor.
        e: exponents that the policy reads.
    """
    launch = launch_of(kernel, sides)
    slots, length = (groups_of if sides.self_case else splits_of)(sides, launch)
    partials = sides.x.new_empty((size, slots, sides.anchors))
    if sides.anchors:
        blocks = slots if sides.self_case else triton.cdiv(sides.anchors, launch.BM)
        forward_kernel[(blocks, slots)](
            Pairs.of(sides),
            numbers,
            partials,
            length,
            e,
            policy,
            size,
            Tiling.of(sides, launch),
            **launch.options,
        )
    return partials


def counts(partials: Tensor) -> Tensor:
    """The sums over the slots (k, B) int32 of states that are counts (k, slots, B)."""
    return partials.view(torch.int32).sum(1, dtype=torch.int32)
