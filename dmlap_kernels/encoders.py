"""Encoders: modules that turn images into embeddings."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlap_kernels.extras import require

WIDTHS = (32, 64, 96, 128)
EMBEDDING_DIM = 128

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
        embedding_dim: int = EMBEDDING_DIM,
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


class TimmEncoder(nn.Module):
    """A network of the timm library with a linear layer in place of its classifier.

    Images are normalised inside, so it takes what every encoder takes: values from 0 to 1. Grey
    images are given to it as three equal channels.

    Args:
        name: a model of `timm.list_models`.
        embedding_dim: length of an embedding.
        pretrained: start from the weights that timm knows for ``name``, which it downloads unless
            it has them already.
        freeze_batch_norm: batch normalisation keeps its statistics, scales and shifts.
        normalize: return embeddings of unit length.
        backbone: a module from images to features (B, F), with ``num_features`` = F, to be used
            instead of the model called ``name``.

    Raises:
        MissingExtra: timm is not installed, or does not import.
        ValueError: timm knows no such model, or no weights of it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str = "resnet50",
        embedding_dim: int = EMBEDDING_DIM,
        *,
        pretrained: bool = False,
        freeze_batch_norm: bool = False,
        normalize: bool = True,
        backbone: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim must be at least 1, got {embedding_dim}")
        self.backbone = _timm_model(name, pretrained) if backbone is None else backbone
        # What the weights were trained with, where timm says so.
        expected = getattr(self.backbone, "pretrained_cfg", None) or {}
        for key, usual in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            value = torch.tensor(expected.get(key, usual)).view(3, 1, 1)
            self.register_buffer(key, value, persistent=False)
        # In some models the layers behind the pooling change the number of features.
        features: Any = getattr(self.backbone, "head_hidden_size", None)
        features = features or self.backbone.num_features
        self.head = nn.Linear(int(features), embedding_dim)
        self.normalize = normalize
        self.frozen = _batch_norms(self.backbone) if freeze_batch_norm else []
        for norm in self.frozen:
            norm.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> TimmEncoder:
        """As in `torch.nn.Module`; frozen batch normalisation stays in evaluation mode."""
        super().train(mode)
        for norm in self.frozen:
            norm.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (B, 1 or 3, height, width) as (B, embedding_dim)."""
        images = images.expand(-1, 3, -1, -1)
        embeddings = self.head(self.backbone((images - self.mean) / self.std))
        return F.normalize(embeddings) if self.normalize else embeddings


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _timm_model(name: str, pretrained: bool) -> nn.Module:
    purpose = f"encoder 'timm:{name}'"
    timm = require("timm", purpose=purpose, extra="vision")
    if not timm.is_model(name):
        raise ValueError(f"encoder must name a model of timm.list_models(), got {name!r}")
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0)
    # Whatever the download, the file or the model itself runs into.
    except Exception as error:
        what = "with its pretrained weights " if pretrained else ""
        raise ValueError(f"{purpose} cannot be made {what}by timm: {error}") from error
