"""Fused kernels for deep metric learning, and a trainer for alternating projections (DMLAP)."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from dmlap_kernels import versions

# Before anything else of ours: with an older PyTorch the imports below fail in their own words.
versions.require("python", "torch", "numpy")

from dmlap_kernels import functional
from dmlap_kernels.backends.fallback import FallbackWarning
from dmlap_kernels.functional import *
from dmlap_kernels.mining import hard_classes, nearest
from dmlap_kernels.problem import ClassScores, HardClasses, Nearest, PairStats
from dmlap_kernels.reductions import ClassMeans, per_class_mean

try:
    __version__ = version("dmlap_kernels")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "unknown"

__all__ = [
    "ClassMeans",
    "ClassScores",
    "FallbackWarning",
    "HardClasses",
    "Nearest",
    "PairStats",
    "hard_classes",
    "nearest",
    "per_class_mean",
]
__all__ += functional.__all__
# Imported when they are asked for: `dmlap_kernels.losses` needs no import of its own, and what only
# an extra brings is not imported by `import dmlap_kernels`.
_SUBMODULES = frozenset(
    (
        *("calibration", "compat", "data", "distributed", "encoders", "evaluation", "extras"),
        *("info", "losses", "memory", "plurals", "ranks", "report", "ring", "ring_angular"),
        *("ring_lists", "ring_sweeps", "ring_triplets", "torchrun", "trainer"),
    )
)


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES})
