"""Fused kernels for deep metric learning, and a trainer for alternating projections (DMLAP)."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from dmlap_kernels import versions

# Before anything else of ours: with an older PyTorch the imports below fail in their own words.
versions.require("python", "torch", "numpy")

from dmlap_kernels.backends.fallback import FallbackWarning
from dmlap_kernels.functional import (
    fused_angular_loss,
    fused_circle_loss,
    fused_contrastive_loss,
    fused_lifted_structure_loss,
    fused_margin_loss,
    fused_multi_similarity_loss,
    fused_n_pairs_loss,
    fused_nt_xent_loss,
    fused_proxy_anchor_loss,
    fused_proxy_nca_loss,
    fused_soft_triple_loss,
    fused_sup_con_loss,
    fused_triplet_loss,
)
from dmlap_kernels.mining import hard_classes, nearest
from dmlap_kernels.problem import ClassScores, HardClasses, Nearest, PairStats

try:
    __version__ = version("dmlap_kernels")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "unknown"

__all__ = [
    "ClassScores",
    "FallbackWarning",
    "HardClasses",
    "Nearest",
    "PairStats",
    "fused_angular_loss",
    "fused_circle_loss",
    "fused_contrastive_loss",
    "fused_lifted_structure_loss",
    "fused_margin_loss",
    "fused_multi_similarity_loss",
    "fused_n_pairs_loss",
    "fused_nt_xent_loss",
    "fused_proxy_anchor_loss",
    "fused_proxy_nca_loss",
    "fused_soft_triple_loss",
    "fused_sup_con_loss",
    "fused_triplet_loss",
    "hard_classes",
    "nearest",
]
# Imported when they are asked for: `dmlap_kernels.losses` needs no import of its own, and what only
# an extra brings is not imported by `import dmlap_kernels`.
_SUBMODULES = frozenset(
    ("compat", "data", "encoders", "evaluation", "extras", "info", "losses", "report", "trainer")
)


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES})
