"""Panels: some anchors against all references, one at a time, or all kept for the backward half."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides, norms
from dmlap_kernels.backends.panels.block import Block, Rows

# Bytes of the distances of a panel: on the CPU they stay in cache, elsewhere launches are few.
PANEL_BYTES = {"cpu": 2 << 20, "other": 64 << 20}
# Of the distances of all panels, up to which they are kept for the backward half; or up to the size
# of the input.
KEPT_BYTES = 64 << 20


class Panel(Block):
    """Anchors ``at`` against all references.

    ``unlike`` and ``alike`` (b, N) are True where a pair is not positive and where it is not
    negative; both are at pairs of an anchor and itself, whose ``d`` is any finite number.
    """

    def __init__(self, sides: Sides, at: slice, own: Tensor | None = None) -> None:
        self.at, self.sides = at, sides
        anchors, columns = Rows(sides.x[at], sides.x_norms[at]), Rows(sides.y, sides.y_norms)
        if not sides.columns:
            # One that is in no pair, so that reductions have something to reduce.
            norms_count = len(anchors.norms) == len(anchors.x)
            columns = Rows(
                columns.x.new_zeros(1, columns.x.shape[1]),
                columns.norms.new_zeros(int(norms_count)),
            )
        super().__init__(anchors, columns, sides.distance, sides.precision)
        if not sides.columns:
            self.alike = torch.ones_like(self.d, dtype=torch.bool)
            self._unlike: Tensor | None = self.alike
            return
        if sides.partial:
            # Which may stand among the nearest.
            self.d.masked_fill_(sides.y_norms == torch.inf, torch.inf)
        self.alike, self._unlike = masks(sides, at, own), None

    @property
    def unlike(self) -> Tensor:
        if self._unlike is None:
            self._unlike = self.set_left_out(~self.alike, True)
        return self._unlike

    def positives_of(self, values: Tensor, other: float) -> Tensor:
        """Values (b, N), or (b, 1), of positive pairs, and another number elsewhere."""
        return self.set_left_out(torch.where(self.alike, values, other), other)

    def set_left_out(self, values: Tensor, number: float) -> Tensor:
        """Values (b, N) with a number, in place, where an anchor meets itself."""
        if not self.sides.columns:
            return values.fill_(number)
        if self.sides.self_case:
            values.diagonal(self.at.start).fill_(number)
        for own in _named(self.sides, self.at):
            values.masked_fill_(own, number)
        return values

    def from_columns(self, columns: Tensor) -> Block:
        """Distances of references ``columns`` (k,) to all references."""
        x, given = self.columns.x.index_select(0, columns), self.columns.norms
        rows = Rows(x, norms(x, self.distance, True) if len(given) else given)
        return Block(rows, self.columns, self.distance, self.sides.precision)

    def positives(self) -> tuple[Tensor, Tensor]:
        """Rows and columns (k,) of the positive pairs. Reads their number from the device."""
        rows, columns = (~self.unlike).nonzero(as_tuple=True)
        return rows, columns


def masks(sides: Sides, at: slice, own: Tensor | None = None) -> Tensor:
    """`Panel.alike` of some anchors; that of a match in ``own`` if it is given."""
    if sides.match is None:
        alike = sides.labels_x[at, None] == sides.labels_y
    else:
        alike = sides.match.block(at, own)
        if sides.self_case:
            alike.diagonal(at.start).fill_(True)
    for own in _named(sides, at):
        alike |= own
    return alike


def _named(sides: Sides, at: slice) -> Iterator[Tensor]:
    """A mask (b, N) of the pairs that are an anchor and itself by name."""
    if sides.itself is not None:
        columns = torch.arange(sides.columns, device=sides.x.device)
        yield sides.itself[at, None] == columns
    elif sides.col_itself is not None:
        rows = torch.arange(at.start, at.stop, device=sides.x.device)
        yield rows[:, None] == sides.col_itself


class Panels:
    """The panels of one call, of which those of its sides are kept if they are small."""

    def __init__(self) -> None:
        self._kept: dict[int, Panel] = {}
        self._sides: Sides | None = None
        self._mask: Tensor | None = None

    def of(self, sides: Sides, keep: bool = True) -> Iterator[Panel]:
        """At least one panel, be it of no anchors."""
        for at in slices(sides):
            yield self.panel(sides, at) if keep else self._passing(sides, at)

    def panel(self, sides: Sides, at: slice) -> Panel:
        if self._sides is None:
            self._sides = sides
        if self._sides is not sides or not _keeps(sides):
            return self._passing(sides, at)
        found = self._kept.get(at.start)
        if found is None:
            found = self._kept[at.start] = Panel(sides, at)
        return found

    def _passing(self, sides: Sides, at: slice) -> Panel:
        """A panel that nobody uses once the next one is made."""
        return Panel(sides, at, self._own(sides, at))

    def _own(self, sides: Sides, at: slice) -> Tensor | None:
        """Where such a panel has the pairs of a match: one buffer for all, the first panel being
        the largest. Beside the tensors of a rule, which are freed in between, new ones would leave
        holes in the memory of an allocator."""
        if sides.match is None:
            return None
        size = (at.stop - at.start) * sides.columns
        if self._mask is None or self._mask.numel() < size:
            self._mask = torch.empty(size, dtype=torch.bool, device=sides.x.device)
        return self._mask[:size].view(at.stop - at.start, sides.columns)

    def count_positives(self, sides: Sides) -> Tensor:
        """(B,) int64, how many positive pairs each anchor has."""
        if not sides.columns:
            return torch.zeros(sides.anchors, dtype=torch.int64, device=sides.x.device)
        kept, cuts = _keeps(sides), list(slices(sides))
        found = None
        for at in cuts:
            if kept:
                alike = self.panel(sides, at).alike
            else:
                alike = masks(sides, at, self._own(sides, at))
            # Each anchor is alike itself, where it is a column.
            named = None if sides.itself is None else (sides.itself[at] >= 0).long()
            count = alike.sum(1) - (int(sides.self_case) if named is None else named)
            if len(cuts) == 1:
                return count
            # Filled in place, as in `each`.
            found = count.new_empty(sides.anchors) if found is None else found
            found[at] = count
        assert found is not None
        return found

    def each(
        self,
        sides: Sides,
        body: Callable[..., Sequence[Tensor]],
        rows: Sequence[Tensor | None] = (),
        whole: Sequence[Any] = (),
    ) -> list[Tensor]:
        """The results of ``body(panel, *rows, *whole)`` of all panels, one after the other.

        Of ``rows`` (B,) it sees those of the panel. Under autograd what a panel needs for the
        derivative is made again when that is taken, so that there is one panel at a time.
        """
        cuts = list(slices(sides))
        found: list[Tensor] = []
        for at in cuts:
            operands = [None if row is None else row[at] for row in rows]
            parts = self._run(sides, at, body, (*operands, *whole))
            if len(cuts) == 1:
                return list(parts)
            # Filled in place: small tensors kept between the large ones of successive panels would
            # leave the allocator with holes of no use.
            found = found or [one.new_empty(sides.anchors, *one.shape[1:]) for one in parts]
            for one, part in zip(found, parts, strict=True):
                one[at] = part
        return found

    def _run(
        self, sides: Sides, at: slice, body: Callable[..., Sequence[Tensor]], operands: tuple
    ) -> Sequence[Tensor]:
        where = [i for i, one in enumerate(operands) if isinstance(one, Tensor)]

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            given = list(operands)
            for i, tensor in zip(where, tensors, strict=True):
                given[i] = tensor
            return tuple(body(self.panel(sides, at), *given))

        tensors = [operands[i] for i in where]
        if torch.is_grad_enabled() and any(one.requires_grad for one in tensors):
            return _Again.apply(run, *tensors)
        return run(*tensors)


class _Again(torch.autograd.Function):
    """A function of tensors that runs once more for its derivative."""

    @staticmethod
    def forward(run: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> Any:
        return run(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.run, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*(one for one in output if not one.is_floating_point()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        with torch.enable_grad():
            leaves = [one.detach().requires_grad_(one.requires_grad) for one in ctx.saved_tensors]
            found = ctx.run(*leaves)
        pairs = [(a, g) for a, g in zip(found, grads, strict=True) if a.requires_grad]
        if not pairs:  # of what was found nothing depends on what needs a gradient
            return (None,) * (1 + len(leaves))
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        outputs, given = zip(*pairs, strict=True)
        parts = iter(torch.autograd.grad(outputs, wanted, given, allow_unused=True))
        return None, *(next(parts) if leaf.requires_grad else None for leaf in leaves)


def slices(sides: Sides) -> Iterator[slice]:
    step = max(1, budget_of(sides.x, PANEL_BYTES) // max(1, sides.columns * _item(sides)))
    for start in range(0, max(1, sides.anchors), step):
        yield slice(start, min(start + step, sides.anchors))


def budget_of(tensor: Tensor, bytes_of: dict[str, int]) -> int:
    return bytes_of["cpu" if tensor.device.type == "cpu" else "other"]


def _item(sides: Sides) -> int:
    return sides.x.element_size()


def _keeps(sides: Sides) -> bool:
    """Whether the distances of all panels are small."""
    inputs = sides.x.numel() + (0 if sides.self_case else sides.y.numel())
    most = max(KEPT_BYTES, inputs * _item(sides))
    return sides.anchors * sides.columns * _item(sides) <= most
