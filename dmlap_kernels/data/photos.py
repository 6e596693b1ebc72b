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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels.data.part import Part
from dmlap_kernels.data.pictures import DataError, open_image, shown, to_tensor
from dmlap_kernels.extras import require

DEFAULT_SIZE = 224

# The shorter side of a photograph is scaled to this multiple of the side of the centre crop.
_MARGIN = 256 / 224
# A JPEG is not decoded at its full size where a part keeps this multiple of the pixels that it is
# scaled to, as in Pillow's own thumbnails; files of fewer bytes are not worth the trouble.
_GAP = 2.0
_LARGE_FILE = 2**16
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

    def __call__(
        self, images: Tensor, generator: torch.Generator, part: Part | None = None
    ) -> Tensor:
        """Random parts of floating-point ``images`` (B, channels, height, width), at their size.

        With ``part``, they are those of a larger batch.
        """
        height, width = images.shape[-2:]
        parts = []
        draws = self.draw(len(images), generator, part)
        for image, draw in zip(images, draws, strict=True):
            left, top, right, bottom = map(round, self.box(width, height, draw))
            cut = image[None, :, top : max(bottom, top + 1), left : max(right, left + 1)]
            cut = F.interpolate(cut, (height, width), mode="bilinear", antialias=True)
            parts.append(cut.flip(3) if self.mirrors(draw) else cut)
        return torch.cat(parts) if parts else images

    def draw(
        self, count: int, generator: torch.Generator, part: Part | None = None
    ) -> list[list[float]]:
        """The random numbers, 0 to 1, that decide on ``count`` images, or on those of ``part``."""
        size = count if part is None else part.size
        numbers = torch.rand(size, _DRAWS, generator=generator, dtype=torch.float64, device="cpu")
        return (numbers if part is None else numbers[part.rows]).tolist()

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
    """The images of a `Split` as the files they lie in: a column of N images, unread.

    Indexing gives another one; `read` decodes.

    Attributes:
        root: folder that the names start from.
        names: paths below ``root``, N of them.
        sizes: bytes of each file.
        side: side of the images that `read` returns.
        purpose: what needs them, for messages, for example ``"data 'cub'"``.
        mode: ``"RGB"``, or ``"L"`` for grey images of one channel.
        margin: the shorter side is scaled to this multiple of ``side`` before the centre is cut
            out; 1 leaves nothing of it out.
        resampling: Pillow's name of the filter that scales images to their centre crops.
    """

    root: Path
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    side: int
    purpose: str
    mode: str = "RGB"
    margin: float = _MARGIN
    resampling: str = "BILINEAR"

    @staticmethod
    def found(
        root: Path, names: Sequence[str], side: int, purpose: str, **options: Any
    ) -> ImageFiles:
        """The files ``names`` below ``root``, which are looked up, not read.

        ``options`` are the attributes ``mode``, ``margin`` and ``resampling``.

        Raises:
            FileNotFoundError: one is missing.
        """
        sizes, missing = [], []
        for name in names:
            try:
                sizes.append(os.stat(root / name).st_size)
            except (OSError, ValueError):  # a name that no file can have, with a null byte
                missing.append(shown(root / name))
        if missing:
            more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
            raise FileNotFoundError(
                f"{purpose}: the image {missing[0]} is listed but missing{more}"
            )
        return ImageFiles(root, tuple(names), tuple(sizes), side, purpose, **options)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 3, side, side), or (N, 1, side, side) of grey images."""
        return len(self), len(self.mode), self.side, self.side

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Tensor) -> ImageFiles:
        """The files at ``rows``: indices, or a mask (N,)."""
        if rows.dtype == torch.bool:
            rows = rows.nonzero().flatten()
        chosen = rows.tolist()
        names = tuple(self.names[row] for row in chosen)
        sizes = tuple(self.sizes[row] for row in chosen)
        return replace(self, names=names, sizes=sizes)

    def read(
        self,
        crop: RandomCrop | None = None,
        generator: torch.Generator | None = None,
        *,
        part: Part | None = None,
        threads: int | None = None,
        broken: dict[int, DataError] | None = None,
    ) -> Tensor:
        """Decode the files as uint8 tensor of this `shape`.

        Each thread holds one decoded photograph, and gives it up for the image that is cut out.

        Args:
            crop: random parts of the photographs; default: their centres.
            generator: source of all randomness; needed with ``crop``.
            part: what these images are of a larger batch, whose draws are theirs.
            threads: how many photographs are decoded at once; default: as many as there are cores.
            broken: takes the errors of the files that are no readable images, by their row, which
                holds anything then; default: the first is raised.

        Raises:
            DataError: a file is not a readable image.
        """
        if not self.names:
            return torch.empty(self.shape, dtype=torch.uint8, device="cpu")
        if crop is None:
            draws: list[Any] = [None] * len(self)
        elif generator is None:
            raise ValueError("generator must be given with crop")
        else:
            draws = list(crop.draw(len(self), generator, part))
        # Looked up once and before any thread needs it.
        pil = require("PIL.Image", purpose=self.purpose)

        def decode(row: int) -> Tensor:
            draw = draws[row]

            def box(width: int, height: int) -> Box:
                return (
                    crop.box(width, height, draw) if crop and draw else self._centre(width, height)
                )

            def least(width: int, height: int) -> int:
                left, top, right, bottom = box(width, height)
                seen = min(right - left, bottom - top) / min(width, height)
                return math.ceil(_GAP * self.side / seen)

            options = {"least": least} if self.sizes[row] > _LARGE_FILE else {}
            try:
                image = open_image(self.root / self.names[row], self.purpose, **options)
            except DataError as error:
                if broken is None:
                    raise
                broken[row] = error
                return images[row]
            image = image.convert(self.mode)
            filter = pil.Resampling["BILINEAR" if draw else self.resampling]
            image = image.resize((self.side, self.side), filter, box=box(*image.size))
            if crop and draw and crop.mirrors(draw):
                image = image.transpose(pil.Transpose.FLIP_LEFT_RIGHT)
            return to_tensor(image)

        images = torch.empty(self.shape, dtype=torch.uint8, device="cpu")
        workers = min(len(self), threads or os.cpu_count() or 1)
        if workers == 1:
            for row in range(len(self)):
                images[row] = decode(row)
            return images
        # Pillow decodes and scales without the interpreter's lock.
        with ThreadPoolExecutor(workers) as pool:
            try:
                for row, image in enumerate(pool.map(decode, range(len(self)))):
                    images[row] = image
            except BaseException:
                pool.shutdown(cancel_futures=True)  # of many, the rest is not worth a wait
                raise
        return images

    def _centre(self, width: int, height: int) -> Box:
        """The centre crop of an image whose shorter side is scaled to ``margin * side``."""
        visible = min(width, height) * self.side / round(self.side * self.margin)
        left, top = (width - visible) / 2, (height - visible) / 2
        return left, top, left + visible, top + visible
