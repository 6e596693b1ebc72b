"""Which family computes a loss."""

from __future__ import annotations

from dmlap_kernels.backends.device import hinges, log_sums
from dmlap_kernels.backends.device.class_runs import Angular, SoftTriple
from dmlap_kernels.backends.device.hard import Hard
from dmlap_kernels.backends.device.pair_terms import (
    LiftedStructureOriginal,
    NPairs,
    NTXent,
    NTXentHardness,
)
from dmlap_kernels.backends.device.terms import Family
from dmlap_kernels.backends.device.triplets import Mined

FAMILIES: dict[str, Family] = {
    "triplet_hard": Hard(),
    "triplet_easy_positive": Hard(),
    "triplet_easy_positive_semihard": Hard(),
    **hinges.FAMILIES,
    **log_sums.FAMILIES,
    "lifted_structure_original": LiftedStructureOriginal(),
    "nt_xent": NTXent(),
    "nt_xent_hardness": NTXentHardness(),
    "n_pairs": NPairs(),
    "triplet_semihard": Mined(),
    "triplet_all": Mined(),
    "triplet_distance_weighted": Mined(),
    "angular": Angular(),
    "soft_triple": SoftTriple(),
}
