"""A block of distances: one product of matrices, and near pairs again from differences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
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
    """Rows (k, Dp) as distances see them, and the part of d that each brings along (k,); none (0,)
    where all pairs of a distance have the same."""

    x: Tensor
    norms: Tensor


class Block:
    """Distances ``d`` (b, N) of some rows to others, and how a gradient at them goes on to both."""

    def __init__(self, rows: Rows, columns: Rows, distance: str, precision: str) -> None:
        self.rows, self.columns = rows, columns
        self.distance, self.precision = distance, precision
        self.near: Listed | Nearest | None = None
        scale = 2 if self.euclidean else 1
        same = len(columns.x) != len(columns.norms)
        added = rows.x.new_empty(1) if same else columns.norms
        with products_in(precision):
            d = torch.addmm(added, rows.x, columns.x.T, beta=1 - same, alpha=-scale)
        if not same:
            d.add_(rows.norms[:, None])
        elif distance == "cosine":
            d.add_(1)
        self.d = d
        if self.euclidean and d.numel():
            d.clamp_min_(0)
            self.near = near_pairs(self, NEAR[precision])
            if distance == "euclidean":
                d.sqrt_()
            self.near.fill(self)

    @property
    def euclidean(self) -> bool:
        return self.distance in ("euclidean", "sqeuclidean")

    def of_lengths(self, length: Tensor) -> Tensor:
        """The distances of rows whose differences are as long, which are overwritten."""
        return length if self.distance == "euclidean" else length.square_()

    def gradients(
        self,
        at_d: Tensor,
        gx: Tensor | None,
        gy: Tensor | None,
        both: bool = False,
        first: bool = False,
    ) -> None:
        """Adds to the gradients at the rows and at the columns, given that at ``d``.

        ``at_d`` is overwritten. With ``both`` rows and columns are the same, and ``gx`` takes all.
        What is ``first`` need not be zeros.
        """
        at = at_d
        if self.distance == "euclidean":
            # No gradient at distance 0.
            at.div_(F.threshold(self.d, 0, torch.inf))
        elif self.euclidean:
            at.mul_(2)
        x, y = self.rows.x, self.columns.x
        if both:
            at, gy = at + at.T, None
        # They are left out of the products, in which they would cancel.
        near = None if self.near is None else self.near.taken(at)
        beta = 1 - first
        with products_in(self.precision):
            if gx is not None:
                gx.addmm_(at, y, beta=beta, alpha=-1)
            if gy is not None:
                gy.addmm_(at.T, x, beta=beta, alpha=-1)
        if self.euclidean:
            if gx is not None:
                gx.addcmul_(at.sum(1, keepdim=True), x)
            if gy is not None:
                gy.addcmul_(at.sum(0).unsqueeze(1), y)
        if self.near is not None and near is not None:
            self.near.add_gradients(self, near, gx, gy)


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
            length = torch.linalg.vector_norm(differences, dim=1)
            flat.index_copy_(0, part, block.of_lengths(length))

    def taken(self, at: Tensor) -> Tensor:
        """What stands at these pairs (k,), where 0 is left."""
        flat = at.view(-1)
        own = flat.index_select(0, self.flat)
        flat.index_fill_(0, self.flat, 0)
        return own

    def add_gradients(
        self, block: Block, own: Tensor, gx: Tensor | None, gy: Tensor | None
    ) -> None:
        start = 0
        for _, row, column, differences in self._pieces(block):
            differences.mul_(own[start : start + len(row)].unsqueeze(1))
            start += len(row)
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
        # Differences that are nowhere held.
        x, mode = block.rows.x.unsqueeze(1), "donot_use_mm_for_euclid_dist"
        length = torch.cdist(x, self._rows(block), compute_mode=mode).squeeze(1)
        block.d.scatter_(1, self.columns, block.of_lengths(length))

    def taken(self, at: Tensor) -> Tensor:
        """What stands at these pairs (b, K), where 0 is left."""
        own = at.gather(1, self.columns)
        at.scatter_(1, self.columns, 0)
        return own

    def add_gradients(
        self, block: Block, own: Tensor, gx: Tensor | None, gy: Tensor | None
    ) -> None:
        differences = block.rows.x.unsqueeze(1) - self._rows(block)
        if gx is not None:
            gx.unsqueeze(1).baddbmm_(own.unsqueeze(1), differences)
        if gy is not None:
            parts = differences.mul_(own.neg_().unsqueeze(2))
            add_rows(gy, self.columns.view(-1), parts.view(-1, gy.shape[1]))

    def _rows(self, block: Block) -> Tensor:
        """(b, K, Dp)"""
        y = block.columns.x.index_select(0, self.columns.view(-1))
        return y.view(*self.columns.shape, -1)
