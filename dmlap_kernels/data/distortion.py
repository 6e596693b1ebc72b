"""Random affine and elastic distortion of image batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels.data.part import Part


@dataclass(frozen=True)
class Distortion:
    """Draws one random distortion an image and resamples the batch with it.

    Attributes:
        rotation: largest angle in degrees.
        shear: largest shear.
        scale: range of the logarithm of the size, drawn for each axis.
        shift: largest translation as a fraction of the image side.
        elastic: standard deviation of the displacement field as a fraction of the side.
        knots: the displacement field is drawn on a ``knots`` x ``knots`` grid.
        padding: what lies beyond the border, as in `torch.nn.functional.grid_sample`; zeros suits
            ink on an empty ground, border suits photographs.
    """

    rotation: float = 10.0
    shear: float = 0.15
    scale: float = 0.1
    shift: float = 0.05
    elastic: float = 0.02
    knots: int = 4
    padding: str = "zeros"

    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator,
        size: int | None = None,
        part: Part | None = None,
    ) -> Tensor:
        """Distorted copies of ``images``.

        Args:
            images: (B, channels, height, width) floating point.
            generator: source of all randomness.
            size: side of the result; default: the size of ``images``.
            part: what ``images`` are of a larger batch, whose draws are theirs.

        Returns:
            (B, channels, height, width), or (B, channels, size, size).
        """
        height, width = (size, size) if size else images.shape[-2:]
        part = part or Part(len(images), torch.arange(len(images), device="cpu"))
        grid = self._grid(part, height, width, generator).to(images)
        return F.grid_sample(images, grid, padding_mode=self.padding, align_corners=False)

    def _grid(self, part: Part, height: int, width: int, generator: torch.Generator) -> Tensor:
        # [B, 6]: angle, shear, two scales, two shifts, each uniform in -1..1
        draw = torch.rand(part.size, 6, generator=generator, device="cpu")[part.rows] * 2 - 1
        angle = draw[:, 0] * math.radians(self.rotation)
        shear = draw[:, 1] * self.shear
        sx, sy = (draw[:, 2:4] * self.scale).exp().unbind(1)
        cos, sin = angle.cos(), angle.sin()
        theta = torch.stack(
            (
                torch.stack((sx * cos, sy * (shear * cos - sin), draw[:, 4] * 2 * self.shift), 1),
                torch.stack((sx * sin, sy * (shear * sin + cos), draw[:, 5] * 2 * self.shift), 1),
            ),
            dim=1,
        )
        grid = F.affine_grid(theta, [len(part.rows), 1, height, width], align_corners=False)
        # Coordinates run over -1..1, two units a side.
        knots = (part.size, 2, self.knots, self.knots)
        field = torch.randn(knots, generator=generator, device="cpu")[part.rows]
        field = F.interpolate(
            field * (2 * self.elastic), (height, width), mode="bicubic", align_corners=True
        )
        return grid + field.permute(0, 2, 3, 1)
