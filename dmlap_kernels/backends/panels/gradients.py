"""The gradients of a call at its rows, added up panel by panel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.terms import add_rows
from dmlap_kernels.backends.panels.block import Block
from dmlap_kernels.backends.panels.panel import Panel


class Gradients:
    """The gradients at packed rows, added up panel by panel; None where they are not wanted."""

    def __init__(self, sides: Sides) -> None:
        self.sides = sides
        self._made: tuple[Tensor | None, Tensor | None] | None = None

    @property
    def x(self) -> Tensor | None:
        return self._of(torch.zeros_like)[0]

    @property
    def y(self) -> Tensor | None:
        return self._of(torch.zeros_like)[1]

    def _of(self, make: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, Tensor | None]:
        if self._made is None:
            sides = self.sides
            x = make(sides.x) if sides.x_grad else None
            self._made = x, make(sides.y) if sides.y_grad and not sides.self_case else None
        return self._made

    @property
    def of_columns(self) -> Tensor | None:
        """Where the columns' part goes."""
        return self.x if self.sides.self_case else self.y

    def add(self, panel: Panel, at_d: Tensor) -> None:
        """``at_d`` (b, N), which is overwritten, is the gradient at the distances of a panel."""
        if not self.sides.columns:
            return
        single = 0 < len(at_d) == self.sides.anchors
        # A single panel writes what others would add to.
        first = single and self._made is None
        gx = self._of(torch.empty_like if first else torch.zeros_like)[0]
        gx = None if gx is None else gx[panel.at]
        both = single and self.sides.self_case
        panel.gradients(at_d, gx, self.of_columns, both, first)

    def add_block(self, block: Block, columns: Tensor, at_d: Tensor) -> None:
        """The same of a block whose rows are ``columns`` (k,) too."""
        if self.sides.columns and (to := self.of_columns) is not None:
            own = torch.zeros_like(block.rows.x)
            block.gradients(at_d, own, to)
            add_rows(to, columns, own)
