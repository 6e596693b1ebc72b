"""Small JSON files that outlive the process: what was proved and measured on the chips here.

In ``DMLAP_CACHE_DIR``, else in ``dmlap_kernels`` under ``XDG_CACHE_HOME`` or ``~/.cache``; a folder
for each `Chip`. Nothing depends on them: a folder that cannot be written leaves what it would hold
to the process, and a file that is damaged, or of another chip, counts as missing. A file appears
whole or not at all, so that many processes may start at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from dmlap_kernels.backends.chips import Chip


def root() -> Path | None:
    """The folder of all chips, which need not exist; None where there is no home for it."""
    if given := os.environ.get("DMLAP_CACHE_DIR"):
        return Path(given).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # others are to be ignored
        return Path(shared) / "dmlap_kernels"
    try:
        return Path.home() / ".cache" / "dmlap_kernels"
    except RuntimeError:
        return None


def path_of(chip: Chip, name: str) -> Path | None:
    """Where a file called ``name`` about a chip belongs."""
    folder = root()
    if folder is None:
        return None
    readable = re.sub(r"[^A-Za-z0-9]+", "-", chip.name).strip("-")
    digest = hashlib.sha256(json.dumps(chip).encode()).hexdigest()[:12]
    return folder / f"{readable}-{digest}" / name


def read(chip: Chip, name: str) -> dict[str, Any] | None:
    """The content of a file about a chip, None where there is none that can be used."""
    path = path_of(chip, name)
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    fits = isinstance(content, dict) and content.get("chip") == chip._asdict()
    return content if fits else None


def write(chip: Chip, name: str, content: dict[str, Any]) -> Path | None:
    """Where ``content`` was written; None where it could not be."""
    path = path_of(chip, name)
    if path is None:
        return None
    text = json.dumps({"chip": chip._asdict()} | content, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{name}-")
    except OSError:
        return None
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        return None
    return path


def remove(chip: Chip, name: str) -> None:
    path = path_of(chip, name)
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink()


def names(chip: Chip, pattern: str) -> list[str]:
    """Names of the files about a chip that match a pattern, in order."""
    path = path_of(chip, pattern)
    if path is None:
        return []
    try:
        return sorted(found.name for found in path.parent.glob(pattern))
    except OSError:
        return []
