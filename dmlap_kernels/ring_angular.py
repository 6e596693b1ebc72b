"""The angular loss of the anchors of a rank, whose positives and negatives lie on all ranks.

The rows of some positives of each anchor are fetched (`ring_lists`), each meets every block of
negatives, and the gradients at them are given back to the ranks that own them.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from dmlap_kernels.backends.device.terms import softplus
from dmlap_kernels.backends.panels.block import Block
from dmlap_kernels.backends.panels.exponents import LOWEST
from dmlap_kernels.backends.panels.gradients import Gradients
from dmlap_kernels.backends.panels.panel import Panel
from dmlap_kernels.ring_lists import Lists, Pairs, Where, put, summed
from dmlap_kernels.ring_triplets import block_of


class Table(NamedTuple):
    """Of some positive pairs (B, K) their distances, the rows of the positives (B, K, D), and the
    log-sums of the exponents of their negatives."""

    pairs: Pairs
    d: Tensor
    rows: Tensor
    lse: Tensor


def terms(lists: Lists, tangent: float) -> Tensor:
    """`Sweeps.angular_terms`, in the order of the caller."""
    found = lists.rows_of_anchors(lambda x: x.new_zeros(2, len(x)))
    for pairs in lists.pairs(lists.problem.x.shape[1]):
        table = _table(lists, pairs, tangent)
        term = softplus(table.lse)
        found += torch.stack((term.sum(1), (term > 0).sum(1).to(term.dtype)))
        if pairs.alone:
            lists.kept["angular"] = table
    return found


def gradient(lists: Lists, tangent: float, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Of the sums of terms times weight (B,), at the anchors and at the own references."""
    gx, gy = lists.zero_gradients()
    for pairs in lists.pairs(lists.problem.x.shape[1]):
        table = cast("Table | None", lists.kept.pop("angular", None))
        if table is None:
            table = _table(lists, pairs, tangent)
        more_x, more_y = _gradient(lists, table, tangent, weight)
        gx, gy = gx + more_x, summed(gy, more_y)
    return gx, gy


def _table(lists: Lists, pairs: Pairs, tangent: float) -> Table:
    rows = lists.fetch(pairs.columns)
    d = lists.distances(pairs.columns)
    lse = torch.full_like(d, -torch.inf)

    def visit(panel: Panel, where: Where) -> None:
        for k in range(d.shape[1]):
            e, _ = _exponents(panel, where, k, Table(pairs, d, rows, lse), tangent)
            lse[panel.at, k] = torch.logaddexp(lse[panel.at, k], e.logsumexp(1))

    lists.visit(visit)
    return Table(pairs, d, rows, lse)


def _exponents(
    panel: Panel, where: Where, k: int, table: Table, tangent: float
) -> tuple[Tensor, Block]:
    """(b, n) of one positive of each anchor, -inf where there is no triplet; and the distances of
    the positives to the columns."""
    t, at = tangent**2, panel.at
    block = block_of(panel, where, table.rows[at, k])
    between = 4 * t * 2 - 2 * (1 + t) * (1 - table.d[at, k])
    e = between[:, None] - 4 * t * (panel.d + block.d)
    return e.masked_fill(panel.alike | ~table.pairs.exist[at, k, None], -torch.inf), block


def _gradient(
    lists: Lists, table: Table, tangent: float, weight: Tensor
) -> tuple[Tensor, Tensor | None]:
    pairs, at_rows, t = table.pairs, torch.zeros_like(table.rows), tangent**2
    # The derivatives of the terms by their exponents, which add up to this.
    active = table.lse.sigmoid() * weight[:, None]
    whole = table.lse.clamp(min=LOWEST)

    def visit(panel: Panel, where: Where, into: Gradients) -> None:
        at, at_d = panel.at, torch.zeros_like(panel.d)
        for k in range(active.shape[1]):
            e, block = _exponents(panel, where, k, table, tangent)
            shares = e.sub_(whole[at, k, None]).exp_().mul_(active[at, k, None]).mul_(-4 * t)
            at_d += shares
            block.gradients(shares, at_rows[at, k], into.of_columns)
        put(at_d, pairs.columns[at], 2 * (1 + t) * active[at], where)
        into.add(panel, at_d)

    gx, gy = lists.gradient(visit)
    back = lists.give_back(pairs.columns.reshape(-1), at_rows.view(-1, at_rows.shape[2]))
    return gx, summed(gy, back)
