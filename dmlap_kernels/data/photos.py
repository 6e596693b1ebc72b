"""Photographs that stay in their files until a batch asks for them, and the customary crops.

The crops are those of "A Metric Learning Reality Check" (arXiv 2003.08505) and of most of the
literature on these data sets: for the test, the shorter side scaled to 256 / 224 of the asked size
and the centre; for training, a random part of the area, in a random ratio of sides, mirrored half
of the time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels.data.files import open_image, to_tensor
from dmlap_kernels.extras import require

DEFAULT_SIZE = 224

# The shorter side of a photograph is scaled to this multiple of the side of the centre crop.
_MARGIN = 256 / 224
_TRIES = 10
_DRAWS = 4 * _TRIES + 1

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class RandomCrop:
    """Draws a part of each image, scales it to the size of the images and mirrors half of them.

    On images that stay in files, parts are cut out of the photograph at its full resolution.

    Attributes:
        area: smallest and largest share of the area that a part covers.
        ratio: largest ratio of the longer to the shorter side of a part; ratios are drawn evenly
            on a logarithmic scale.
        mirror: probability of a horizontal flip.
    """

    area: tuple[float, float] = (0.16, 1.0)
    ratio: float = 4 / 3
    mirror: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area must be two shares in ascending order, got {self.area}")
        if self.ratio < 1:
            raise ValueError(f"ratio must be at least 1, got {self.ratio}")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Random parts of floating-point ``images`` (B, channels, height, width), at their size."""
        height, width = images.shape[-2:]
        parts = []
        for image, draw in zip(images, self.draw(len(images), generator), strict=True):
            left, top, right, bottom = map(round, self.box(width, height, draw))
            part = image[None, :, top : max(bottom, top + 1), left : max(right, left + 1)]
            part = F.interpolate(part, (height, width), mode="bilinear", antialias=True)
            parts.append(part.flip(3) if self.mirrors(draw) else part)
        return torch.cat(parts) if parts else images

    def draw(self, count: int, generator: torch.Generator) -> list[list[float]]:
        """The random numbers, 0 to 1, that decide on ``count`` parts."""
        return torch.rand(count, _DRAWS, generator=generator, dtype=torch.float64).tolist()

    def box(self, width: int, height: int, draw: Sequence[float]) -> Box:
        """(left, top, right, bottom) of the part of a width x height image that ``draw`` names.

        The first of ten draws that fits into the image; if none does, as happens to images much
        longer than wide, the largest part in the centre whose ratio is allowed.
        """
        least, most = self.area
        for t in range(_TRIES):
            share, ratio, x, y = draw[4 * t : 4 * t + 4]
            area = width * height * (least + (most - least) * share)
            root = math.exp(math.log(self.ratio) * (ratio - 0.5))
            w, h = math.sqrt(area) * root, math.sqrt(area) / root
            if w <= width and h <= height:
                left, top = x * (width - w), y * (height - h)
                return left, top, left + w, top + h
        w, h = min(width, height * self.ratio), min(height, width * self.ratio)
        left, top = (width - w) / 2, (height - h) / 2
        return left, top, left + w, top + h

    def mirrors(self, draw: Sequence[float]) -> bool:
        return draw[-1] < self.mirror


@dataclass(frozen=True)
class ImageFiles:
    """The images of a `Split` as the files they lie in: a column of N colour images, unread.

    Indexing gives another one; `read` decodes.

    Attributes:
        root: folder that the names start from.
        names: paths below ``root``, N of them.
        sizes: bytes of each file.
        side: side of the images that `read` returns.
        purpose: what needs them, for messages, for example ``"data 'cub'"``.
    """

    root: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    side: int
    purpose: str

    @staticmethod
    def found(root: Path, names: Sequence[str], side: int, purpose: str) -> ImageFiles:
        """The files ``names`` below ``root``, which are looked up, not read.

        Raises:
            FileNotFoundError: one is missing.
        """
        sizes = []
        for name in names:
            try:
                sizes.append(os.stat(root / name).st_size)
            except OSError:
                raise FileNotFoundError(
                    f"{purpose}: the image {root / name} is listed but missing"
                ) from None
        return ImageFiles(root, tuple(names), tuple(sizes), side, purpose)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 3, side, side)."""
        return len(self), 3, self.side, self.side

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Tensor) -> ImageFiles:
        """The files at ``rows``: indices, or a mask (N,)."""
        if rows.dtype == torch.bool:
            rows = rows.nonzero().flatten()
        chosen = rows.tolist()
        names = tuple(self.names[row] for row in chosen)
        sizes = tuple(self.sizes[row] for row in chosen)
        return ImageFiles(self.root, names, sizes, self.side, self.purpose)

    def read(
        self, crop: RandomCrop | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Decode the files as uint8 (N, 3, side, side), all at once and on several threads.

        Args:
            crop: random parts of the photographs; default: their centres.
            generator: source of all randomness; needed with ``crop``.

        Raises:
            DataError: a file is not a readable image.
        """
        if not self.names:
            return torch.empty(self.shape, dtype=torch.uint8)
        if crop is None:
            draws: list[Any] = [None] * len(self)
        elif generator is None:
            raise ValueError("generator must be given with crop")
        else:
            draws = list(crop.draw(len(self), generator))
        # Looked up once and before any thread needs it.
        pil = require("PIL.Image", purpose=self.purpose)

        def decode(name: str, draw: list[float] | None) -> Tensor:
            image = open_image(self.root / name, self.purpose).convert("RGB")
            if crop is None or draw is None:
                return to_tensor(_centre(image, self.side, pil))
            width, height = image.size
            box = crop.box(width, height, draw)
            part = image.resize((self.side, self.side), pil.Resampling.BILINEAR, box=box)
            mirrored = pil.Transpose.FLIP_LEFT_RIGHT
            return to_tensor(part.transpose(mirrored) if crop.mirrors(draw) else part)

        # Pillow decodes and scales without the interpreter's lock.
        with ThreadPoolExecutor(min(len(self), os.cpu_count() or 1)) as pool:
            return torch.stack(list(pool.map(decode, self.names, draws)))


def _centre(image: Any, side: int, pil: Any) -> Any:
    """The centre crop of an image whose shorter side is scaled to a little more than ``side``."""
    visible = min(image.size) * side / round(side * _MARGIN)
    left, top = ((length - visible) / 2 for length in image.size)
    box = (left, top, left + visible, top + visible)
    return image.resize((side, side), pil.Resampling.BILINEAR, box=box)
