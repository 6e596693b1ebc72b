"""Positive pairs by other means than equal labels: a matrix, or a rule for blocks of labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor], Tensor]


class Match:
    """Which pairs (B, N) are positive, a block of anchors at a time.

    Args:
        matrix: (B, N) bool; or None, and instead:
        rule: takes the labels (b, ...) of some anchors and (n, ...) of some references, and returns
            (b, n) bool.
        rows, columns: labels (B, ...) and (N, ...) that a rule sees.
    """

    def __init__(
        self,
        matrix: Tensor | None,
        rule: Rule | None = None,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
        swapped: bool = False,
    ) -> None:
        self._matrix, self._rule, self._rows, self._columns = matrix, rule, rows, columns
        self._swapped = swapped

    def to(self, device: Any) -> Match:
        """The same on a device."""
        tensors = (self._matrix, self._rows, self._columns)
        matrix, rows, columns = (None if t is None else t.to(device) for t in tensors)
        return Match(matrix, self._rule, rows, columns, self._swapped)

    def transposed(self) -> Match:
        """Of anchors and references exchanged."""
        if self._matrix is not None:
            return Match(self._matrix.T)
        return Match(None, self._rule, self._rows, self._columns, not self._swapped)

    def block(self, at: slice, own: Tensor | None = None) -> Tensor:
        """(b, N) bool of some anchors, in ``own`` or a new tensor."""
        if self._matrix is not None:
            found = self._matrix[at]
            own = (
                torch.empty_like(found, memory_format=torch.contiguous_format)
                if own is None
                else own
            )
            return own.copy_(found)
        assert self._rows is not None and self._columns is not None
        rows, columns = self._rows, self._columns
        rows, columns = (rows, columns[at]) if self._swapped else (rows[at], columns)
        shape = (len(columns), len(rows)) if self._swapped else (len(rows), len(columns))
        if own is None:
            # Made before the tensors of the rule, so that these leave no holes below it.
            own = torch.empty(shape, dtype=torch.bool, device=rows.device)
        if 0 in shape:
            return own
        found = self._ruled(rows, columns)
        return own.copy_(found.T if self._swapped else found)

    def _ruled(self, rows: Tensor, columns: Tensor) -> Tensor:
        assert self._rule is not None
        shape = len(rows), len(columns)
        found: Any = self._rule(rows, columns)
        if not isinstance(found, Tensor) or found.dtype != torch.bool:
            what = found.dtype if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(f"match must return a bool tensor, got {what}")
        if found.shape != shape or found.device != rows.device:
            raise ValueError(
                f"match must return {shape} on {rows.device} for labels {tuple(rows.shape)} and "
                f"{tuple(columns.shape)}, got {tuple(found.shape)} on {found.device}"
            )
        return found
