"""How often the constraints of each training class were violated, over the steps of a run."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Windows of equal length that cover the steps so far: when they are used up, each two become one.
WINDOWS = 48
# Distances held at a time.
_PAIRS = 2**22


class ClassViolations:
    """Counts of violated constraints per class, in windows of steps.

    A sample's constraint is violated when something of another class is at least as near to it as
    the farthest of its own class, among the representatives of the batch; in batches without
    representatives, among the other samples. It asks for an order alone, no margin, so that it
    means the same for every loss.

    Args:
        num_classes: C.
        device: of the embeddings.
        distance, normalize: as `nearest` takes them.

    Attributes:
        length: steps of a window, a power of two.
        counts: (2, WINDOWS, C) int32: violated constraints, and all.
    """

    def __init__(
        self,
        num_classes: int,
        device: torch.device | str = "cpu",
        *,
        distance: str = "euclidean",
        normalize: bool = False,
        **_: Any,
    ) -> None:
        self._directions = normalize or distance == "cosine"
        self.length = 1
        self.counts = torch.zeros(2, WINDOWS, num_classes, dtype=torch.int32, device=device)

    @torch.no_grad()
    def record(
        self, step: int, embeddings: Tensor, labels: Tensor, representatives: int = 0
    ) -> None:
        """Count the batch of ``step`` (from 0), without waiting for the device.

        Args:
            embeddings: (B, D).
            labels: (B,) int64.
            representatives: how many rows lead the batch as representatives.
        """
        x = embeddings.detach().float()
        if self._directions:
            x = F.normalize(x, dim=1)
        rows = x[representatives:], labels[representatives:]
        others = (x[:representatives], labels[:representatives]) if representatives else rows
        violated, known = _violated(*rows, *others, itself=not representatives)
        window = self._window(step)
        for row, flags in enumerate((violated, known)):
            self.counts[row, window].index_add_(0, rows[1], flags.int())

    def _window(self, step: int) -> int:
        while step >= WINDOWS * self.length:
            merged = self.counts.unflatten(1, (-1, 2)).sum(2, dtype=torch.int32)
            self.counts = F.pad(merged, (0, 0, 0, WINDOWS // 2))
            self.length *= 2
        return step // self.length

    def tensors(self) -> dict[str, Tensor]:
        """What `load` takes, for a checkpoint."""
        return {"counts": self.counts, "length": torch.tensor(self.length, device="cpu")}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Return to saved `tensors`; without any, as of an older version, nothing was counted."""
        if tensors:
            self.counts = tensors["counts"].to(self.counts.device)
            self.length = int(tensors["length"])


def shares(counts: Tensor) -> Tensor:
    """Violated share of each class in each window, (windows, C); nan where nothing was counted.

    Windows at the end that no step has reached are left out.
    """
    violated, total = counts.cpu().double()
    reached = total.sum(1).nonzero()
    last = int(reached.max()) + 1 if len(reached) else 0
    return (violated / total.masked_fill(total == 0, math.nan))[:last]


def _violated(
    x: Tensor, labels: Tensor, y: Tensor, y_labels: Tensor, itself: bool
) -> tuple[Tensor, Tensor]:
    """Which rows of ``x`` are violated, and which have something of either kind, (B,) bool."""
    parts = []
    size = max(1, _PAIRS // max(1, len(y)))
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        distances = torch.cdist(x[rows], y)
        same = labels[rows, None] == y_labels
        positive = same
        if itself:
            at = torch.arange(start, start + len(distances), device=x.device)
            positive = same & (at[:, None] != torch.arange(len(y), device=x.device))
        farthest = distances.masked_fill(~positive, -math.inf).amax(1)
        nearest = distances.masked_fill(same, math.inf).amin(1)
        parts.append((nearest <= farthest, farthest.isfinite() & nearest.isfinite()))
    violated, known = (torch.cat(each) for each in zip(*parts, strict=True))
    return violated & known, known
