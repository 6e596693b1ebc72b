"""A block of distances: one product of matrices, and near pairs again from differences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dmlap_kernels.backends.device.terms import add_rows

# Squared distances below this share of |x|^2 are taken again from differences: of larger ones the
# rounding of products leaves an error of a few units in the last place of |x|.
NEAR = {"highest": 5e-2, "high": 1e-1, "medium": 2e-1}
# Of the differences between rows that are held at a time.
DIFFERENCE_BYTES = {"cpu": 8 << 20, "other": 64 << 20}


class Rows(NamedTuple):
    """Rows (k, Dp) as distances see them, and the part of d that each brings along (k,)."""

    x: Tensor
    norms: Tensor

    def at(self, index: Tensor) -> Rows:
        return Rows(self.x.index_select(0, index), self.norms.index_select(0, index))


class Block:
    """Distances ``d`` (b, N) of some rows to others, and how a gradient at them goes on to both.

    ``apart`` takes pairs out of a mask (b, N) that are no pairs, of a row and itself.
    """

    def __init__(self, rows: Rows, columns: Rows, distance: str, precision: str) -> None:
        self.rows, self.columns, self.distance = rows, columns, distance
        self.near: Tensor | None = None
        d = torch.addmm(columns.norms, rows.x, columns.x.T, alpha=-self._products)
        d.add_(rows.norms[:, None])
        if self.euclidean and d.numel():
            d.clamp_min_(0)
            self._find_near(d, NEAR[precision])
        self.d = d.sqrt_() if distance == "euclidean" else d

    @property
    def euclidean(self) -> bool:
        return self.distance in ("euclidean", "sqeuclidean")

    @property
    def _products(self) -> int:
        return 2 if self.euclidean else 1

    def _find_near(self, squares: Tensor, share: float) -> None:
        """Keeps the flat indices (k,) of near pairs and replaces their squares.

        On the CPU these are all near pairs. Elsewhere their number cannot be known without waiting
        for the device, so they are the nearest columns of each row, as many as differences fit
        into memory.
        """
        height, width = squares.shape
        if squares.device.type == "cpu":
            near = squares < (share * self.rows.norms)[:, None]
            self.near = near.view(-1).nonzero().squeeze(1)
        else:
            row = self.rows.x.shape[1] * squares.element_size()
            most = DIFFERENCE_BYTES["other"] // max(1, row * height)
            columns = squares.topk(min(width, max(1, most)), largest=False, sorted=False).indices
            start = torch.arange(0, height * width, width, device=squares.device)
            self.near = (columns + start[:, None]).view(-1)
        flat = squares.view(-1)
        for part, _, _, differences in self._pieces():
            flat.index_copy_(0, part, torch.linalg.vecdot(differences, differences))

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Near pairs in pieces: flat indices, rows and columns (k,), differences (k, Dp)."""
        near, x, y = self.near, self.rows.x, self.columns.x
        if near is None or not near.numel():
            return
        budget = DIFFERENCE_BYTES["cpu" if x.device.type == "cpu" else "other"]
        for part in near.split(max(1, budget // (x.shape[1] * x.element_size()))):
            row = torch.div(part, y.shape[0], rounding_mode="floor")
            column = part - row * y.shape[0]
            yield part, row, column, x.index_select(0, row).sub_(y.index_select(0, column))

    def slopes(self, at_d: Tensor) -> Tensor:
        """What differences of rows (products of similarities) count with, given the gradient at
        ``d``, which is overwritten."""
        if self.distance == "euclidean":
            # No gradient at distance 0.
            return at_d.div_(self.d).masked_fill_(self.d == 0, 0)
        return at_d.mul_(2) if self.euclidean else at_d

    def gradients(
        self, at_d: Tensor, gx: Tensor | None, gy: Tensor | None, both: bool = False
    ) -> None:
        """Adds to the gradients at the rows and at the columns, given that at ``d``.

        ``at_d`` is overwritten. With ``both`` rows and columns are the same, and ``gx`` takes all.
        """
        at = self.slopes(at_d)
        self._add_near(at, gx, gx if both else gy)
        x, y = self.rows.x, self.columns.x
        if both:
            at, gy = at + at.T, None
        if self.euclidean:
            if gx is not None:
                gx.addcmul_(at.sum(1, keepdim=True), x)
            if gy is not None:
                gy.addcmul_(at.sum(0).unsqueeze(1), y)
        if gx is not None:
            gx.addmm_(at, y, alpha=-1)
        if gy is not None:
            gy.addmm_(at.T, x, alpha=-1)

    def _add_near(self, at: Tensor, gx: Tensor | None, gy: Tensor | None) -> None:
        """Near pairs, which are then left out: their products would cancel."""
        flat = at.view(-1)
        for part, row, column, differences in self._pieces():
            differences.mul_(flat.index_select(0, part).unsqueeze(1))
            flat.index_fill_(0, part, 0)
            if gx is not None:
                add_rows(gx, row, differences)
            if gy is not None:
                add_rows(gy, column, differences.neg_())
