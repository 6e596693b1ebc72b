"""Mined triplets of the anchors of a rank, whose positives and negatives lie on all ranks.

The positive pairs are listed (`ring_lists`); what a turn of the ring finds of their negatives is
merged block by block. With ``swap`` the rows of positives are fetched as well, and the gradients at
them given back to the ranks that own them.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels.backends.device.hard import excess_of, mined_columns, term_of
from dmlap_kernels.backends.device.packing import norms
from dmlap_kernels.backends.device.sweeps import Triplets
from dmlap_kernels.backends.device.terms import (
    Call,
    Found,
    PackedGradients,
    anchor_group,
    found,
)
from dmlap_kernels.backends.panels.block import Block, Rows
from dmlap_kernels.backends.panels.draws import log_weights, uniform01
from dmlap_kernels.backends.panels.gradients import Gradients
from dmlap_kernels.backends.panels.panel import Panel
from dmlap_kernels.problem import PairProblem, PairSpec
from dmlap_kernels.ring_lists import Lists, Pairs, Where, put, summed, take

# Between how many places a draw is sought in one turn of the ring.
WAYS = 32


class Table(NamedTuple):
    """What is known of some positive pairs (B, K) once their negatives have gone by.

    Attributes:
        d: distances of the pairs.
        five: sums (B, 5) of their triplets, as `Sweeps.triplet_sums` says.
        pull: the derivatives of a pair's terms by its distance.
        negative: numbers of the one negative that each pair meets, None where it meets all.
        rows: with ``swap``, fetched rows: of the positives (B, K, D) where a pair meets all
            negatives; else of the positives and their negatives (2 B K, D).
    """

    pairs: Pairs
    d: Tensor
    five: Tensor
    pull: Tensor
    negative: Tensor | None = None
    rows: Tensor | None = None


def sums(lists: Lists, triplets: Triplets) -> Tensor:
    """`Sweeps.triplet_sums`, in the order of the caller."""
    total = lists.rows_of_anchors(lambda x: x.new_zeros(len(x), 5, dtype=torch.float64))
    for pairs in lists.pairs(_numbers(lists, triplets)):
        table = _table(lists, pairs, triplets)
        total += table.five
        if pairs.alone:
            lists.kept["triplets"] = table
    return total


def gradient(lists: Lists, triplets: Triplets, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Of the sums of terms times weight (B,), at the anchors and at the own references."""
    gx, gy = lists.zero_gradients()
    for pairs in lists.pairs(_numbers(lists, triplets)):
        table = cast("Table | None", lists.kept.pop("triplets", None))
        if table is None:
            table = _table(lists, pairs, triplets)
        add = _add_all if table.negative is None else _add_one
        if table.negative is not None and triplets.swap:
            add = _add_swapped
        more_x, more_y = add(lists, table, triplets, weight)
        gx, gy = gx + more_x, summed(gy, more_y)
    return gx, gy


def _numbers(lists: Lists, triplets: Triplets) -> int:
    """How many numbers a pair takes: of a row if there is swap, or of the places of a draw."""
    rows = 2 * lists.problem.x.shape[1] if triplets.swap else 1
    return max(rows, WAYS if triplets.mining == "distance_weighted" else 1)


def _table(lists: Lists, pairs: Pairs, triplets: Triplets) -> Table:
    if triplets.mining == "all":
        return _against_all(lists, pairs, triplets)
    mine = _drawn if triplets.mining == "distance_weighted" else _semihard
    d, negative = mine(lists, pairs, triplets)
    exist = pairs.exist & (negative >= 0)
    rows = None
    if triplets.swap:
        rows = lists.fetch(torch.cat((pairs.columns.reshape(-1), negative.reshape(-1))))
        excess = _excess_of_rows(lists, pairs, rows, triplets)
    else:
        excess = d - lists.distances(negative) + triplets.margin
    slope = torch.where(exist, _slope(triplets, excess), 0)
    five = _five(triplets, excess, exist)
    return Table(pairs, d, five, slope, negative, rows)


def _five(triplets: Triplets, excess: Tensor, exist: Tensor) -> Tensor:
    """Sums (b, 5) of excesses (b, n), those that exist."""
    hinge = torch.where(exist, excess.relu(), 0)
    term = torch.where(exist, F.softplus(excess, threshold=40.0), 0) if triplets.smooth else hinge
    found = (term.sum(1), (term > 0).sum(1), hinge.sum(1), (hinge > 0).sum(1), exist.sum(1))
    return torch.stack([one.double() for one in found], 1)


def _slope(triplets: Triplets, excess: Tensor) -> Tensor:
    return excess.sigmoid() if triplets.smooth else (excess > 0).to(excess.dtype)


# One negative for each positive pair.


def _semihard(lists: Lists, pairs: Pairs, triplets: Triplets) -> tuple[Tensor, Tensor]:
    """Distances of the pairs, and the nearest negative that is farther, else the farthest."""
    d = lists.distances(pairs.columns)
    best, farthest = torch.full_like(d, torch.inf), torch.full_like(d[:, :1], -torch.inf)
    nearest, far = (torch.full(one.shape, -1, device=d.device) for one in (best, farthest))

    def visit(panel: Panel, where: Where) -> None:
        at, last = panel.at, where.size - 1
        ascending, order = panel.d.masked_fill(panel.alike, torch.inf).sort(dim=1, stable=True)
        position = torch.searchsorted(ascending, d[at], right=True)
        value = F.pad(ascending, (0, 1), value=torch.inf).gather(1, position)
        column = order.gather(1, position.clamp(max=last)) + where.start
        _keep(best, nearest, at, value, column, value < best[at], value < torch.inf)
        value, column = panel.d.masked_fill(panel.alike, -torch.inf).max(1, keepdim=True)
        nonempty = value > -torch.inf
        _keep(farthest, far, at, value, column + where.start, value > farthest[at], nonempty)

    lists.visit(visit)
    return d, torch.where(nearest >= 0, nearest, far)


def _keep(
    best: Tensor,
    columns: Tensor,
    at: slice,
    value: Tensor,
    column: Tensor,
    better: Tensor,
    exist: Tensor,
) -> None:
    """Writes what is better, and of what ties the lower number."""
    lower = (value == best[at]) & (column < columns[at])
    taken = exist & (better | lower)
    best[at] = torch.where(taken, value, best[at])
    columns[at] = torch.where(taken, column, columns[at])


def _drawn(lists: Lists, pairs: Pairs, triplets: Triplets) -> tuple[Tensor, Tensor]:
    """Distances of the pairs, and the negatives drawn for them, as one process draws.

    The one whose running sum of weights, in label order, exceeds a share of the total. Running sums
    at some places add up over the blocks, and between two of them the next turn looks closer.
    """
    d = lists.rows_of_anchors(lambda x: x.new_zeros(pairs.columns.shape))
    top = torch.full_like(d[:, :1], -torch.inf, dtype=torch.float64)

    def look(panel: Panel, where: Where) -> None:
        take(d, pairs.columns, panel, where)
        highest = log_weights(panel, triplets).amax(1, keepdim=True)
        top[panel.at] = torch.maximum(top[panel.at], highest)

    lists.visit(look)
    top = torch.where(top > -torch.inf, top, 0)
    order, place, *_ = lists.runs
    itself, rows = lists.itself, torch.arange(lists.anchors, device=d.device)
    numbers = torch.where(itself >= 0, itself, rows)[:, None]
    u = uniform01(triplets.seed, numbers, pairs.ranks)
    low, span = torch.zeros_like(pairs.columns), max(1, len(order))
    total: Tensor | None = None
    while span > 1 or total is None:
        step = -(-span // WAYS)
        ends = low[:, :, None] + torch.arange(1, WAYS + 1, device=d.device) * step - 1
        ends = ends.clamp(max=len(order) - 1)
        running = _running(lists, triplets, top, place, ends)
        total = running[:, :1, -1:] if total is None else total
        share, whole = u[:, :, None] * total, total.expand(*u.shape, 1).contiguous()
        found = torch.searchsorted(running, share, right=True)
        # Rounding may make the share the total itself, which no running sum exceeds.
        found = torch.minimum(found, torch.searchsorted(running, whole)).squeeze(2)
        low, span = low + found.clamp(max=WAYS - 1) * step, step
    if not len(order):
        return d, torch.full_like(low, -1)
    some = total.squeeze(2) > 0
    return d, torch.where(some, order[low.clamp(max=len(order) - 1)], -1)


def _running(lists: Lists, triplets: Triplets, top: Tensor, place: Tensor, ends: Tensor) -> Tensor:
    """Sums (B, K, S) float64 of the weights of negatives up to places (B, K, S) in label order."""
    running = torch.zeros(ends.shape, dtype=torch.float64, device=ends.device)

    def visit(panel: Panel, where: Where) -> None:
        places, order = place[where.start : where.start + where.size].sort()
        weights = (log_weights(panel, triplets) - top[panel.at]).exp_()
        sums = F.pad(weights[:, order].cumsum(1), (1, 0))
        wanted = ends[panel.at]
        count = torch.searchsorted(places, wanted.contiguous(), right=True)
        running[panel.at] += sums.gather(1, count.flatten(1)).view(wanted.shape)

    lists.visit(visit)
    return running


def _add_one(
    lists: Lists, table: Table, triplets: Triplets, weight: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The gradients of triplets of one negative, by the distances of the anchors."""
    slope, negative = table.pull * weight[:, None], table.negative
    assert negative is not None

    def visit(panel: Panel, where: Where, into: Gradients) -> None:
        at_d = torch.zeros_like(panel.d)
        put(at_d, table.pairs.columns[panel.at], slope[panel.at], where)
        put(at_d, negative[panel.at], -slope[panel.at], where)
        into.add(panel, at_d)

    return lists.gradient(visit)


def _excess_of_rows(lists: Lists, pairs: Pairs, rows: Tensor, triplets: Triplets) -> Tensor:
    """(B, K) of the rows (2 B K, D) of positives and negatives."""
    x = lists.rows_of_anchors(lambda x: x.repeat_interleave(pairs.columns.shape[1], 0))
    numbers = triplets.margin, triplets.swap
    return excess_of(lists.spec.distance, x, rows, *numbers).view(pairs.columns.shape)


def _add_swapped(
    lists: Lists, table: Table, triplets: Triplets, weight: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The gradients of triplets of one negative, by the three rows of each."""
    pairs, negative = table.pairs, table.negative
    assert negative is not None and table.rows is not None
    exist = pairs.exist & (negative >= 0)
    own = torch.where(exist, weight[:, None], 0).view(-1)
    width = pairs.columns.shape[1]
    with torch.enable_grad():
        x = lists.rows_of_anchors(lambda x: x.repeat_interleave(width, 0)).requires_grad_()
        rows = table.rows.detach().requires_grad_()
        excess = excess_of(lists.spec.distance, x, rows, triplets.margin, triplets.swap)
        gx, gy = torch.autograd.grad(term_of(excess, triplets.smooth), (x, rows), own)
    columns = torch.cat((pairs.columns.reshape(-1), negative.reshape(-1)))
    return gx.view(len(weight), width, gx.shape[1]).sum(1), lists.give_back(columns, gy)


# Every negative for each positive pair.


def _against_all(lists: Lists, pairs: Pairs, triplets: Triplets) -> Table:
    width, rows = pairs.columns.shape[1], None
    if triplets.swap:
        rows = lists.fetch(pairs.columns)
    d = lists.distances(pairs.columns)
    pull = torch.zeros_like(d)
    five = torch.zeros(len(d), 5, dtype=torch.float64, device=d.device)

    def visit(panel: Panel, where: Where) -> None:
        if not (triplets.swap or triplets.smooth):
            count, some = _sorted_sums(panel, d[panel.at], pairs.exist[panel.at], triplets.margin)
            pull[panel.at] += count
            five[panel.at] += some
            return
        for k in range(width):
            excess, exist, _ = _excess(panel, where, k, d, pairs, rows, triplets)
            five[panel.at] += _five(triplets, excess, exist)
            pull[panel.at, k] += torch.where(exist, _slope(triplets, excess), 0).sum(1)

    lists.visit(visit)
    return Table(pairs, d, five, pull, None, rows)


def _sorted_sums(panel: Panel, d: Tensor, exist: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """How many negatives are below t = d_ap + margin (b, K), and the five sums: that of [t - d_an]+
    is k t less the k least d_an, k of which are below t."""
    ascending = panel.d.masked_fill(panel.alike, torch.inf).sort(dim=1).values
    running = torch.where(ascending < torch.inf, ascending, 0).double().cumsum(1)
    t = d + margin
    count = torch.searchsorted(ascending, t).masked_fill_(~exist, 0)
    below = F.pad(running, (1, 0)).gather(1, count)
    total = (count * t.double() - below).clamp(min=0).sum(1)
    nonzero = count.sum(1).double()
    terms = exist.sum(1) * (~panel.alike).sum(1)
    five = torch.stack((total, nonzero, total, nonzero, terms.double()), 1)
    return count.to(d.dtype), five


def _excess(
    panel: Panel,
    where: Where,
    k: int,
    d: Tensor,
    pairs: Pairs,
    rows: Tensor | None,
    triplets: Triplets,
) -> tuple[Tensor, Tensor, Block | None]:
    """Excesses (b, n) of one positive of each anchor with every column, which of them are of
    triplets, and the distances of the positives to the columns."""
    at, block, d_an = panel.at, None, panel.d
    if rows is not None:
        block = block_of(panel, where, rows[at, k])
        d_an = torch.minimum(d_an, block.d)
    exist = ~panel.alike & pairs.exist[at, k, None]
    return d[at, k, None] - d_an + triplets.margin, exist, block


def block_of(panel: Panel, where: Where, rows: Tensor) -> Block:
    """The distances of fetched rows (b, D) to the columns of a panel."""
    columns, distance = panel.sides.y, panel.distance
    rows = rows - where.offset
    given = len(panel.columns.norms)
    own = Rows(rows, norms(rows, distance, True) if given else panel.rows.norms)
    others = Rows(columns, norms(columns, distance, False) if given else panel.columns.norms)
    return Block(own, others, distance, panel.sides.precision)


def _add_all(
    lists: Lists, table: Table, triplets: Triplets, weight: Tensor
) -> tuple[Tensor, Tensor | None]:
    pairs, rows = table.pairs, table.rows
    width = pairs.columns.shape[1]
    at_rows = None if rows is None else torch.zeros_like(rows)
    thresholds = torch.where(pairs.exist, table.d + triplets.margin, torch.inf).sort(1).values

    def visit(panel: Panel, where: Where, into: Gradients) -> None:
        at, own = panel.at, weight[panel.at, None]
        if not (triplets.swap or triplets.smooth):
            above = pairs.exist[at].sum(1, keepdim=True)
            above = above - torch.searchsorted(thresholds[at], panel.d, right=True)
            at_d = -above.clamp_(min=0).masked_fill_(panel.alike, 0).to(panel.d.dtype)
        else:
            at_d = torch.zeros_like(panel.d)
            for k in range(width):
                excess, exist, block = _excess(panel, where, k, table.d, pairs, rows, triplets)
                slope = torch.where(exist, _slope(triplets, excess), 0)
                if block is not None and rows is not None and at_rows is not None:
                    share = slope * _share_of_anchors(panel, rows[at, k] - where.offset)
                    at_p = (share - slope).mul_(own)
                    block.gradients(at_p, at_rows[at, k], into.of_columns)
                    slope = share
                at_d -= slope
        put(at_d, pairs.columns[at], table.pull[at], where)
        into.add(panel, at_d * own)

    gx, gy = lists.gradient(visit)
    if at_rows is not None:
        back = lists.give_back(pairs.columns.reshape(-1), at_rows.view(-1, at_rows.shape[2]))
        gy = summed(gy, back)
    return gx, gy


def _share_of_anchors(panel: Panel, p: Tensor) -> Tensor:
    """1 where a column is nearer to the anchor than to the positive (b, n), half where they tie.

    By the product of the column and the difference of the two, as two distances that are nearly
    the same may differ by less than their rounding.
    """
    x, y = panel.rows.x, panel.columns.x
    between = x - p
    nearer = between @ y.T
    if panel.euclidean:
        nearer -= torch.linalg.vecdot(between, (x + p) / 2)[:, None]
    return nearer.sign_().add_(1).div_(2)


# One mined triplet of each anchor.


class Hard:
    """The losses of `backends.device.hard`, whose mined rows are fetched."""

    def groups(self, spec: PairSpec) -> int:
        return 1

    def kept_rows(self, spec: PairSpec, problem: PairProblem) -> int:
        return 0

    def forward(self, call: Call) -> Found:
        lists, order = call.sweeps.lists, call.sides.order_x  # type: ignore[attr-defined]
        mined = torch.stack(mined_columns(call))
        margin, smooth, swap = call.spec.params
        with torch.enable_grad():
            x = lists.rows_of_anchors(lambda x: x[order]).requires_grad_()
            rows = lists.fetch(mined.view(-1)).requires_grad_()
            excess = excess_of(call.spec.distance, x, rows, margin, swap)
            group = anchor_group(term_of(excess, smooth), (mined >= 0).all(0))
        call.memo["made"] = x, rows, mined.view(-1), group.total
        return found((group._replace(total=group.total.detach()),), None)

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        x, rows, mined, total = call.memo["made"]
        gx, gy = torch.autograd.grad(total, (x, rows), weights[0], retain_graph=True)
        sweeps = call.sweeps
        sweeps.lists.refs_wanted = sweeps.refs_wanted  # type: ignore[attr-defined]
        sweeps.at_references = sweeps.lists.give_back(mined, gy)  # type: ignore[attr-defined]
        return PackedGradients(gx, None)
