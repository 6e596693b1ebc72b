"""Optional dependencies: imported where they are used, named when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

_PIP_NAMES = {"PIL": "pillow", "faiss": "faiss-cpu", "sklearn": "scikit-learn"}


class MissingExtra(ImportError):
    """An optional dependency is not installed; the message holds the line that installs it."""


def require(module: str, *, purpose: str, extra: str = "train") -> ModuleType:
    """Import ``module`` or say how to get it.

    Args:
        module: dotted name of the module, for example ``"PIL.Image"``.
        purpose: what needs it, the subject of the message, for example ``"data 'digits'"``.
        extra: the extra of this package that brings it.

    Raises:
        MissingExtra: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        package = _PIP_NAMES.get(top, top)
        raise MissingExtra(
            f"{purpose} needs {package}, which is not installed; "
            f"install it with: pip install 'dmlap-kernels[{extra}]'"
        ) from None
