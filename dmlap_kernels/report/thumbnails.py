"""Samples as small images of the page."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

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


_SAMPLE = re.compile(r'src="data:image/(png|jpeg);base64,([^"]*)"([^>]* class="sample)')


def move_out(page: str, folder: Path, limit: int) -> str:
    """``page`` itself, or with its samples in files of ``folder`` if they take over ``limit``.

    Args:
        page: HTML with the samples that `thumbnail` made.
        folder: in the folder of the page; made if it is needed.
        limit: characters that all samples may take inside of the page.
    """
    if sum(len(found.group(2)) for found in _SAMPLE.finditer(page)) <= limit:
        return page
    folder.mkdir(exist_ok=True)

    def write(found: re.Match[str]) -> str:
        kind, encoded, rest = found.groups()
        content = base64.b64decode(encoded)
        # By their content: a sample that is shown twice is one file.
        name = f"{hashlib.sha256(content).hexdigest()[:20]}.{kind}"
        (folder / name).write_bytes(content)
        return f'src="{quote(folder.name)}/{name}"{rest}'

    return _SAMPLE.sub(write, page)
