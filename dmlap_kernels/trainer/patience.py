"""When a projection is done, and with which weights: those that did best on validation classes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Patience:
    """Watches a metric during a projection and remembers the weights at its best.

        patience = Patience(3)
        if patience.runs_out(recall, encoder):   # after every evaluation
            patience.restore(encoder)            # the weights of the best one; begins anew
            projection.end_projection()

    Args:
        limit: evaluations in a row without a better value after which a projection ends, at least
            1.

    Attributes:
        best: highest value of this projection; minus infinity before the first.
        stale: evaluations since then.
        weights: ``state_dict()`` of the encoder at ``best``.
    """

    def __init__(self, limit: int) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"limit must be an integer of at least 1, got {limit!r}")
        self.limit = limit
        self._begin()

    def _begin(self) -> None:
        self.best, self.stale = float("-inf"), 0
        self.weights: dict[str, Any] = {}

    def runs_out(self, value: float, encoder: nn.Module) -> bool:
        """Take note of an evaluation (more is better); whether it was one too many without gain."""
        if value > self.best:
            self.best, self.stale = value, 0
            self.weights = {name: _copied(value) for name, value in encoder.state_dict().items()}
        else:
            self.stale += 1
        return self.stale >= self.limit

    @torch.no_grad()
    def restore(self, encoder: nn.Module) -> None:
        """Put the best weights of the projection back, if there was an evaluation; begin anew."""
        if self.weights:
            encoder.load_state_dict(self.weights)
        self._begin()

    def state(self) -> dict[str, Any]:
        """What `load` takes besides the weights, ready for JSON."""
        return {"best": None if self.best == float("-inf") else self.best, "stale": self.stale}

    def load(self, state: dict[str, Any], weights: dict[str, Any]) -> None:
        """Return to a saved `state` and ``weights``."""
        self.best = float("-inf") if state["best"] is None else state["best"]
        self.stale, self.weights = state["stale"], dict(weights)


def _copied(value: Any) -> Any:
    # What a module's get_extra_state returns need not be a tensor.
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
