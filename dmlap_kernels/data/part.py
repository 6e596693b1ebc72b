"""A part of a batch, drawn as it is drawn in the whole."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Part(NamedTuple):
    """Some images of a batch: those of one rank, say.

    Random numbers are drawn for the whole batch and those of the part are used, so that an image
    looks the same wherever it is made.

    Attributes:
        size: images of the whole batch.
        rows: (n,) int64, positions of the part's images in it.
    """

    size: int
    rows: Tensor
