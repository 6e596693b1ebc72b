"""`folder:PATH`: a folder of image files for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dmlap_kernels.data.distortion import Distortion
from dmlap_kernels.data.files import existing, image_files, open_image, subfolders, to_tensor
from dmlap_kernels.data.splits import Dataset, Split, split_classes
from dmlap_kernels.extras import require

AUGMENTATION = Distortion(
    rotation=10, shear=0.1, scale=0.15, shift=0.06, elastic=0.0, padding="border"
)
DEFAULT_SIZE = 64

_PURPOSE = "data 'folder'"


def load_folder(
    path: str | Path, *, image_size: int | None = None, seed: int = 0, test_share: float = 0.5
) -> Dataset:
    """Read a folder of class folders.

    With ``PATH/train`` and ``PATH/test``, those are the splits. Otherwise the class folders lie in
    ``PATH`` and half of the classes, drawn with ``seed``, are the test split.

    Args:
        path: the folder.
        image_size: side to which images are resized (shorter side to scale, centre cropped).
            Default: 64, or the images' own size if all are squares of one size up to 64.
        seed: decides the split of the classes.
        test_share: share of the classes in the test split.

    Returns:
        Dataset of (1, S, S) images if every file is grey, else (3, S, S).

    Raises:
        FileNotFoundError: no such folder, or no classes or images in it.
        DataError: a file is not a readable image.
    """
    path = existing(path, _PURPOSE)
    if not path.is_dir():
        raise NotADirectoryError(f"{_PURPOSE}: {path} is a file; a folder of class folders is due")
    parts = [path / "train", path / "test"]
    given = [part.is_dir() for part in parts]
    if any(given) and not all(given):
        there, missing = (parts[0], parts[1]) if given[0] else (parts[1], parts[0])
        raise FileNotFoundError(f"{_PURPOSE}: {there} needs {missing} beside it")
    if all(given):
        found = [_read_classes(part) for part in parts]
        train, test = _to_splits(found, image_size)
    else:
        (both,) = _to_splits([_read_classes(path)], image_size)
        if both.num_classes < 4:
            raise FileNotFoundError(
                f"{_PURPOSE}: {path} has {both.num_classes} class folders; a split into training "
                "and test classes needs at least four"
            )
        train, test = map(both.select, split_classes(both.num_classes, test_share, seed))
    return Dataset("folder", train, test, augment=AUGMENTATION)


def _read_classes(path: Path) -> list[tuple[str, list[Any]]]:
    """Name and decoded images of each class folder in ``path``."""
    classes = []
    for folder in subfolders(path):
        files = image_files(folder)
        if not files:
            raise FileNotFoundError(f"{_PURPOSE}: {folder} holds no image files")
        classes.append((folder.name, [open_image(file, _PURPOSE) for file in files]))
    if len(classes) < 2:
        raise FileNotFoundError(
            f"{_PURPOSE}: {path} holds {len(classes)} class folders; at least two are due"
        )
    return classes


def _to_splits(parts: list[list[tuple[str, list[Any]]]], size: int | None) -> list[Split]:
    """Stack the images of every part in one mode and one size."""
    everything = [image for part in parts for _, images in part for image in images]
    mode = "L" if all(image.mode == "L" for image in everything) else "RGB"
    if size is None:
        sizes = {image.size for image in everything}
        width, height = next(iter(sizes))
        natural = len(sizes) == 1 and width == height <= DEFAULT_SIZE
        size = width if natural else DEFAULT_SIZE
    operations = require("PIL.ImageOps", purpose=_PURPOSE)
    splits = []
    for part in parts:
        images = [
            to_tensor(operations.fit(image.convert(mode), (size, size)))
            for _, members in part
            for image in members
        ]
        counts = torch.tensor([len(members) for _, members in part])
        labels = torch.arange(len(part)).repeat_interleave(counts)
        splits.append(Split(torch.stack(images), labels, tuple(name for name, _ in part)))
    return splits
