"""The versions of Python and of other packages that this one runs with.

They are stated here; pyproject.toml, the documentation and CI repeat them, and a test ties these.
An older version is refused, a newer one than was tested is used, and `dmlap info` says so.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import re
from typing import NamedTuple


class Supported(NamedTuple):
    """The versions of one package.

    Attributes:
        name: as people write it.
        oldest: the oldest that runs.
        tested: the newest that was tested.
        why: what an older one lacks, after "needs ... or newer".
        cure: how to get one.
    """

    name: str
    oldest: str
    tested: str
    why: str
    cure: str


SUPPORTED = {
    "python": Supported(
        "Python", "3.10", "3.11", "for its syntax of types", "make an environment with it"
    ),
    "torch": Supported(
        "PyTorch",
        "2.8",
        "2.15",
        "which brings the oldest Triton that compiles its kernels",
        "pip install 'torch>=2.8'",
    ),
    "triton": Supported(
        "Triton",
        "3.4",
        "3.9",
        "because earlier compilers take no structures of arguments",
        "PyTorch 2.8 and newer bring one",
    ),
    "numpy": Supported(
        "NumPy",
        "1.26",
        "2.4",
        "the oldest that it was tested with",
        "pip install 'numpy>=1.26'",
    ),
}
# The distribution that brings a module differs with the build.
_DISTRIBUTIONS = {"triton": ("triton", "pytorch-triton", "triton-windows", "pytorch-triton-rocm")}


@functools.cache
def found(package: str) -> str | None:
    """The version of a package of `SUPPORTED` that is here, None where there is none."""
    if package == "python":
        return platform.python_version()
    for name in _DISTRIBUTIONS.get(package, (package,)):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def refusal(package: str, here: str | None = None) -> str | None:
    """Why the version that is here, or ``here``, is not used: one sentence; None if it is."""
    here = here or found(package)
    supported = SUPPORTED[package]
    if here is None or numbers(here) >= numbers(supported.oldest):
        return None
    return (
        f"dmlap_kernels needs {supported.name} {supported.oldest} or newer, {supported.why}, and "
        f"{here} is here ({supported.cure})"
    )


def fit(package: str) -> str:
    """How the version that is here fits: ``"fits"``, ``"too old"``, ``"newer than tested"``, or
    ``"not installed"``."""
    here = found(package)
    if here is None:
        return "not installed"
    if refusal(package):
        return "too old"
    newer = numbers(here) > numbers(SUPPORTED[package].tested)
    return "newer than tested" if newer else "fits"


def require(*packages: str) -> None:
    """Raise ImportError with the sentence of `refusal` for the first package that is too old."""
    for package in packages:
        if reason := refusal(package):
            raise ImportError(reason)


def numbers(version: str) -> tuple[int, int]:
    """Major and minor of a version; what has none is taken for new."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (1 << 30, 0)
