"""Positive pairs of the anchors of a rank with rows of all ranks, some of each anchor at a time.

Losses of triplets compare a positive pair with negatives that lie in other blocks. The labels of
all rows are known on every rank, so that the pairs can be listed before any block has come by:
tables (B, K) of the numbers of rows among those of all ranks, -1 for none. A turn of the ring
fetches what is needed of these rows, the next one meets the negatives, and a table that would be
too large is cut into several, each with turns of its own. Rows are in the order of the caller, and
distances are those of the panels of `torch`, whatever the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides, pack, unpacked
from dmlap_kernels.backends.device.terms import add_rows
from dmlap_kernels.backends.panels.gradients import Gradients
from dmlap_kernels.backends.panels.panel import Panel, Panels
from dmlap_kernels.problem import PairProblem, PairSpec

if TYPE_CHECKING:
    from dmlap_kernels.ring_sweeps import Ring

# Of a table of pairs, which may also be as large as the rows of this rank.
LIST_BYTES = 16 << 20

# A panel of a block; where each anchor's table of columns lies in it, and which lie in it.
Visit = Callable[[Panel, "Where"], None]


class Pairs(NamedTuple):
    """Some positive pairs of each anchor (B, K): numbers of the positives, -1 for none, and which
    positive of its anchor each is, in label order. ``alone`` says that there are no others."""

    columns: Tensor
    ranks: Tensor
    alone: bool

    @property
    def exist(self) -> Tensor:
        return self.columns >= 0


class Where(NamedTuple):
    """A block among the rows of all ranks: the number of its first row and how many it has; and
    what panels subtract from its rows (D,), see `dmlap_kernels.backends.device.packing.centre`."""

    start: int
    size: int
    offset: Tensor

    def local(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of rows as columns of the block, and which of them it has."""
        return _local(columns, self.start, self.size)


class Lists:
    """The positive pairs of the anchors of this rank, and what turns of the ring do for them."""

    def __init__(self, ring: Ring, spec: PairSpec, problem: PairProblem, labels: Tensor) -> None:
        self.ring, self.spec, self.problem = ring, spec, problem
        self.all_labels, self.labels = labels, labels.split(ring.sizes)
        self.refs_wanted = True
        # Tables of the forward half for the backward half, if one is all there is.
        self.kept: dict[str, object] = {}
        self._runs: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def anchors(self) -> int:
        return self.problem.x.shape[0]

    @property
    def itself(self) -> Tensor:
        """(B,) the number of the row that is the anchor, -1 for none."""
        problem, own = self.problem, self.ring.start(self.ring.ranks.rank)
        if problem.y is None:
            return torch.arange(own, own + self.anchors, device=problem.x.device)
        if problem.self_index is None:
            return torch.full_like(problem.labels, -1)
        return torch.where(problem.self_index >= 0, problem.self_index + own, -1)

    @property
    def runs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The numbers of all rows in label order (N,), the place of each row in it (N,), and where
        the run of each anchor's label begins and ends (B,)."""
        if self._runs is None:
            order = torch.argsort(self.all_labels, stable=True)
            ordered, wanted = self.all_labels[order], self.problem.labels
            place = torch.empty_like(order)
            place[order] = torch.arange(len(order), device=order.device)
            first, last = (torch.searchsorted(ordered, wanted, right=s) for s in (False, True))
            self._runs = order, place, first, last
        return self._runs

    def pairs(self, numbers: int) -> Iterator[Pairs]:
        """All positive pairs, as many at a time as a table takes that has so many numbers a pair.

        As often on every rank, because each takes turns.
        """
        order, place, first, last = self.runs
        longest = int((last - first).max()) if self.anchors else 0
        bytes_of_rows = self.problem.x.numel() * self.problem.x.element_size()
        one = max(1, self.anchors) * numbers * 8
        width = max(1, min(longest, max(LIST_BYTES, bytes_of_rows) // one))
        passes = self.ring.ranks.most(-(-longest // width), first.device)
        itself, most = self.itself, max(1, len(order)) - 1
        own_place = (
            torch.where(itself >= 0, place[itself.clamp(min=0)], -1) if len(order) else first
        )
        for k in range(passes):
            at = first[:, None] + torch.arange(k * width, (k + 1) * width, device=first.device)
            there = (at < last[:, None]) & (at != own_place[:, None])
            columns = order[at.clamp(max=most)] if len(order) else at
            # The anchor itself is none of its positives.
            before = (own_place >= first)[:, None] & (own_place[:, None] < at)
            ranks = at - first[:, None] - before.long()
            yield Pairs(torch.where(there, columns, -1), ranks, passes == 1)

    def visit(self, visit: Visit) -> None:
        """Calls ``visit(panel, where)`` of all panels, in one turn of the ring."""

        def block(owner: int, rows: Tensor) -> None:
            if len(rows):
                sides = self.sides(owner, rows)
                where = self._where(owner, rows, sides)
                for panel in Panels().of(sides, keep=False):
                    visit(panel, where)

        self.ring.turn(block, carry=False)

    def gradient(
        self, visit: Callable[[Panel, Where, Gradients], None]
    ) -> tuple[Tensor, Tensor | None]:
        """Of gradients at distances that ``visit`` adds panel by panel, those at the rows (B, D) of
        the anchors, less what their lengths make of them, and at the own references (E, D)."""
        total = self.rows_of_anchors(torch.zeros_like)

        def block(owner: int, rows: Tensor) -> Tensor | None:
            sides = self.sides(owner, rows)._replace(y_grad=self.refs_wanted)
            sums = Gradients(sides)
            if len(rows):
                where = self._where(owner, rows, sides)
                for panel in Panels().of(sides, keep=False):
                    visit(panel, where, sums)
                assert sums.x is not None
                total.add_(sums.x)
            if not self.refs_wanted:
                return None
            gy = total.new_zeros(rows.shape) if sums.y is None else sums.y
            return unpacked(sides, gy, rows, True, gy.new_zeros(()))

        return total, self.ring.turn(block, carry=self.refs_wanted)

    def fetch(self, numbers: Tensor) -> Tensor:
        """The rows (..., D) of numbers (...), of unit length where the loss asks for it; zeros for
        -1."""
        columns = numbers.reshape(-1)
        rows = self.rows_of_anchors(lambda x: x.new_zeros(len(columns), x.shape[1]))

        def block(owner: int, given: Tensor) -> None:
            if len(given):
                local, inside = _local(columns, self.ring.start(owner), len(given))
                found = self.ready(given, self.labels[owner]).x.index_select(0, local)
                rows.copy_(torch.where(inside[:, None], found, rows))

        self.ring.turn(block, carry=False)
        return rows.view(*numbers.shape, rows.shape[1])

    def give_back(self, columns: Tensor, gradients: Tensor) -> Tensor | None:
        """Of gradients (k, D) at fetched rows those at the own references (E, D)."""
        if not self.refs_wanted:
            return None

        def block(owner: int, given: Tensor) -> Tensor:
            sides = self.ready(given, self.labels[owner])
            total = torch.zeros_like(sides.x)
            if len(given):
                local, inside = _local(columns, self.ring.start(owner), len(given))
                add_rows(total, local, torch.where(inside[:, None], gradients, 0))
            return unpacked(sides, total, given, False, total.new_zeros(()))

        return self.ring.turn(block, carry=True)

    def distances(self, columns: Tensor) -> Tensor:
        """Of the anchors to rows of numbers (B, K); 0 for -1."""
        found = self.rows_of_anchors(lambda x: x.new_zeros(columns.shape))
        self.visit(lambda panel, where: take(found, columns, panel, where))
        return found

    def _where(self, owner: int, rows: Tensor, sides: Sides) -> Where:
        # Exact, as what is subtracted is.
        first = self.ready(rows[:1], self.labels[owner][:1]).x[0]
        return Where(self.ring.start(owner), len(rows), first - sides.y[0])

    def zero_gradients(self) -> tuple[Tensor, Tensor | None]:
        """At the rows of the anchors (B, D), and at the own references (E, D) if wanted."""
        gx = self.rows_of_anchors(torch.zeros_like)
        return gx, gx.new_zeros(self.ring.rows.shape) if self.refs_wanted else None

    def rows_of_anchors(self, make: Callable[[Tensor], Tensor]) -> Tensor:
        """A tensor like the rows of the anchors, in the dtype of the computation."""
        return make(self.ready(self.problem.x, self.problem.labels).x)

    def ready(self, rows: Tensor, labels: Tensor) -> Sides:
        """Rows as they are, or of unit length, without an offset that depends on others."""
        spec = self.spec._replace(distance="dot", normalize=self.spec.unit_rows)
        return pack(spec, PairProblem(rows.detach(), labels, None, None), False, 1)

    def sides(self, owner: int, block: Tensor) -> Sides:
        """The anchors against a block, in the order of the caller."""
        x, labels, y, _, _, itself, _ = self.problem
        if owner != self.ring.ranks.rank:
            itself = None
        elif y is None:
            itself = torch.arange(self.anchors, device=x.device)
        problem = PairProblem(x.detach(), labels, block, self.labels[owner], None, itself)
        return pack(self.spec, problem, False, 1)


def _local(columns: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
    local = columns - start
    inside = (local >= 0) & (local < size)
    return torch.where(inside, local, 0), inside


def take(into: Tensor, columns: Tensor, panel: Panel, where: Where) -> None:
    """Writes the distances of a panel at numbers of rows (B, K) where the block has them."""
    local, inside = where.local(columns[panel.at])
    into[panel.at] = torch.where(inside, panel.d.gather(1, local), into[panel.at])


def put(at_d: Tensor, columns: Tensor, values: Tensor, where: Where) -> None:
    """Adds values (b, K) to the gradient at the distances (b, n) of a panel at numbers of rows."""
    local, inside = where.local(columns)
    start = torch.arange(0, at_d.numel(), at_d.shape[1], device=at_d.device)
    flat = (local + start[:, None]).view(-1)
    add_rows(at_d.view(-1), flat, torch.where(inside, values, 0).view(-1))


def summed(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return one if other is None else other
    return one + other
