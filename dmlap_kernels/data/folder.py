"""`folder:PATH`: a folder of image files for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dmlap_kernels.data.distortion import Distortion
from dmlap_kernels.data.files import (
    DataError,
    LeftOut,
    existing,
    image_files,
    subfolders,
    visible,
)
from dmlap_kernels.data.photos import ImageFiles
from dmlap_kernels.data.pictures import image_header, shown
from dmlap_kernels.data.splits import Dataset, Split, split_classes

AUGMENTATION = Distortion(
    rotation=10, shear=0.1, scale=0.15, shift=0.06, elastic=0.0, padding="border"
)
DEFAULT_SIZE = 64

_PURPOSE = "data 'folder'"

# What folders of splits are called, in letters of either case.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}

# Images of more bytes than this stay in their files until a batch asks for them.
_IN_MEMORY = 2**30
# Pictures are decoded at their full size, so not more than this many at once.
_AT_ONCE = 4

# A class: its name and its files.
_Class = tuple[str, list[Path]]


def load_folder(
    path: str | Path, *, image_size: int | None = None, seed: int = 0, test_share: float = 0.5
) -> Dataset:
    """Read a folder of class folders.

    With ``PATH/train`` and ``PATH/test``, those are the splits, and ``PATH/val``, if there is one,
    is the validation split; with ``PATH/train`` and ``PATH/val`` alone, the latter is the test
    split. The names may be in capitals or in full (``Training``, ``Validation``). The splits may
    share classes; classes of one name are then one class. Otherwise the class folders lie in
    ``PATH`` and half of the classes, drawn with ``seed``, are the test split.

    Every picture that Pillow reads counts, in the class folder or in folders below it. What is left
    out is told in one `DataWarning`; hidden files are left out without a word. Images of up to 1
    GiB together are kept in memory, more stay in their files.

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
        DataError: a file is not a readable image, or two folders are the same split.
    """
    path = existing(path, _PURPOSE)
    if not path.is_dir():
        raise NotADirectoryError(
            f"{_PURPOSE}: {shown(path)} is a file; a folder of class folders is due"
        )
    left_out = LeftOut(path, _PURPOSE)
    folders = _split_folders(path)
    if folders:
        for other in set(visible(path)) - set(folders.values()):
            left_out.add("beside the splits", other)
        parts = {name: _read_classes(folder, left_out) for name, folder in folders.items()}
    else:
        classes = _read_classes(path, left_out)
        if len(classes) < 4:
            raise FileNotFoundError(
                f"{_PURPOSE}: {shown(path)} has {len(classes)} class folders; a split into "
                "training and test classes needs at least four"
            )
        halves = split_classes(len(classes), test_share, seed)
        parts = {
            name: [classes[c] for c in half.tolist()]
            for name, half in zip(("train", "test"), halves, strict=True)
        }
    left_out.tell()
    splits = _to_splits(path, parts, image_size)
    return Dataset(
        "folder", splits["train"], splits["test"], splits.get("validation"), augment=AUGMENTATION
    )


def _split_folders(path: Path) -> dict[str, Path]:
    """The folders of train, test and validation; none if ``path`` holds the classes themselves.

    Raises:
        FileNotFoundError: train or what it is tested on is missing.
        DataError: two folders have the name of one split.
    """
    folders: dict[str, Path] = {}
    for folder in subfolders(path):
        for name, spellings in _SPLITS.items():
            if folder.name.casefold() not in spellings:
                continue
            if name in folders:
                raise DataError(
                    f"{_PURPOSE}: {shown(folders[name])} and {shown(folder)} are both the "
                    f"{name} split; one is due"
                )
            folders[name] = folder
    if len(folders) == 1 and not subfolders(*folders.values()):
        return {}  # a class that happens to have this name: trains are pictures, too
    if folders and "train" not in folders:
        there = folders.get("test", folders.get("validation"))
        raise FileNotFoundError(f"{_PURPOSE}: {shown(str(there))} needs {path / 'train'} beside it")
    if len(folders) == 1:
        raise FileNotFoundError(
            f"{_PURPOSE}: {shown(folders['train'])} needs {shown(path / 'test')} beside it"
        )
    if folders and "test" not in folders:
        folders["test"] = folders.pop("validation")
    return folders


def _read_classes(path: Path, left_out: LeftOut) -> list[_Class]:
    """Name and files of each class folder in ``path``."""
    classes: list[_Class] = []
    empty = []
    for entry in visible(path):
        if not entry.is_dir():
            left_out.add("beside the class folders", entry)
            continue
        files = image_files(entry, _PURPOSE, left_out)
        if not files:
            empty.append(shown(entry))
        classes.append((shown(entry.name), files))
    if empty:
        more = f" (and {len(empty) - 1} more such folders)" if len(empty) > 1 else ""
        raise FileNotFoundError(f"{_PURPOSE}: {empty[0]} holds no image files{more}")
    if len(classes) < 2:
        raise FileNotFoundError(
            f"{_PURPOSE}: {shown(path)} holds {len(classes)} class folders; at least two are due"
        )
    return classes


def _to_splits(root: Path, parts: dict[str, list[_Class]], size: int | None) -> dict[str, Split]:
    """The images of every part in one mode and one size."""
    headers = [
        image_header(file, _PURPOSE)
        for classes in parts.values()
        for _, files in classes
        for file in files
    ]
    mode = "L" if all(grey for _, grey in headers) else "RGB"
    if size is None:
        sizes = {size for size, _ in headers}
        width, height = next(iter(sizes))
        natural = len(sizes) == 1 and width == height <= DEFAULT_SIZE
        size = width if natural else DEFAULT_SIZE
    in_memory = len(headers) * len(mode) * size * size <= _IN_MEMORY
    return {name: _split(root, classes, mode, size, in_memory) for name, classes in parts.items()}


def _split(root: Path, classes: Sequence[_Class], mode: str, size: int, in_memory: bool) -> Split:
    names = [file.relative_to(root).as_posix() for _, files in classes for file in files]
    files = ImageFiles.found(
        root, names, size, _PURPOSE, mode=mode, margin=1.0, resampling="BICUBIC"
    )
    counts = torch.tensor([len(files) for _, files in classes], device="cpu")
    return Split(
        files.read(threads=_AT_ONCE) if in_memory else files,
        torch.arange(len(classes), device="cpu").repeat_interleave(counts),
        tuple(name for name, _ in classes),
    )
