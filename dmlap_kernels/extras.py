"""Optional dependencies: imported where they are used, named when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

_PIP_NAMES = {"PIL": "pillow", "faiss": "faiss-cpu", "sklearn": "scikit-learn"}


class MissingExtra(ImportError):
    """An optional dependency is missing or does not import; the message holds the line that
    installs it."""


def require(module: str, *, purpose: str, extra: str = "train") -> ModuleType:
    """Import ``module`` or say how to get it.

    Args:
        module: dotted name of the module, for example ``"PIL.Image"``.
        purpose: what needs it, the subject of the message, for example ``"data 'digits'"``.
        extra: the extra of this package that brings it.

    Raises:
        MissingExtra: the module is not installed, or does not import beside what is.
    """
    try:
        return importlib.import_module(module)
    # A compiled package beside a NumPy or a PyTorch that it was not built for fails in many ways.
    except (ImportError, RuntimeError, AttributeError) as error:
        top = module.partition(".")[0]
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        absent = missing is not None and missing.partition(".")[0] == top
        state = "is not installed" if absent else f"does not import here ({error})"
        wanted = "install it" if absent else "install versions that fit each other"
        raise MissingExtra(
            f"{purpose} needs {_PIP_NAMES.get(top, top)}, which {state}; "
            f"{wanted} with: pip install 'dmlap-kernels[{extra}]'"
        ) from (None if absent else error)
