"""The proximal side of alternating projections (arXiv 1907.07585)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dmlap_kernels.trainer import defaults


class Projection:
    """Ties weights to where they were when the projection began.

    The objective of projection k is ``loss + weight / 2 |theta - theta_(k-1)|^2``. Call `step`
    between ``backward()`` and ``optimizer.step()``, and `end_projection` when new representatives
    are drawn. In the first projection there is nothing to be tied to and `step` changes nothing::

        projection = Projection(model.parameters(), weight=2e-4)
        for step, batch in enumerate(batches):
            if step and step % 100 == 0:
                projection.end_projection()
            optimizer.zero_grad()
            loss(model(batch.images), batch.labels).backward()
            projection.step()
            optimizer.step()
            projection.pull()  # what the decoupled form does instead

    Adaptive optimizers scale that gradient with all others, so what a lambda does depends on the
    size of the gradients. Decoupled, as AdamW decays weights, it does not: `pull` after
    ``optimizer.step()`` moves the weights back towards where they were, by ``weight / over`` of the
    way each step; over a projection of ``over`` steps, by about ``weight`` of the way.

    Args:
        parameters: the weights; those that need no gradient are left out.
        weight: lambda, at least 0. Its default and that of the first projection follow the authors'
            later public code (arXiv 2209.09060).
        decay: what the weight is multiplied by with each projection after the second, 0 to 1.
        over: steps of a projection, at least 1, for the decoupled form; None: the term is in the
            gradient.

    Raises:
        ValueError: a weight, decay or number of steps out of range.

    Attributes:
        index: number of the projection, 0 for the first.
        centers: theta_(k-1), one tensor a parameter; empty during the first projection.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        weight: float = defaults.PROXIMAL_WEIGHT,
        decay: float = defaults.PROXIMAL_DECAY,
        over: int | None = None,
    ) -> None:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight must be finite and at least 0, got {weight!r}")
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must be from 0 to 1, got {decay!r}")
        if over is not None and not over >= 1:
            raise ValueError(f"over must be at least 1 step, or None, got {over!r}")
        self.parameters = [p for p in parameters if p.requires_grad]
        self.weight = weight
        self.decay = decay
        self.over = over
        self.index = 0
        self.centers: list[Tensor] = []

    @property
    def present_weight(self) -> float:
        """lambda of the present projection: ``weight * decay ** (index - 1)``, 0 in the first."""
        return self.weight * self.decay ** (self.index - 1) if self.centers else 0.0

    @torch.no_grad()
    def step(self) -> None:
        """Add ``present_weight * (theta - theta_(k-1))`` to the gradients."""
        weight = self.present_weight
        if not weight or self.over is not None:
            return
        pairs = [
            (p.grad, p, center)
            for p, center in zip(self.parameters, self.centers, strict=True)
            if p.grad is not None
        ]
        if pairs:
            gradients, parameters, centers = (list(side) for side in zip(*pairs, strict=True))
            moved = torch._foreach_sub(parameters, centers)
            torch._foreach_add_(gradients, moved, alpha=weight)

    @torch.no_grad()
    def pull(self, share: float = 1.0) -> None:
        """Move the weights ``share * present_weight / over`` of the way back to the centers.

        Args:
            share: of the learning rate's peak that this step had.
        """
        if self.over is None or not self.centers:
            return
        part = min(1.0, share * self.present_weight / self.over)
        if part:
            torch._foreach_lerp_(self.parameters, self.centers, part)

    @torch.no_grad()
    def end_projection(self) -> None:
        """Begin the next projection at the present weights."""
        if not self.centers:
            self.centers = [torch.empty_like(p) for p in self.parameters]
        torch._foreach_copy_(self.centers, self.parameters)
        self.index += 1

    def load(self, index: int, centers: list[Tensor]) -> None:
        """Return to a saved `index` and `centers`."""
        self.index = index
        # Copied into tensors of the parameters' own memory layout.
        self.centers = [
            torch.empty_like(p).copy_(center)
            for p, center in zip(self.parameters, centers, strict=bool(centers))
        ]
