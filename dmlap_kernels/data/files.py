"""Finding the files of a data set, and reading archives; what is wrong is said with its path."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dmlap_kernels.data.pictures import DataError, is_picture, picture_suffixes, shown

__all__ = [
    "UNREADABLE",
    "DataError",
    "DataWarning",
    "LeftOut",
    "existing",
    "image_files",
    "load_arrays",
    "subfolders",
]

# What systems put into folders beside hidden files, in small letters: nobody misses it.
_LITTER = frozenset(
    ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "$recycle.bin")
)
_NAMED = 3

_NO_PICTURES = "that are not pictures which Pillow reads"
_NO_FILES = "that are not files"
UNREADABLE = "that are not readable images"
_OF_ONE = {
    UNREADABLE: "that is not a readable image",
    _NO_PICTURES: "that is not a picture which Pillow reads",
    _NO_FILES: "that is not a file",
}


class DataWarning(UserWarning):
    """Part of a data set is left out; the message says what and why."""


class LeftOut:
    """What a source passes over, to be told in one line."""

    def __init__(self, root: Path, purpose: str) -> None:
        self._root, self._purpose = root, purpose
        self._by_reason: dict[str, list[str]] = {}

    def add(self, reason: str, path: Path) -> None:
        """``path``, below the root, is left out for ``reason``: "that are no pictures"."""
        name = shown(path.relative_to(self._root)) + ("/" if path.is_dir() else "")
        self._by_reason.setdefault(reason, []).append(name)

    def tell(self) -> None:
        """Warn if there is anything to tell."""
        if not self._by_reason:
            return
        parts = []
        for reason, names in self._by_reason.items():
            more = ", ..." if len(names) > _NAMED else ""
            reason = reason if len(names) > 1 else _OF_ONE.get(reason, reason)
            parts.append(f"{len(names):,} {reason} ({', '.join(names[:_NAMED])}{more})")
        warnings.warn(
            f"{self._purpose}: left out of {shown(self._root)}: {'; '.join(parts)}",
            DataWarning,
            stacklevel=4,
        )


def existing(path: str | Path, purpose: str) -> Path:
    """``path`` if there is something; else FileNotFoundError."""
    try:
        path = Path(path).expanduser()
    except RuntimeError as error:  # ~somebody whom this machine does not know
        raise FileNotFoundError(f"{purpose}: {shown(path)} does not exist: {error}") from error
    if not path.exists():
        raise FileNotFoundError(f"{purpose}: {shown(path)} does not exist")
    return path


def visible(path: Path) -> list[Path]:
    """What lies in the folder ``path``, by name, but hidden files and what systems put there."""
    return sorted(
        p for p in path.iterdir() if not p.name.startswith(".") and p.name.casefold() not in _LITTER
    )


def subfolders(path: Path) -> list[Path]:
    """Visible folders in ``path``, by name."""
    return [p for p in visible(path) if p.is_dir()]


def image_files(path: Path, purpose: str, left_out: LeftOut) -> list[Path]:
    """Visible pictures in ``path`` and in folders below, by name.

    A picture is a file with an ending that Pillow reads, in letters of either case, or one whose
    content it knows. The others go to ``left_out``.
    """
    suffixes = picture_suffixes(purpose)
    found = []
    for file in _walk(path, set()):
        if not file.is_file():
            left_out.add(_NO_FILES, file)
        elif file.suffix.lower() in suffixes or is_picture(file, purpose):
            found.append(file)
        else:
            left_out.add(_NO_PICTURES, file)
    return found


def _walk(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Everything visible below ``folder`` but folders; each folder once, whatever links say."""
    resolved = folder.resolve()
    if resolved in seen:
        return
    seen.add(resolved)
    for path in visible(folder):
        if path.is_dir():
            yield from _walk(path, seen)
        else:
            yield path


def load_arrays(path: Path, names: Sequence[str], purpose: str) -> dict[str, np.ndarray]:
    """The named arrays of a ``.npz`` file.

    Raises:
        DataError: the file is broken or lacks an array.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if missing := [name for name in names if name not in archive.files]:
                raise DataError(
                    f"{purpose}: {shown(path)} lacks the arrays {', '.join(missing)}; it has "
                    f"{', '.join(archive.files)}"
                )
            return {name: archive[name] for name in names}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{purpose}: {shown(path)} is not a readable .npz file: {error}") from error
