"""Why the extension ``dmlap_kernels._native`` is not there, and what to do about it."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
_BUILD = "python setup.py build_ext --inplace"


def why_missing(package: Path = PACKAGE) -> str | None:
    """Why there is no extension in the folder of the package, and the cure; None if there is."""
    found = importlib.util.find_spec(f"{PACKAGE.name}._native")
    if found is not None and found.origin is not None:
        # The finder of an editable install offers its own extension to any other copy, too.
        if Path(found.origin).resolve().parent == package:
            return None
    root = package.parent
    checkout = (root / "setup.py").exists() and (root / "csrc").is_dir()
    if others := sorted(path.name for path in package.glob("_native.*.so")):
        cure = f"build it again in {root} with: {_BUILD}" if checkout else "reinstall it"
        return f"the extension was built for another Python ({', '.join(others)}); {cure}"
    if not checkout:
        return (
            f"the extension was not built: {package} was installed with DMLAP_NATIVE=0; reinstall "
            "without it, with a C++17 compiler"
        )
    if installed := _with_extension(root):
        return (
            f"Python took the sources in {package}, which hold no extension, and not the package "
            f"that is installed in {installed}; start Python in another folder, or build the "
            f"extension here with: {_BUILD}"
        )
    return (
        f"the extension was not built: {package} is a folder of sources; install it with "
        f"pip install {root}, or build the extension there with: {_BUILD}"
    )


def _with_extension(root: Path) -> Path | None:
    """The folder of another copy of the package, one that has its extension."""
    found = importlib.util.find_spec(f"{PACKAGE.name}._native")
    if found is not None and found.origin is not None:
        return Path(found.origin).parent
    for entry in sys.path:
        if Path(entry or ".").resolve() == root:
            continue
        spec = PathFinder.find_spec(PACKAGE.name, [entry])
        if spec is None or not spec.submodule_search_locations:
            continue
        folder = spec.submodule_search_locations[0]
        if PathFinder.find_spec("_native", [folder]) is not None:
            return Path(folder)
    return None
