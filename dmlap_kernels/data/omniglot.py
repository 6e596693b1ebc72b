"""`omniglot:PATH`: handwritten characters of 50 alphabets (Lake, Salakhutdinov, Tenenbaum, 2015).

Background alphabets train, evaluation alphabets test: characters and alphabets are disjoint.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmlap_kernels.data.distortion import Distortion
from dmlap_kernels.data.files import (
    DataError,
    LeftOut,
    existing,
    image_files,
    load_arrays,
    subfolders,
    visible,
)
from dmlap_kernels.data.pictures import open_image, shown, to_tensor
from dmlap_kernels.data.splits import Dataset, Split
from dmlap_kernels.extras import require

ARCHIVE = "omniglot28.npz"
FOLDERS = ("images_background", "images_evaluation")
AUGMENTATION = Distortion(rotation=10, shear=0.15, scale=0.15, shift=0.06, elastic=0.02)

_PURPOSE = "data 'omniglot'"
_SIZE = 28


def load_omniglot(path: str | Path) -> Dataset:
    """Read Omniglot as (1, 28, 28) images, ink 255.

    Args:
        path: a ``.npz`` file (arrays images (N, 28, 28) uint8, labels, alphabet and split (N,), 0
            for background and 1 for evaluation), or a folder that holds ``omniglot28.npz`` or the
            official ``images_background/`` and ``images_evaluation/``, each
            ``ALPHABET/CHARACTER/*.png``. Drawings of the folders are box-filtered to 28 x 28.

    Raises:
        FileNotFoundError: the path, or a folder of the official layout, is missing.
        DataError: a file is broken.
    """
    path = existing(path, _PURPOSE)
    if path.is_file():
        train, test = _from_archive(path)
    elif all((path / name).is_dir() for name in FOLDERS):
        left_out = LeftOut(path, _PURPOSE)
        train, test = (_from_folder(path / name, left_out) for name in FOLDERS)
        left_out.tell()
    elif (path / ARCHIVE).is_file():
        train, test = _from_archive(path / ARCHIVE)
    else:
        missing = " and ".join(name for name in FOLDERS if not (path / name).is_dir())
        raise FileNotFoundError(f"{_PURPOSE}: {path} holds neither {ARCHIVE} nor {missing}")
    return Dataset("omniglot", train, test, augment=AUGMENTATION)


def _from_archive(path: Path) -> tuple[Split, Split]:
    arrays = load_arrays(path, ("images", "labels", "alphabet", "split"), _PURPOSE)
    images, rows = arrays["images"], len(arrays["images"])
    if images.dtype != np.uint8 or images.ndim != 3:
        raise DataError(
            f"{_PURPOSE}: images in {path} must be uint8 of shape (N, height, width), got "
            f"{images.dtype} of shape {images.shape}"
        )
    for name in ("labels", "alphabet", "split"):
        if arrays[name].shape != (rows,) or arrays[name].dtype.kind not in "iu":
            raise DataError(
                f"{_PURPOSE}: {name} in {path} must be integers of shape ({rows},), got "
                f"{arrays[name].dtype} of shape {arrays[name].shape}"
            )
    return _archive_split(arrays, 0, path), _archive_split(arrays, 1, path)


def _archive_split(arrays: dict[str, np.ndarray], number: int, path: Path) -> Split:
    rows = arrays["split"] == number
    if not rows.any():
        raise DataError(f"{_PURPOSE}: {path} has no drawings with split = {number}")
    classes, first, labels = np.unique(
        arrays["labels"][rows], return_index=True, return_inverse=True
    )
    return Split(
        torch.from_numpy(arrays["images"][rows])[:, None],
        torch.from_numpy(labels.astype(np.int64)),
        tuple(f"character {c}" for c in classes.tolist()),
        torch.from_numpy(arrays["alphabet"][rows][first].astype(np.int64)),
    )


def _from_folder(path: Path, left_out: LeftOut) -> Split:
    box = require("PIL.Image", purpose=_PURPOSE).Resampling.BOX
    images: list[Tensor] = []
    labels: list[int] = []
    names: list[str] = []
    groups: list[int] = []
    for folder in (path, *subfolders(path)):
        for entry in visible(folder):
            if not entry.is_dir():
                left_out.add("beside the folders of characters", entry)
    for group, alphabet in enumerate(subfolders(path)):
        for character in subfolders(alphabet):
            files = image_files(character, _PURPOSE, left_out)
            if not files:
                raise FileNotFoundError(f"{_PURPOSE}: {shown(character)} holds no image files")
            for file in files:
                image = open_image(file, _PURPOSE).convert("L").resize((_SIZE, _SIZE), box)
                images.append(255 - to_tensor(image))
            labels += [len(names)] * len(files)
            names.append(f"{shown(alphabet.name)}/{shown(character.name)}")
            groups.append(group)
    if not images:
        raise FileNotFoundError(f"{_PURPOSE}: {path} holds no ALPHABET/CHARACTER folders")
    return Split(
        torch.stack(images),
        torch.tensor(labels, device="cpu"),
        tuple(names),
        torch.tensor(groups, device="cpu"),
    )
