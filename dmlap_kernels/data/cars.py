"""`cars:PATH`: Cars196, 196 models of cars (Krause et al., 2013), in either of its two layouts.

======================  ==================================================================
as first published      ``cars_annos.mat`` and ``car_ims/``
as it can be had today  ``cars_train/``, ``cars_test/`` and, beside them or in ``devkit/``,
                        ``cars_train_annos.mat``, ``cars_test_annos_withlabels.mat`` and,
                        for the names of the models, ``cars_meta.mat``
======================  ==================================================================

The photographs are the same. Classes 1 to 98 train and the others test, each with all of its
photographs: the halves that the folders of the second layout are named for share all classes and
are not those of metric learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmlap_kernels.data.files import DataError, existing
from dmlap_kernels.data.layouts import folder_hint
from dmlap_kernels.data.photo_sets import Entry, halves
from dmlap_kernels.data.photos import DEFAULT_SIZE
from dmlap_kernels.data.pictures import shown
from dmlap_kernels.data.splits import Dataset
from dmlap_kernels.extras import require

_PURPOSE = "data 'cars'"
_WHOLE = "cars_annos.mat"
_IMAGES = "car_ims"
_NAMES = "cars_meta.mat"
# Each list with the folder of its photographs.
_PARTS = {
    "cars_train_annos.mat": "cars_train",
    "cars_test_annos_withlabels.mat": "cars_test",
}
# Folders of the archive, of its lists, and of what mirrors pack them into.
_ROOTS = ("", "cars196", "stanford_cars", "stanford-cars", "car_data")
_LISTS = ("", "devkit", "car_devkit/devkit", "car_devkit")


def load_cars(path: str | Path, image_size: int = DEFAULT_SIZE) -> Dataset:
    """Read Cars196: ``cars_annos.mat`` and ``car_ims/``, or ``cars_train/``, ``cars_test/`` and
    their lists.

    Args:
        path: the folder that holds them, or the one in which that folder is called ``cars196`` or
            ``stanford_cars``.
        image_size: side of the images.

    Raises:
        FileNotFoundError: a list or an image is missing.
        DataError: a list is broken.
        MissingExtra: scipy is not installed.
    """
    path = existing(path, _PURPOSE)
    roots = [path / name for name in _ROOTS]
    for root in roots:
        # The first list may lie beside the photographs of the second layout, of which it has none.
        if (root / _WHOLE).is_file() and ((root / _IMAGES).is_dir() or not _list_of(root, *_PARTS)):
            return halves("cars", root, _first_layout(root / _WHOLE), image_size, _PURPOSE)
    for root in roots:
        if any((root / folder).is_dir() for folder in _PARTS.values()) or _list_of(root, *_PARTS):
            return halves("cars", root, _second_layout(root), image_size, _PURPOSE)
    raise FileNotFoundError(
        f"{_PURPOSE}: neither {shown(path / _WHOLE)} nor {shown(path / 'cars196' / _WHOLE)} is a "
        "file; a folder in the official layout is due, with that list, or with cars_train, "
        f"cars_test and theirs{folder_hint(path)}"
    )


def _first_layout(file: Path) -> list[Entry]:
    content, rows = _annotations(file, "relative_im_path")
    titles = _titles(content)
    return [(number, _title(titles, number), image) for number, image in rows]


def _second_layout(root: Path) -> list[Entry]:
    found = {name: _list_of(root, name) for name in _PARTS}
    if missing := [name for name, file in found.items() if file is None]:
        raise FileNotFoundError(
            f"{_PURPOSE}: {' and '.join(missing)} must lie in {shown(root)} or its devkit; all "
            "photographs and their classes are due, of which metric learning takes its own halves"
        )
    names = _list_of(root, _NAMES)
    titles = [] if names is None else _titles(_content(names, "class_names"))
    entries: list[Entry] = []
    for name, file in found.items():
        assert file is not None
        folder = _PARTS[name]
        if (root / folder / folder).is_dir():  # as mirrors unpack it
            folder = f"{folder}/{folder}"
        rows = _annotations(file, "fname")[1]
        entries += [(number, _title(titles, number), f"{folder}/{image}") for number, image in rows]
    return entries


def _list_of(root: Path, *names: str) -> Path | None:
    """The first of the lists that is there, also as "NAME (1).mat", as browsers name copies."""
    for folder in _LISTS:
        for name in names:
            stem = Path(name).stem
            for file in (root / folder / name, *sorted((root / folder).glob(f"{stem} (*).mat"))):
                if file.is_file():
                    return file
    return None


def _content(file: Path, *fields: str) -> dict[str, Any]:
    """The variables of a MATLAB file, among them ``fields``."""
    reader = require("scipy.io", purpose=_PURPOSE)
    # What a broken byte leads to is up to the reader: any kind of exception.
    try:
        content: dict[str, Any] = reader.loadmat(file, squeeze_me=True)
        for field in fields:
            content[field]
    except Exception as error:
        raise _broken(file, " and ".join(fields), error) from error
    return content


def _annotations(file: Path, name: str) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    """All of ``file``, and the number of the class and the field ``name`` of each photograph."""
    content = _content(file, "annotations")
    try:
        rows = np.atleast_1d(content["annotations"])
        numbers = [int(number) for number in rows["class"]]
        return content, list(zip(numbers, [str(image) for image in rows[name]], strict=True))
    except Exception as error:
        raise _broken(file, f"annotations of fields class and {name}", error) from error


def _broken(file: Path, what: str, error: Exception) -> DataError:
    return DataError(
        f"{_PURPOSE}: {shown(file)} is not a MATLAB file with {what}: {type(error).__name__}: "
        f"{error}"
    )


def _titles(content: dict[str, Any]) -> list[str]:
    return [str(title) for title in np.atleast_1d(content.get("class_names", []))]


def _title(titles: Sequence[str], number: int) -> str:
    return titles[number - 1] if 1 <= number <= len(titles) else f"class {number}"
