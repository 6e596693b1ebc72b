"""A data set and a configuration that train in a moment."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dmlap_kernels.data import Dataset, Distortion, Split
from dmlap_kernels.trainer import TrainConfig

QUICK = {
    "data": "digits",
    "steps": 24,
    "classes_per_batch": 4,
    "samples_per_class": 3,
    "projection_steps": 5,
    "proximal_weight": 0.01,
    "hard_pool": 3,
    "hard_refresh": 7,
    "embedding_dim": 8,
    "eval_every": 10,
}

# Entries of a history that are no function of the configuration.
TIMES = ("seconds", "waited", "images_per_second")


def quick_config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{**QUICK, **changes})


def tiny_data(train_classes: int = 10, test_classes: int = 4, samples: int = 6) -> Dataset:
    """Noisy blobs: class-dependent 8 x 8 patterns."""
    random = torch.Generator().manual_seed(0)

    def split(classes: int) -> Split:
        labels = torch.arange(classes).repeat_interleave(samples)
        patterns = torch.rand(classes, 1, 8, 8, generator=random)
        noise = torch.rand(len(labels), 1, 8, 8, generator=random)
        images = (patterns[labels] * 0.7 + noise * 0.3).mul(255).to(torch.uint8)
        return Split(images, labels, tuple(f"c{i}" for i in range(classes)))

    return Dataset("tiny", split(train_classes), split(test_classes), augment=Distortion())


class TinyEncoder(nn.Module):
    """A linear map, which records the images it is given while training."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 8)
        self.seen: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.append(images.detach().clone())
        return nn.functional.normalize(self.linear(images.flatten(1)))


class DropoutEncoder(TinyEncoder):
    """Draws from torch's global generator in every step."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(super().forward(images), 0.2, self.training)
