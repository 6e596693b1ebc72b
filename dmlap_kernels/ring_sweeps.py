"""The primitives of `backends/device` over the references of all ranks, whose blocks go round.

Each primitive is called for one block at a time, and what it finds of the anchors is merged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dmlap_kernels import ring_angular, ring_triplets
from dmlap_kernels.backends.device.packing import Sides, pack, unpacked
from dmlap_kernels.backends.device.sweeps import (
    Both,
    Exponent,
    Extremes,
    HingeSums,
    LogSums,
    PairGradient,
    PairTerms,
    Sweeps,
    Triplets,
)
from dmlap_kernels.problem import PairProblem, PairSpec
from dmlap_kernels.ranks import Ranks
from dmlap_kernels.ring_lists import Lists


class Ring:
    """The blocks of all ranks, of which ``rows`` (E, D) is that of this one."""

    def __init__(self, ranks: Ranks, rows: Tensor, sizes: list[int]) -> None:
        self.ranks, self.rows, self.sizes = ranks, rows.detach().contiguous(), sizes

    def start(self, owner: int) -> int:
        """The number of the first row of a block among those of all ranks."""
        return sum(self.sizes[:owner])

    def turn(self, visit: Callable[[int, Tensor], Tensor | None], carry: bool) -> Tensor | None:
        """Calls ``visit(owner, block)`` for the block of each rank, this one's first, while the
        next one arrives. With ``carry`` what it returns, a gradient at the block, travels with
        the block; back comes the sum for the block of this rank."""
        ranks, block = self.ranks, self.rows
        carried: Tensor | None = None
        for step in range(ranks.count):
            owner = (ranks.rank - step) % ranks.count
            following = self.sizes[owner - 1]
            last = step == ranks.count - 1
            waiting, arriving = ([], block) if last else self._pass_on(block, following)
            found = visit(owner, block)
            with ranks.exchange("blocks of embeddings"):
                _wait(waiting)
            block = arriving
            if carry:
                assert found is not None
                carried = found if carried is None else carried + found
                waiting, carried = self._pass_on(carried, following)
                with ranks.exchange("gradients"):
                    _wait(waiting)
        return carried

    def _pass_on(self, block: Tensor, arriving_rows: int) -> tuple[list[Any], Tensor]:
        """Sends the block to the next rank; what is to be waited for, and what then has arrived."""
        ranks = self.ranks
        arriving = block.new_empty((arriving_rows, *block.shape[1:]))
        onward, before = ((ranks.rank + by) % ranks.count for by in (1, -1))
        calls = []
        if block.numel():
            calls.append(self._operation(dist.isend, block.contiguous(), onward))
        if arriving.numel():
            calls.append(self._operation(dist.irecv, arriving, before))
        with ranks.exchange("blocks of embeddings"):
            return (dist.batch_isend_irecv(calls) if calls else []), arriving

    def _operation(self, kind: Any, tensor: Tensor, peer: int) -> Any:
        group = self.ranks.group
        peer = peer if group is None else dist.get_global_rank(group, peer)
        return dist.P2POp(kind, tensor, peer, group)


def _wait(operations: list[Any]) -> None:
    for one in operations:
        one.wait()


class RingSweeps:
    """The primitives over the references of all ranks; sides that they are given are those of the
    own block, of which the anchors count. Exchanged sides stand for the own references against the
    anchors of all ranks, which then go round.

    Gradients at the references are not returned but added up in ``at_references`` (E, D), those of
    the rows of this rank.
    """

    def __init__(
        self, sweeps: Sweeps, ring: Ring, spec: PairSpec, problem: PairProblem, labels: Tensor
    ) -> None:
        self.sweeps, self.ring, self.spec, self.problem = sweeps, ring, spec, problem
        self.labels = labels.split(ring.sizes)
        self.lists = Lists(ring, spec, problem, labels)
        self.own: Sides | None = None  # those of the call
        self.refs_wanted = True
        self.at_references: Tensor | None = None
        self._anchors: tuple[Ring, tuple[Tensor, ...]] | None = None

    def begin_gradient(self, refs_wanted: bool) -> None:
        """Of all primitives of one backward half together."""
        self.refs_wanted, self.at_references = refs_wanted, None

    def extremes(self, sides: Sides, sums: bool) -> Extremes:
        """Columns are numbers of rows among those of all ranks."""
        return self._extremes(lambda one: self.sweeps.extremes(one, sums))

    def nearest_pairs(self, sides: Sides, negative_above: Tensor | None = None) -> Extremes:
        """Columns as well."""

        def sweep(one: Sides) -> Extremes:
            found = self.sweeps.nearest_pairs(one, negative_above)
            return found._replace(positive=-found.positive)

        found = self._extremes(sweep)
        return found._replace(positive=-found.positive)

    def _extremes(self, sweep: Callable[[Sides], Extremes]) -> Extremes:
        """Those of all blocks."""
        merged: list[Extremes] = []

        def visit(owner: int, block: Tensor) -> None:
            one_sides = self._sides(owner, block)
            one = sweep(one_sides)
            start = self.ring.start(owner)
            one = one._replace(
                positive_column=_numbered(one.positive_column, one_sides, start),
                negative_column=_numbered(one.negative_column, one_sides, start),
            )
            merged.append(_further(merged.pop(), one) if merged else one)

        self.ring.turn(visit, carry=False)
        return merged[0]

    def hinge_sums(
        self, sides: Sides, positive_bound: Tensor, negative_bound: Tensor, squared: bool
    ) -> HingeSums:
        bounds = positive_bound, negative_bound
        return HingeSums(
            *self._added(sides, lambda one, _: self.sweeps.hinge_sums(one, *bounds, squared))
        )

    def logistic_sums(self, sides: Sides, positive: Exponent, negative: Exponent) -> Tensor:
        exponents = positive, negative
        (total,) = self._added(sides, lambda one, _: (self.sweeps.logistic_sums(one, *exponents),))
        return total

    def log_sums(
        self,
        sides: Sides,
        positive: Exponent,
        negative: Exponent,
        positive_above: Tensor | None = None,
        negative_below: Tensor | None = None,
        read: tuple[str, ...] = LogSums._fields,
    ) -> LogSums:
        merged: list[LogSums] = []

        def visit(one_sides: Sides, owner: int) -> None:
            bounds = positive_above, negative_below
            one = self.sweeps.log_sums(one_sides, positive, negative, *bounds, read)
            if merged:
                before = merged.pop()
                one = LogSums(
                    torch.logaddexp(before.pos_lse, one.pos_lse),
                    torch.logaddexp(before.neg_lse, one.neg_lse),
                    before.exponent_sum + one.exponent_sum,
                )
            merged.append(one)

        self._visit(sides, visit)
        return merged[0]

    def pair_terms(
        self,
        sides: Sides,
        kind: str,
        exponent: Exponent,
        neg_lse: Tensor,
        neg_lse_of_columns: Tensor | None = None,
        weight_of_columns: Tensor | None = None,
    ) -> PairTerms:
        of_columns = self._everywhere(sides, neg_lse_of_columns, weight_of_columns)

        def sums(one: Sides, owner: int) -> PairTerms:
            rows = of_columns(one, owner)
            return self.sweeps.pair_terms(one, kind, exponent, neg_lse, *rows)

        return PairTerms(*self._added(sides, sums))

    def gradient(self, sides: Sides, pair_gradient: PairGradient) -> Both:
        columns: Any = pair_gradient.columns
        if pair_gradient.kind == "lifted" and columns is None and pair_gradient.anchors is not None:
            # Both ends of a pair have log-sums; what flows to them each adds as an anchor.
            neg_lse = pair_gradient.anchors[0]
            columns = neg_lse, *[torch.zeros_like(neg_lse)] * 2
        of_columns = self._everywhere(sides, *(() if columns is None else columns))
        total: list[Tensor] = []

        def visit(owner: int, block: Tensor) -> Tensor | None:
            one = self._sides(owner, block)._replace(y_grad=self.refs_wanted)
            rows = of_columns(one, owner)
            weights = pair_gradient._replace(columns=torch.stack(rows) if rows else None)
            gx, gy = self.sweeps.gradient(one, weights)
            assert gx is not None
            total.append(total.pop() + gx if total else gx)
            return None if gy is None else unpacked(one, gy, block, True, gy.new_zeros(()))

        found, before = self.ring.turn(visit, carry=self.refs_wanted), self.at_references
        self.at_references = found if found is None or before is None else before + found
        return total[0], None

    def triplet_sums(self, sides: Sides, triplets: Triplets) -> Tensor:
        return ring_triplets.sums(self.lists, triplets)[sides.order_x]

    def triplet_gradient(self, sides: Sides, triplets: Triplets, weight: Tensor) -> Both:
        self.lists.refs_wanted = self.refs_wanted
        gx, self.at_references = ring_triplets.gradient(
            self.lists, triplets, sides.to_caller(weight)
        )
        return gx[sides.order_x], None

    def angular_terms(self, sides: Sides, tangent: float) -> Tensor:
        return ring_angular.terms(self.lists, tangent)[:, sides.order_x]

    def angular_gradient(self, sides: Sides, tangent: float, weight: Tensor) -> Both:
        self.lists.refs_wanted = self.refs_wanted
        gx, self.at_references = ring_angular.gradient(self.lists, tangent, sides.to_caller(weight))
        return gx[sides.order_x], None

    def _added(
        self, sides: Sides, sums: Callable[[Sides, int], tuple[Tensor, ...]]
    ) -> list[Tensor]:
        total: list[Tensor] = []

        def visit(one: Sides, owner: int) -> None:
            found = sums(one, owner)
            total[:] = [a + b for a, b in zip(total, found, strict=True)] if total else found

        self._visit(sides, visit)
        return total

    def _visit(self, sides: Sides, visit: Callable[[Sides, int], None]) -> None:
        """Calls ``visit(sides, owner)`` with those of each block, exchanged if the given are."""
        if not self._exchanged(sides):
            self.ring.turn(lambda owner, block: visit(self._sides(owner, block), owner), False)
            return
        ring, labels = self._of_anchors()

        def reverse(owner: int, block: Tensor) -> None:
            own = self.problem
            itself = own.self_index if owner == ring.ranks.rank else None
            y = None if own.y is None else own.y.detach()
            problem = PairProblem(block, labels[owner], y, own.ref_labels, None, itself)
            visit(pack(self.spec, problem).swapped(), owner)

        ring.turn(reverse, carry=False)

    def _exchanged(self, sides: Sides) -> bool:
        """Whether the references are the anchors."""
        return self.problem.y is not None and sides is not self.own

    def _of_anchors(self) -> tuple[Ring, tuple[Tensor, ...]]:
        """The anchors of all ranks, and their labels."""
        if self._anchors is None:
            ranks, x = self.ring.ranks, self.problem.x
            sizes = ranks.sizes(x, even=False)
            labels = ranks.gather(self.problem.labels, sizes).split(sizes)
            self._anchors = Ring(ranks, x, sizes), labels
        return self._anchors

    def _everywhere(
        self, sides: Sides, *values: Tensor | None
    ) -> Callable[[Sides, int], list[Tensor]]:
        """Of values (E,) of the own columns those of the columns of any block, (n,) each."""
        given = [one for one in values if one is not None]
        if not given:
            return lambda one, owner: []
        ring = self._of_anchors()[0] if self._exchanged(sides) else self.ring
        own = torch.stack(given, 1)
        own = torch.empty_like(own).index_copy_(0, sides.order_y, own)
        parts = ring.ranks.gather(own, ring.sizes).split(ring.sizes)
        return lambda one, owner: [row.contiguous() for row in parts[owner][one.order_y].T]

    def _sides(self, owner: int, block: Tensor) -> Sides:
        """The anchors against a block, of which they may be rows if it is this rank's."""
        x, labels, y, _, _, itself, _ = self.problem
        if owner != self.ring.ranks.rank:
            itself = None
        elif y is None:
            itself = torch.arange(x.shape[0], device=x.device)
        return pack(
            self.spec, PairProblem(x.detach(), labels, block, self.labels[owner], None, itself)
        )


def _numbered(columns: Tensor, sides: Sides, start: int) -> Tensor:
    """Columns (B,) of sides as numbers of rows among those of all ranks, int64; -1 for none."""
    if not sides.columns:
        return columns.long()
    return torch.where(columns < 0, -1, sides.order_y[columns.clamp(min=0).long()] + start)


def _further(before: Extremes, one: Extremes) -> Extremes:
    """The extremes of two blocks; of equal distances that of the lower column."""
    at, to = before.positive_column, one.positive_column
    tied = (one.positive == before.positive) & (to >= 0) & ((to < at) | (at < 0))
    positive = (one.positive > before.positive) | tied
    at, to = before.negative_column, one.negative_column
    tied = (one.negative == before.negative) & (to >= 0) & ((to < at) | (at < 0))
    negative = (one.negative < before.negative) | tied
    return one._replace(
        positive=torch.where(positive, one.positive, before.positive),
        positive_column=torch.where(positive, one.positive_column, before.positive_column),
        negative=torch.where(negative, one.negative, before.negative),
        negative_column=torch.where(negative, one.negative_column, before.negative_column),
    )
