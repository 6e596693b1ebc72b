"""Files of a folder that are no readable images: all of them found, and told at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dmlap_kernels.data.pictures import DataError, open_image, shown
from dmlap_kernels.plurals import counted

# A message lists so many files.
_LISTED = 50
# How whole files of these formats end, perhaps before some bytes that a camera or a program added.
_ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND"}
_TAIL = 256

OPTION = "drop_unreadable (--drop-unreadable)"


class UnreadableImages(DataError):
    """Several files of a folder are no readable images; a message of several lines."""


def cut_short(path: Path) -> bool:
    """Whether a JPEG or PNG lacks its end, as of a download that broke off, by its last bytes.

    Some complete files of careless programs lack it as well.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
            end = next((e for start, e in _ENDS.items() if head.startswith(start)), None)
            if end is None:
                return False
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return end not in file.read()
    except OSError:
        return True


def find_unreadable(
    files: Sequence[Path], purpose: str, *, whole: bool, threads: int
) -> dict[Path, DataError]:
    """Those of ``files`` that cannot be decoded, and why.

    Args:
        files: their headers can be read.
        purpose: what needs them, for messages.
        whole: decode every file; else those alone that are `cut_short`, which takes a look at the
            ends of files instead of minutes.
        threads: how many are decoded at once.
    """

    def judge(file: Path) -> DataError | None:
        if not whole and not cut_short(file):
            return None
        try:
            # At an eighth of its size where a JPEG allows it: all of its bytes are read.
            open_image(file, purpose, least=lambda width, height: 1)
        except DataError as error:
            return error
        return None

    with ThreadPoolExecutor(threads) as pool:
        found = zip(files, pool.map(judge, files), strict=True)
        return {file: error for file, error in found if error is not None}


def unreadable_error(
    root: Path, broken: dict[Path, DataError], images: int, purpose: str
) -> DataError:
    """What to raise for the files in ``broken``, of so many ``images`` below ``root``."""
    if len(broken) == 1:
        (error,) = broken.values()
        return DataError(f"{error}; it can be left out with {OPTION}")
    lines = [
        f"{purpose}: {len(broken):,} of {counted(images, 'file')} in {shown(root)} are not "
        f"readable images; they can be left out with {OPTION}:"
    ]
    for file, error in sorted(broken.items())[:_LISTED]:
        why = " ".join(str(error.__cause__ or error).split())
        lines.append(f"  {shown(file.relative_to(root))}: {why}")
    if len(broken) > _LISTED:
        lines.append(f"  and {len(broken) - _LISTED:,} more")
    return UnreadableImages("\n".join(lines))
