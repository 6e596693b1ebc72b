"""Encoders: modules that turn images into embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (32, 64, 96, 128)


class ConvEncoder(nn.Module):
    """A small convolutional network for images of any size of at least 8 x 8.

    Four blocks of 3 x 3 convolution, batch normalisation, ReLU and 2 x 2 max pooling, then a linear
    layer over the remaining pixels. Parameters are kept in channels-last order, which is a third
    faster on CPUs at the default widths.

    Args:
        image_shape: (channels, height, width) of one image.
        embedding_dim: length of an embedding.
        widths: channels after each block.
        normalize: return embeddings of unit length.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        embedding_dim: int = 128,
        *,
        widths: tuple[int, ...] = WIDTHS,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        if min(height, width) < 8:
            raise ValueError(f"images must be at least 8 x 8 pixels, got {height} x {width}")
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim must be at least 1, got {embedding_dim}")
        blocks: list[nn.Module] = []
        for out_channels in widths:
            blocks += [
                nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
            channels, height, width = out_channels, -(-height // 2), -(-width // 2)
        self.blocks = nn.Sequential(*blocks)
        # Large images: pooled to 4 x 4, so that the head does not outgrow the network.
        self.pool = nn.AdaptiveAvgPool2d((min(height, 4), min(width, 4)))
        self.head = nn.Linear(channels * min(height, 4) * min(width, 4), embedding_dim)
        self.normalize = normalize
        self.blocks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (B, channels, height, width) as (B, embedding_dim)."""
        features = self.blocks(images.contiguous(memory_format=torch.channels_last))
        embeddings = self.head(self.pool(features).flatten(1))
        return F.normalize(embeddings) if self.normalize else embeddings
