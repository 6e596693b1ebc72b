"""Reading images and archives; whatever is wrong with a file is said with its path."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlap_kernels.extras import require

IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
)


class DataError(ValueError):
    """A file of a data set is broken or holds something else than it should."""


def existing(path: str | Path, purpose: str) -> Path:
    """``path`` if there is something; else FileNotFoundError."""
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{purpose}: {path} does not exist")
    return path


def subfolders(path: Path) -> list[Path]:
    """Visible folders in ``path``, by name."""
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def image_files(path: Path) -> list[Path]:
    """Visible image files in ``path``, by name."""
    return sorted(
        p
        for p in path.iterdir()
        if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
    )


def open_image(path: Path, purpose: str) -> Any:
    """The decoded `PIL.Image.Image` in ``path``, mode L for grey images and RGB for others.

    Raises:
        DataError: the file is not a readable image.
    """
    pil = require("PIL.Image", purpose=purpose)
    try:
        with pil.open(path) as image:
            grey = image.mode in ("1", "L", "LA", "I", "I;16", "F")
            if image.mode in ("I", "I;16", "F"):
                raise DataError(
                    f"{purpose}: {path} has pixels of mode {image.mode}; save it with 8 bits a "
                    "channel"
                )
            return image.convert("L" if grey else "RGB")
    except (OSError, SyntaxError, ValueError, pil.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{purpose}: {path} is not a readable image: {error}") from error


def to_tensor(image: Any) -> Tensor:
    """(channels, height, width) uint8 of a PIL image."""
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)


def load_arrays(path: Path, names: Sequence[str], purpose: str) -> dict[str, np.ndarray]:
    """The named arrays of a ``.npz`` file.

    Raises:
        DataError: the file is broken or lacks an array.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if missing := [name for name in names if name not in archive.files]:
                raise DataError(
                    f"{purpose}: {path} lacks the arrays {', '.join(missing)}; it has "
                    f"{', '.join(archive.files)}"
                )
            return {name: archive[name] for name in names}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{purpose}: {path} is not a readable .npz file: {error}") from error
