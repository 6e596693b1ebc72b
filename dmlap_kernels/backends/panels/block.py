"""A block of distances: one product of matrices, and near pairs again from differences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dmlap_kernels.backends.device.terms import add_rows
from dmlap_kernels.backends.precision import products_in

# Squared distances below this share of |x|^2 are taken again from differences: of larger ones the
# rounding of products leaves an error of a few units in the last place of |x|.
NEAR = {"highest": 5e-2, "high": 1e-1, "medium": 2e-1}
# Of the differences between rows that are held at a time.
_LISTED_BYTES = 8 << 20
_NEAREST_BYTES = 64 << 20
_FEWEST_NEAREST = 8


class Rows(NamedTuple):
    """Rows (k, Dp) as distances see them, and the part of d that each brings along (k,)."""

    x: Tensor
    norms: Tensor


class Block:
    """Distances ``d`` (b, N) of some rows to others, and how a gradient at them goes on to both."""

    def __init__(self, rows: Rows, columns: Rows, distance: str, precision: str) -> None:
        self.rows, self.columns = rows, columns
        self.distance, self.precision = distance, precision
        self.near: Listed | Nearest | None = None
        scale = 2 if self.euclidean else 1
        with products_in(precision):
            d = torch.addmm(columns.norms, rows.x, columns.x.T, alpha=-scale)
        self.d = d.add_(rows.norms[:, None])
        if self.euclidean and d.numel():
            d.clamp_min_(0)
            self.near = near_pairs(self, NEAR[precision])
            if distance == "euclidean":
                d.sqrt_()
            self.near.fill(self)

    @property
    def euclidean(self) -> bool:
        return self.distance in ("euclidean", "sqeuclidean")

    def lengths(self, differences: Tensor) -> Tensor:
        """The distances of rows with such differences (..., Dp)."""
        length = torch.linalg.vector_norm(differences, dim=-1)
        return length if self.distance == "euclidean" else length.square_()

    def gradients(
        self, at_d: Tensor, gx: Tensor | None, gy: Tensor | None, both: bool = False
    ) -> None:
        """Adds to the gradients at the rows and at the columns, given that at ``d``.

        ``at_d`` is overwritten. With ``both`` rows and columns are the same, and ``gx`` takes all.
        """
        at = at_d
        if self.distance == "euclidean":
            # No gradient at distance 0.
            at.div_(self.d).masked_fill_(self.d == 0, 0)
        elif self.euclidean:
            at.mul_(2)
        x, y = self.rows.x, self.columns.x
        if both:
            at, gy = at + at.T, None
        if self.near is not None:
            # They are left out of the products, in which they would cancel.
            self.near.add_gradients(self, at, gx, gy)
        if self.euclidean:
            if gx is not None:
                gx.addcmul_(at.sum(1, keepdim=True), x)
            if gy is not None:
                gy.addcmul_(at.sum(0).unsqueeze(1), y)
        with products_in(self.precision):
            if gx is not None:
                gx.addmm_(at, y, alpha=-1)
            if gy is not None:
                gy.addmm_(at.T, x, alpha=-1)


def near_pairs(block: Block, share: float) -> Listed | Nearest:
    """The pairs that are taken from differences, of a block whose ``d`` are still squares."""
    return Listed(block, share) if block.d.device.type == "cpu" else Nearest(block)


class Listed:
    """All near pairs of a block, by flat indices (k,). On the CPU, where their number is known."""

    def __init__(self, block: Block, share: float) -> None:
        near = block.d < (share * block.rows.norms)[:, None]
        self.flat = near.view(-1).nonzero().squeeze(1)

    def fill(self, block: Block) -> None:
        flat = block.d.view(-1)
        for part, _, _, differences in self._pieces(block):
            flat.index_copy_(0, part, block.lengths(differences))

    def add_gradients(self, block: Block, at: Tensor, gx: Tensor | None, gy: Tensor | None) -> None:
        flat = at.view(-1)
        for part, row, column, differences in self._pieces(block):
            differences.mul_(flat.index_select(0, part).unsqueeze(1))
            flat.index_fill_(0, part, 0)
            if gx is not None:
                add_rows(gx, row, differences)
            if gy is not None:
                add_rows(gy, column, differences.neg_())

    def _pieces(self, block: Block) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Flat indices, rows and columns (k,), differences (k, Dp), of some at a time."""
        x, y = block.rows.x, block.columns.x
        if not self.flat.numel():
            return
        for part in self.flat.split(max(1, _LISTED_BYTES // (x.shape[1] * x.element_size()))):
            row = torch.div(part, y.shape[0], rounding_mode="floor")
            column = part - row * y.shape[0]
            yield part, row, column, x.index_select(0, row).sub_(y.index_select(0, column))


class Nearest:
    """The nearest columns (b, K) of each row, as many as differences fit into memory.

    For devices of which the number of near pairs cannot be known without waiting. Where a row has
    more near columns, their distances are as exact as products make them.
    """

    def __init__(self, block: Block) -> None:
        height, width = block.d.shape
        row = max(1, height * block.rows.x.shape[1] * block.d.element_size())
        most = min(width, max(_FEWEST_NEAREST, _NEAREST_BYTES // row))
        self.columns = block.d.topk(most, largest=False, sorted=False).indices

    def fill(self, block: Block) -> None:
        block.d.scatter_(1, self.columns, block.lengths(self._differences(block)))

    def add_gradients(self, block: Block, at: Tensor, gx: Tensor | None, gy: Tensor | None) -> None:
        differences = self._differences(block)
        own = at.gather(1, self.columns)
        at.scatter_(1, self.columns, 0)
        if gx is not None:
            gx.unsqueeze(1).baddbmm_(own.unsqueeze(1), differences)
        if gy is not None:
            parts = differences.mul_(own.neg_().unsqueeze(2))
            add_rows(gy, self.columns.view(-1), parts.view(-1, gy.shape[1]))

    def _differences(self, block: Block) -> Tensor:
        """(b, K, Dp)"""
        y = block.columns.x.index_select(0, self.columns.view(-1))
        return block.rows.x.unsqueeze(1) - y.view(*self.columns.shape, -1)
