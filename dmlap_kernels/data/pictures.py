"""Decoding pictures: the one place where files become images, for every source.

What is decoded is what a viewer shows, in 8 bits a channel:

- turned upright as the EXIF orientation says;
- the first frame of an animation, the first page of a document;
- transparent parts over white, as paper is;
- 16 bits a channel scaled by 257, 12 bits of a TIFF by its own largest value. 32-bit integers and
  floats do not say what white is: values up to 1 (floats alone), else up to 255, else up to 65,535
  are taken as that much of white, and beyond that a file is refused;
- CMYK, YCbCr, LAB, palettes as RGB; black and white as grey.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlap_kernels.extras import require

_GREY = ("1", "L", "LA", "La", "I", "F")
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")

# Pillow opens these, and cannot decode them, or only by starting another program.
_NO_PICTURES = frozenset(("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"))

# Formats that begin with bytes of their own, by which a file of any name is known.
_BY_CONTENT = (
    *("AVIF", "BMP", "DDS", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "PSD", "QOI"),
    *("SGI", "TIFF", "WEBP"),
)

_ORIENTATION = 0x0112  # tags of EXIF and TIFF
_BITS = 258
_PHOTOMETRIC = 262


class DataError(ValueError):
    """A file of a data set is broken or holds something else than it should."""


def shown(path: str | Path) -> str:
    """``path`` for messages and names of classes: bytes that are no UTF-8 as ``\\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def picture_suffixes(purpose: str) -> frozenset[str]:
    """The endings, in small letters, of the files that this Pillow decodes."""
    pil = require("PIL.Image", purpose=purpose)
    pil.init()
    return frozenset(
        suffix
        for suffix, kind in pil.EXTENSION.items()
        if kind in pil.OPEN and kind not in _NO_PICTURES
    )


def is_picture(path: Path, purpose: str) -> bool:
    """Whether the content of a file, whatever its name, is a picture that Pillow knows."""
    pil = require("PIL.Image", purpose=purpose)
    pil.init()
    try:
        with pil.open(path, formats=[kind for kind in _BY_CONTENT if kind in pil.OPEN]):
            return True
    except pil.DecompressionBombError:
        return True
    except Exception:  # whatever a plugin makes of bytes that are not its own
        return False


def image_header(path: Path, purpose: str) -> tuple[tuple[int, int], bool]:
    """(width, height) as stored and whether the picture is grey, without decoding it.

    Raises:
        DataError: the file is not an image.
    """
    pil = require("PIL.Image", purpose=purpose)
    try:
        with pil.open(path) as image:
            return image.size, _is_grey(image)
    except Exception as error:
        raise _unreadable(path, purpose, error) from error


def open_image(path: Path, purpose: str, *, least: Callable[[int, int], int] | None = None) -> Any:
    """The decoded `PIL.Image.Image` in ``path``, mode L for grey images and RGB for others.

    Args:
        path: the file.
        purpose: what needs it, for messages.
        least: a JPEG may be decoded at half, a quarter or an eighth of its size, as long as both
            sides keep as many pixels as this says of the upright (width, height): it takes that
            much less time and memory. Default: at its own size.

    Raises:
        DataError: the file is not a readable image.
    """
    pil = require("PIL.Image", purpose=purpose)
    try:
        with pil.open(path) as image:
            if least is not None and image.format == "JPEG":
                lying = (_orientation(image) or 0) >= 5
                side = least(*(image.size[::-1] if lying else image.size))
                image.draft(None, (side, side))
            step = _steps(image)
            image.load()
            key = image.info.get("transparency")
            if step > 1 and isinstance(key, int) and key * step <= 255:
                image.info["transparency"] = key * step  # Pillow has scaled the pixels alone
            turn = _turn(image, pil)
            result = _eight_bits(image, pil)
            return result if turn is None else result.transpose(turn)
    # What a broken byte leads to is up to the reader: any kind of exception.
    except Exception as error:
        raise _unreadable(path, purpose, error) from error


def to_tensor(image: Any) -> Tensor:
    """(channels, height, width) uint8 of a PIL image."""
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)


def _unreadable(path: Path, purpose: str, error: Exception) -> DataError:
    why = str(error) or type(error).__name__
    return DataError(f"{purpose}: {shown(path)} is not a readable image: {why}")


def _is_grey(image: Any) -> bool:
    return image.mode in _GREY or image.mode.startswith("I;")


def _steps(image: Any) -> int:
    """How far apart the grey values of a PNG of 1, 2 or 4 bits are once it is loaded; else 1."""
    if image.format != "PNG" or not image.tile:
        return 1
    return {"1": 255, "L;2": 85, "L;4": 17}.get(str(image.tile[0][3]), 1)


def _turn(image: Any, pil: Any) -> Any:
    """What turns a loaded image upright: an operation of its ``transpose``, or None."""
    flips = pil.Transpose
    return {
        2: flips.FLIP_LEFT_RIGHT,
        3: flips.ROTATE_180,
        4: flips.FLIP_TOP_BOTTOM,
        5: flips.TRANSPOSE,
        6: flips.ROTATE_270,
        7: flips.TRANSVERSE,
        8: flips.ROTATE_90,
    }.get(_orientation(image) or 0)


def _orientation(image: Any) -> int | None:
    """The EXIF orientation, 5 to 8 of images that lie on a side; None if there is none."""
    try:
        found = image.getexif().get(_ORIENTATION)
    except Exception:  # a picture whose EXIF is broken is still one
        return None
    return found if isinstance(found, int) else None


def _eight_bits(image: Any, pil: Any) -> Any:
    """``image`` in mode L or RGB."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return pil.fromarray(_scaled(image))
    mode = "L" if _is_grey(image) else "RGB"
    if image.mode == "La":
        image = image.convert("LA")
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    if image.mode in _ALPHA or "transparency" in image.info or palette.endswith("A"):
        image = image.convert("RGBA")
        image = pil.alpha_composite(pil.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _scaled(image: Any) -> np.ndarray:
    """Grey values of more than 8 bits as uint8 (height, width)."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    white = 0
    if image.mode.startswith("I;") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = tags.get(_BITS, (16,))[0]
        white = 2 ** min(bits, 16) - 1
    else:
        least, most = float(values.min()), float(values.max())
        if not 0 <= least <= most <= 65535:
            raise ValueError(
                f"its pixels go from {least:g} to {most:g}; save it with 8 or 16 bits a channel, "
                "or with floats from 0 to 1"
            )
        scales = (1, 255, 65535) if image.mode == "F" else (255, 65535)
        white = next(scale for scale in scales if most <= scale)
    grey = (values * np.float32(255 / white)).clip(0, 255).round().astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # black is the largest value, which Pillow leaves to its users
        grey = 255 - grey
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return grey
