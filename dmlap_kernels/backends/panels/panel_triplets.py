"""Triplets of every positive pair with mined negatives, panel by panel.

Positive pairs are listed where there are few, which takes their number from the device: on the CPU,
and for triplets that need more than the two distances of an anchor or are not linear in them.
Elsewhere all pairs of a panel are treated alike, and those that are not positive count 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import Triplets
from dmlap_kernels.backends.device.terms import add_rows, row_distances, softplus
from dmlap_kernels.backends.panels.block import Block
from dmlap_kernels.backends.panels.draws import draw, numbers_of, running_weights
from dmlap_kernels.backends.panels.gradients import Gradients
from dmlap_kernels.backends.panels.panel import PANEL_BYTES, Panel, Panels, budget_of

# Positive pairs an anchor, up to which it is faster to list them than to sort its negatives.
FEW = 16


class Positives(NamedTuple):
    """Some positive pairs (k,): rows of the panel, columns, and what negative of the panel's
    columns each meets; one alone, which exists or not, or every one (None)."""

    rows: Tensor
    columns: Tensor
    negative: Tensor | None
    exists: Tensor


def sums(panels: Panels, sides: Sides, triplets: Triplets) -> Tensor:
    """`Sweeps.triplet_sums`."""

    def body(panel: Panel, margin: float) -> tuple[Tensor]:
        some = triplets._replace(margin=margin)
        if _lists(panel, some):
            return (_listed_sums(panel, some),)
        return (_sorted_sums(panel, some) if some.mining == "all" else _dense_sums(panel, some),)

    return panels.each(sides, body, (), (triplets.margin,))[0]


def add_gradient(
    panels: Panels, into: Gradients, sides: Sides, triplets: Triplets, weight: Tensor
) -> None:
    """`Sweeps.triplet_gradient`."""
    for panel in panels.of(sides):
        own = weight[panel.at]
        if _lists(panel, triplets):
            _add_listed_gradient(panel, into, triplets, own)
        elif triplets.mining == "all":
            into.add(panel, _sorted_weights(panel, triplets, own))
        else:
            into.add(panel, _dense_weights(panel, triplets, own))


def _lists(panel: Panel, triplets: Triplets) -> bool:
    if triplets.swap or (triplets.smooth and triplets.mining == "all"):
        return True
    pairs = panel.unlike.numel()
    few = panel.d.device.type == "cpu"
    return few and pairs - int(panel.unlike.count_nonzero()) <= FEW * panel.unlike.shape[0]


def _term(triplets: Triplets, excess: Tensor) -> Tensor:
    return softplus(excess) if triplets.smooth else excess.relu()


def _slope(triplets: Triplets, excess: Tensor) -> Tensor:
    return excess.sigmoid() if triplets.smooth else (excess > 0).to(excess.dtype)


def _five(triplets: Triplets, excess: Tensor, exists: Tensor) -> Tensor:
    """What `sums` holds of each row of excesses (k, n), (k, 5)."""

    def two(values: Tensor) -> list[Tensor]:
        values = torch.where(exists, values, 0)
        return [values.sum(1).double(), values.count_nonzero(1).double()]

    hinges = two(excess.relu())
    terms = two(softplus(excess)) if triplets.smooth else hinges
    return torch.stack([*terms, *hinges, exists.sum(1).double()], 1)


# Listed pairs.


def _listed_sums(panel: Panel, triplets: Triplets) -> Tensor:
    total = panel.d.new_zeros(panel.d.shape[0], 5, dtype=torch.float64)
    for pairs in _listed(panel, triplets):
        if pairs.negative is None:
            excess, _ = _all_excess(panel, triplets, pairs)
            five = _five(triplets, excess, ~panel.alike.index_select(0, pairs.rows))
        else:
            if triplets.swap:
                excess = _swapped_excess(panel, triplets, *_ends(panel, pairs))
            else:
                excess = _excess(panel, triplets, pairs)
            five = _five(triplets, excess.unsqueeze(1), pairs.exists.unsqueeze(1))
        total = add_rows(total, pairs.rows, five)
    return total


def _add_listed_gradient(panel: Panel, into: Gradients, triplets: Triplets, weight: Tensor) -> None:
    at_d = torch.zeros_like(panel.d)
    flat, width = at_d.view(-1), panel.d.shape[1]
    for pairs in _listed(panel, triplets):
        own = torch.where(pairs.exists, weight.index_select(0, pairs.rows), 0)
        positive = pairs.rows * width + pairs.columns
        if pairs.negative is None:
            slope = _add_all(panel, into, triplets, pairs, own, at_d)
            flat.index_copy_(0, positive, slope)
        elif triplets.swap:
            _add_swapped(panel, into, triplets, pairs, own)
        else:
            slope = _slope(triplets, _excess(panel, triplets, pairs)) * own
            flat.index_copy_(0, positive, slope)
            add_rows(flat, pairs.rows * width + pairs.negative, -slope)
    into.add(panel, at_d)


def _listed(panel: Panel, triplets: Triplets) -> Iterator[Positives]:
    """The positive pairs, as many at a time as the memory of a panel takes, with negatives."""
    rows, columns = panel.positives()
    width = panel.d.shape[1]
    widest = max(width, panel.sides.x.shape[1])
    step = max(1, budget_of(panel.d, PANEL_BYTES) // (widest * panel.d.element_size()))
    some = ~panel.alike.all(1)
    farthest = running = None
    if triplets.mining == "semihard":
        farthest = panel.d.masked_fill(panel.alike, -torch.inf).argmax(1)
    if triplets.mining == "distance_weighted":
        running = running_weights(panel, triplets)
        some = running[:, -1] > 0
        rank = ((~panel.unlike).cumsum(1) - 1).view(-1)
    for r, c in zip(rows.split(step), columns.split(step), strict=True):
        negative = None
        if farthest is not None:
            negative = _semihard(panel, r, c, farthest)
        elif running is not None:
            u = numbers_of(panel, triplets, r, rank.index_select(0, r * width + c))
            negative = draw(running.index_select(0, r), u[:, None]).squeeze(1)
        yield Positives(r, c, negative, some.index_select(0, r))


def _semihard(panel: Panel, rows: Tensor, columns: Tensor, farthest: Tensor) -> Tensor:
    """The nearest negative that is farther than the positive, else the farthest."""
    (d_ap,) = _entries(panel, rows, columns)
    d = panel.d.index_select(0, rows)
    outside = panel.alike.index_select(0, rows).logical_or_(d <= d_ap[:, None])
    least, nearest = d.masked_fill_(outside, torch.inf).min(1)
    return torch.where(least < torch.inf, nearest, farthest.index_select(0, rows))


def _entries(panel: Panel, rows: Tensor, *columns: Tensor) -> list[Tensor]:
    """Distances (k,) of rows of the panel to columns."""
    flat, start = panel.d.view(-1), rows * panel.d.shape[1]
    return [flat.index_select(0, start + c) for c in columns]


def _excess(panel: Panel, triplets: Triplets, pairs: Positives) -> Tensor:
    """d_ap - d_an + margin (k,)."""
    assert pairs.negative is not None
    d_ap, d_an = _entries(panel, pairs.rows, pairs.columns, pairs.negative)
    return d_ap - d_an + triplets.margin


def _ends(panel: Panel, pairs: Positives) -> list[Tensor]:
    """The rows (k, Dp) of the anchor, the positive and the negative of each triplet."""
    assert pairs.negative is not None
    x, y = panel.rows.x, panel.columns.x
    found = (x, pairs.rows), (y, pairs.columns), (y, pairs.negative)
    return [table.index_select(0, index) for table, index in found]


def _swapped_excess(panel: Panel, triplets: Triplets, x: Tensor, p: Tensor, n: Tensor) -> Tensor:
    """The same with the lesser of d_an and d_pn, which are computed in one way: they are equal
    where their rows are."""
    d_an, d_pn = (row_distances(rows, n, panel.distance) for rows in (x, p))
    return row_distances(x, p, panel.distance) - torch.minimum(d_an, d_pn) + triplets.margin


def _add_swapped(
    panel: Panel, into: Gradients, triplets: Triplets, pairs: Positives, weight: Tensor
) -> None:
    with torch.enable_grad():
        rows = [row.detach().requires_grad_() for row in _ends(panel, pairs)]
        terms = _term(triplets, _swapped_excess(panel, triplets, *rows))
        gx, *gy = torch.autograd.grad(terms, rows, weight)
    if into.x is not None:
        add_rows(into.x[panel.at], pairs.rows, gx)
    if (to := into.of_columns) is not None and pairs.negative is not None:
        add_rows(to, pairs.columns, gy[0])
        add_rows(to, pairs.negative, gy[1])


def _all_excess(panel: Panel, triplets: Triplets, pairs: Positives) -> tuple[Tensor, Block | None]:
    """Excesses (k, N) with every column; and with swap the distances of the positives to them."""
    d_an, block = panel.d.index_select(0, pairs.rows), None
    (d_ap,) = _entries(panel, pairs.rows, pairs.columns)
    if triplets.swap:
        block = panel.from_columns(pairs.columns)
        d_an = torch.minimum(d_an, block.d)
    return d_ap[:, None] - d_an + triplets.margin, block


def _add_all(
    panel: Panel,
    into: Gradients,
    triplets: Triplets,
    pairs: Positives,
    weight: Tensor,
    at_d: Tensor,
) -> Tensor:
    """Adds what flows to the distances of negatives; that at d_ap (k,) is returned."""
    excess, block = _all_excess(panel, triplets, pairs)
    slope = _slope(triplets, excess).mul_(weight[:, None])
    slope.masked_fill_(panel.alike.index_select(0, pairs.rows), 0)
    total = slope.sum(1)
    if block is not None:
        at_an = slope * _share_of_anchors(panel, pairs)
        into.add_block(block, pairs.columns, at_an - slope)
        slope = at_an
    add_rows(at_d, pairs.rows, -slope)
    return total


def _share_of_anchors(panel: Panel, pairs: Positives) -> Tensor:
    """1 where a column is nearer to the anchor than to the positive (k, N), half where they tie.

    By the product of the column and the difference of the two: near each other as they are, their
    distances to it may differ by less than their rounding.
    """
    x = panel.rows.x.index_select(0, pairs.rows)
    p = panel.columns.x.index_select(0, pairs.columns)
    between = x - p
    nearer = between @ panel.columns.x.T
    if panel.euclidean:
        nearer -= torch.linalg.vecdot(between, (x + p) / 2)[:, None]
    return nearer.sign_().add_(1).div_(2)


# All pairs of a panel alike, which waits for nothing.


def _dense_negatives(panel: Panel, triplets: Triplets) -> tuple[Tensor, Tensor]:
    """For each pair (b, N) of an anchor and a positive the column of a negative, and which of
    these triplets exist."""
    d, alike = panel.d, panel.alike
    if triplets.mining == "distance_weighted":
        running = running_weights(panel, triplets)
        rank = (~panel.unlike).cumsum(1) - 1
        rows = torch.arange(d.shape[0], device=d.device)
        negative = draw(running, numbers_of(panel, triplets, rows[:, None], rank))
        return negative, ~panel.unlike & (running[:, -1:] > 0)
    ascending, column = d.masked_fill(alike, torch.inf).sort(dim=1, stable=True)
    position = torch.searchsorted(ascending, d, right=True)
    inside = d.shape[1] - alike.sum(1, keepdim=True)
    outside = column.gather(1, position.clamp(max=d.shape[1] - 1))
    farthest = d.masked_fill(alike, -torch.inf).argmax(1, keepdim=True)
    return torch.where(position < inside, outside, farthest), ~panel.unlike & (inside > 0)


def _dense_sums(panel: Panel, triplets: Triplets) -> Tensor:
    negative, exists = _dense_negatives(panel, triplets)
    return _five(triplets, panel.d - panel.d.gather(1, negative) + triplets.margin, exists)


def _dense_weights(panel: Panel, triplets: Triplets, weight: Tensor) -> Tensor:
    negative, exists = _dense_negatives(panel, triplets)
    excess = panel.d - panel.d.gather(1, negative) + triplets.margin
    slope = _slope(triplets, excess).mul_(weight[:, None]).masked_fill_(~exists, 0)
    start = torch.arange(0, slope.numel(), slope.shape[1], device=slope.device)
    flat = (negative + start[:, None]).view(-1)
    return add_rows(slope.clone().view(-1), flat, -slope.view(-1)).view(slope.shape)


def _sorted_sums(panel: Panel, triplets: Triplets) -> Tensor:
    """The sum of [t - d_an]+ with t = d_ap + margin is k t less the k least d_an, k of which are
    below t."""
    ascending = panel.d.masked_fill(panel.alike, torch.inf).sort(dim=1).values
    running = torch.where(ascending < torch.inf, ascending, 0).double().cumsum(1)
    t = (panel.d + triplets.margin).contiguous()
    count = torch.searchsorted(ascending, t.detach()).masked_fill_(panel.unlike, 0)
    below = F.pad(running, (1, 0)).gather(1, count)
    total = torch.where(panel.unlike, 0, (count * t.double() - below).clamp(min=0)).sum(1)
    nonzero = count.sum(1).double()
    terms = (~panel.unlike).sum(1) * (~panel.alike).sum(1)
    return torch.stack((total, nonzero, total, nonzero, terms.double()), 1)


def _sorted_weights(panel: Panel, triplets: Triplets, weight: Tensor) -> Tensor:
    """Each positive counts with the negatives below it, and each negative with the positives
    above."""
    d, margin = panel.d, triplets.margin
    negatives = d.masked_fill(panel.alike, torch.inf).sort(dim=1).values
    pull = torch.searchsorted(negatives, d + margin).masked_fill_(panel.unlike, 0)
    positives = (d + margin).masked_fill_(panel.unlike, torch.inf).sort(dim=1).values
    farther = (~panel.unlike).sum(1, keepdim=True) - torch.searchsorted(positives, d, right=True)
    push = farther.masked_fill_(panel.alike, 0)
    return (pull - push) * weight[:, None]
