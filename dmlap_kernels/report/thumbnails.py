"""Samples as small images of the page."""

from __future__ import annotations

import io
from typing import Any

import torch

from dmlap_kernels.data import Split
from dmlap_kernels.extras import require
from dmlap_kernels.report.markup import Html, picture

# Side of the largest image that the page holds as it is; the page shows about as many pixels.
_LARGEST = 128


def pixels(split: Split, index: int) -> Any:
    """(height, width) or (height, width, 3) uint8 array; other channels than 3: the first."""
    row = torch.tensor([index], device="cpu")
    image = split.batch(row)[0].clamp(0, 1).mul(255).round().to(torch.uint8)
    return (image.permute(1, 2, 0) if len(image) == 3 else image[0]).contiguous().numpy()


def thumbnail(split: Split, index: int, alt: str) -> Html:
    """The sample, which the page scales: as a PNG, or reduced to 128 pixels as a JPEG.

    A page of 156 photographs at their full size of 224 pixels had 17 MB, and has 1.6.
    """
    pil = require("PIL.Image", purpose="dmlap report")
    image = pil.fromarray(pixels(split, index))
    buffer = io.BytesIO()
    if max(image.size) <= _LARGEST:
        image.save(buffer, format="PNG", optimize=True)
        return picture(buffer.getvalue(), "png", alt, class_="sample coarse")
    image.thumbnail((_LARGEST, _LARGEST))
    image.save(buffer, format="JPEG", quality=90)
    return picture(buffer.getvalue(), "jpeg", alt, class_="sample")
