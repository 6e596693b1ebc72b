"""`folder:PATH`: a folder of image files for each class."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dmlap_kernels.data.distortion import Distortion
from dmlap_kernels.data.files import (
    UNREADABLE,
    DataError,
    LeftOut,
    existing,
    image_files,
    subfolders,
    visible,
)
from dmlap_kernels.data.layouts import layout_error, unpacked
from dmlap_kernels.data.photos import ImageFiles
from dmlap_kernels.data.pictures import image_header, shown
from dmlap_kernels.data.splits import Dataset, Split, split_classes
from dmlap_kernels.data.unreadable import find_unreadable, unreadable_error
from dmlap_kernels.plurals import counted

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
    path: str | Path,
    *,
    image_size: int | None = None,
    seed: int = 0,
    test_share: float = 0.5,
    drop_unreadable: bool = False,
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
        drop_unreadable: leave out files that are no readable images, which otherwise are refused.
            Of images that stay in their files all are then decoded once to find them, where else
            the headers and the ends of files are looked at.

    Returns:
        Dataset of (1, S, S) images if every file is grey, else (3, S, S).

    Raises:
        FileNotFoundError: no such folder, or no classes or images in it.
        DataError: files are not readable images, all of which are named, or two folders are the
            same split.
    """
    path = existing(path, _PURPOSE)
    if not path.is_dir():
        raise NotADirectoryError(f"{_PURPOSE}: {unpacked(path)}")
    left_out = LeftOut(path, _PURPOSE)
    folders = _split_folders(path)
    if folders:
        for other in set(visible(path)) - set(folders.values()):
            left_out.add("beside the splits", other)
        parts = {name: _read_classes(folder, left_out) for name, folder in folders.items()}
    else:
        classes = _read_classes(path, left_out)
        if len(classes) < 4:
            raise layout_error(
                _PURPOSE,
                f"{shown(path)} has {counted(len(classes), 'class folder')}; a split into training "
                "and test classes needs at least four",
            )
        halves = split_classes(len(classes), test_share, seed)
        parts = {
            name: [classes[c] for c in half.tolist()]
            for name, half in zip(("train", "test"), halves, strict=True)
        }
    splits = _to_splits(path, parts, image_size, left_out if drop_unreadable else None)
    left_out.tell()
    return Dataset(
        "folder",
        splits["train"],
        splits["test"],
        splits.get("validation"),
        augment=AUGMENTATION,
        division=_division(folders, test_share, seed),
    )


def _division(folders: dict[str, Path], test_share: float, seed: int) -> str:
    if folders:
        *first, last = (shown(folders[name].name) for name in _SPLITS if name in folders)
        return f"as the folders {', '.join(first)} and {last} say"
    share = "half" if test_share == 0.5 else f"{test_share:.0%}"
    return (
        f"{share} of the classes, drawn at random with data_seed {seed} (--data-seed), are kept "
        "for the test; folders train and test decide it otherwise"
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
        raise layout_error(
            _PURPOSE,
            f"{shown(path)} holds {counted(len(classes), 'class folder')}; at least two are due",
        )
    return classes


def _to_splits(
    root: Path, parts: dict[str, list[_Class]], size: int | None, dropped: LeftOut | None
) -> dict[str, Split]:
    """The images of every part in one mode and one size.

    Files that are no readable images go to ``dropped``; None: they are refused.
    """
    files = [file for classes in parts.values() for _, found in classes for file in found]
    headers = []
    broken: dict[Path, DataError] = {}
    for file in files:
        try:
            headers.append(image_header(file, _PURPOSE))
        except DataError as error:
            broken[file] = error
    if not headers:
        raise unreadable_error(root, broken, len(files), _PURPOSE)
    mode = "L" if all(grey for _, grey in headers) else "RGB"
    if size is None:
        sizes = {size for size, _ in headers}
        width, height = next(iter(sizes))
        natural = len(sizes) == 1 and width == height <= DEFAULT_SIZE
        size = width if natural else DEFAULT_SIZE
    in_memory = len(headers) * len(mode) * size * size <= _IN_MEMORY
    if not in_memory:
        intact = [file for file in files if file not in broken]
        broken |= find_unreadable(intact, _PURPOSE, whole=dropped is not None, threads=_AT_ONCE)
    splits = {
        name: _split(root, classes, mode, size, in_memory, broken)
        for name, classes in parts.items()
    }
    if broken and dropped is None:
        raise unreadable_error(root, broken, len(files), _PURPOSE)
    for file in sorted(broken):
        assert dropped is not None
        dropped.add(UNREADABLE, file)
    return {name: split() for name, split in splits.items()}


def _split(
    root: Path,
    classes: Sequence[_Class],
    mode: str,
    size: int,
    in_memory: bool,
    broken: dict[Path, DataError],
) -> Callable[[], Split]:
    """Decode a part, if it is to be in memory; what makes a split of all that is not ``broken``,
    to which the files are added that turn out to be."""
    files = [
        (file, label)
        for label, (_, found) in enumerate(classes)
        for file in found
        if file not in broken
    ]
    names = [file.relative_to(root).as_posix() for file, _ in files]
    images: ImageFiles | Tensor
    images = ImageFiles.found(
        root, names, size, _PURPOSE, mode=mode, margin=1.0, resampling="BICUBIC"
    )
    labels = torch.tensor([label for _, label in files], dtype=torch.int64, device="cpu")
    if in_memory:
        bad: dict[int, DataError] = {}
        images = images.read(threads=_AT_ONCE, broken=bad)
        broken |= {files[row][0]: error for row, error in bad.items()}

    def make() -> Split:
        kept = torch.tensor([file not in broken for file, _ in files], device="cpu")
        there, renumbered = torch.unique(labels[kept], return_inverse=True)
        # A copy of all images only where some are left out.
        chosen = images if bool(kept.all()) else images[kept]
        ids = tuple(itertools.compress(names, kept.tolist())) if in_memory else None
        there_names = tuple(classes[c][0] for c in there.tolist())
        return Split(chosen, renumbered, there_names, ids=ids)

    return make
