"""What to say where a folder of pictures does not lie as it should."""

from __future__ import annotations

from pathlib import Path

from dmlap_kernels.data.pictures import shown

# What is taken, as trees; messages that end in them have several lines.
LAYOUTS = """\
  PATH/cat/1.jpg         PATH/dog/1.jpg         a folder for each class, four or more: a random half
                                                of them is kept for the test
  PATH/train/cat/1.jpg   PATH/test/cow/1.jpg    or train and test, with such folders in each"""


class LayoutError(FileNotFoundError):
    """A folder of pictures has none of the layouts that are taken; a message of several lines."""


def layout_error(purpose: str, found: str) -> LayoutError:
    """``found`` is what there is instead, with its path."""
    return LayoutError(f"{purpose}: {found}; what is taken as folder:PATH:\n{LAYOUTS}")


def source_hint(source: str) -> str:
    """What somebody may have meant by a source of no known kind; empty if there is no telling."""
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return f"; a folder of pictures is given as folder:{shown(path)}"
        if path.suffix.lower() == ".npz" and path.is_file():
            return f"; a file of Omniglot is given as omniglot:{shown(path)}"
        if path.is_file():
            return f"; {unpacked(path)}"
    except (OSError, ValueError, RuntimeError):  # no such name can be, or no such home
        pass
    return ""


def unpacked(file: Path) -> str:
    """What to do with a file where a folder is due."""
    name = shown(file)
    if file.suffix.lower() in (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"):
        folder = shown(file.parent / file.name.partition(".")[0])
        return f"unpack {name} first, and give its folder: folder:{folder}"
    return f"{name} is a file; a folder of pictures is due, as folder:PATH"


def folder_hint(path: Path) -> str:
    """To add where ``path`` is not in the layout of a published set but has folders in it."""
    try:
        inside = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    except OSError:
        return ""
    if len(inside) < 2:
        return ""
    return f"; folders of classes, as these may be, are given as folder:{shown(path)}"
