"""Batches larger than memory: the loss sees all embeddings, the encoder a part of the images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class GradientCache:
    """Embeds a batch in chunks, and backpropagates chunk by chunk (arXiv 2101.06983).

    `embed` runs the encoder without a graph; the loss is taken once over the whole batch;
    `backward` runs the encoder again, one chunk at a time, and hands each chunk its part of the
    gradient. One more forward pass of the encoder buys a memory that depends on the chunk alone.

        cache = GradientCache(encoder, chunk_size=512)
        loss = fused_triplet_loss(cache.embed(images), labels)
        cache.backward(loss)

    The gradient is that of ``torch.cat([encoder(part) for part in images.split(chunk_size)])``, up
    to rounding: random numbers are drawn anew as they were (dropout), batch normalisation sees
    chunks, and running statistics are updated once.

    Args:
        encoder: module from images (B, ...) to embeddings (B, D).
        chunk_size: images that the encoder gets at a time, at least 1.
    """

    def __init__(self, encoder: nn.Module, chunk_size: int) -> None:
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
            raise ValueError(f"chunk_size must be an integer of at least 1, got {chunk_size!r}")
        self.encoder = encoder
        self.chunk_size = chunk_size
        self._chunks: tuple[Tensor, ...] = ()
        self._states: list[tuple[Tensor, Tensor | None]] = []
        self._embeddings: Tensor | None = None

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) of images (B, ...): a leaf that requires grad."""
        self._chunks, self._states = images.split(self.chunk_size), []
        parts = []
        for chunk in self._chunks:
            self._states.append(_random_state(images.device))
            parts.append(self.encoder(chunk))
        self._embeddings = torch.cat(parts).requires_grad_()
        return self._embeddings

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` (), a function of the last `embed`, to the parameters.

        Raises:
            RuntimeError: nothing was embedded since the last call.
        """
        if self._embeddings is None:
            raise RuntimeError("backward needs embeddings: call embed before each backward")
        loss.backward()
        gradient, self._embeddings = self._embeddings.grad, None
        if gradient is None:
            raise RuntimeError("loss must depend on the embeddings that embed returned last")
        after = _random_state(gradient.device)
        with _frozen_statistics(self.encoder):
            for chunk, part, state in zip(
                self._chunks, gradient.split(self.chunk_size), self._states, strict=True
            ):
                _set_random_state(gradient.device, state)
                self.encoder(chunk).backward(part)
        _set_random_state(gradient.device, after)
        self._chunks = ()


@contextmanager
def _frozen_statistics(encoder: nn.Module) -> Iterator[None]:
    """Batch normalisation keeps its running statistics as they are."""
    modules: list[Any] = list(encoder.modules())
    tracking = [m for m in modules if m.training and getattr(m, "track_running_stats", False)]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_device


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
