"""The precision in which the encoder trains: autocast, and the scale of float16 gradients."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class MixedPrecision:
    """What a training step does for ``amp``; nothing without it.

    The encoder runs under autocast, its embeddings come out in float32 for the loss, and gradients
    of float16 are scaled, so that small ones do not vanish (arXiv 1710.03740).

    Args:
        amp: ``"bf16"``, ``"fp16"`` or None.
        device: of the encoder.
    """

    def __init__(self, amp: str | None, device: torch.device) -> None:
        self.dtype = None if amp is None else DTYPES[amp]
        self._device = device.type
        self.scaler = torch.amp.GradScaler(self._device, enabled=amp == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device, self.dtype, enabled=self.dtype is not None)

    def prepare(self, optimizer: torch.optim.Optimizer) -> None:
        """After backward: gradients at their own scale, for whatever adds to them."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step, unless gradients overflowed; the scale of the next."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def scaled(self, loss: Tensor) -> Tensor:
        return self.scaler.scale(loss)

    def state(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        if state:
            self.scaler.load_state_dict(state)
