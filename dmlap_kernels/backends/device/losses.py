"""Which family computes a loss."""

from __future__ import annotations

from dmlap_kernels.backends.device import log_sums
from dmlap_kernels.backends.device.class_runs import Angular, SoftTriple
from dmlap_kernels.backends.device.hard import Hard
from dmlap_kernels.backends.device.hinges import Contrastive, Margin
from dmlap_kernels.backends.device.log_sums import LogSumLoss
from dmlap_kernels.backends.device.pair_terms import LiftedStructureOriginal, NPairs, NTXent
from dmlap_kernels.backends.device.terms import Family
from dmlap_kernels.backends.device.triplets import Mined

FAMILIES: dict[str, Family] = {
    "triplet_hard": Hard(),
    "contrastive": Contrastive(),
    "margin": Margin(),
    "multi_similarity": LogSumLoss(log_sums.multi_similarity, mining=3),
    "lifted_structure": LogSumLoss(log_sums.lifted_structure),
    "lifted_structure_original": LiftedStructureOriginal(),
    "nt_xent": NTXent(),
    "n_pairs": NPairs(),
    "sup_con": LogSumLoss(log_sums.sup_con),
    "circle": LogSumLoss(log_sums.circle),
    "proxy_nca": LogSumLoss(log_sums.proxy_nca),
    "proxy_anchor": LogSumLoss(log_sums.proxy_anchor, groups=2),
    "triplet_semihard": Mined(),
    "triplet_all": Mined(),
    "triplet_distance_weighted": Mined(),
    "angular": Angular(),
    "soft_triple": SoftTriple(),
}
