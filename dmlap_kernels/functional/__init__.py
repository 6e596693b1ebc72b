"""`fused_*_loss`: names, defaults and documentation; nothing else happens here.

An anchor's positives P are the references of its label, its negatives N those of other labels.
``d`` is the distance ``"euclidean"``, ``"sqeuclidean"``, ``"cosine"`` (1 - cos) or, for losses of
similarities, ``"dot"`` (minus the inner product). Where a formula has a similarity ``s``, it is the
cosine or the inner product, and -d for the other two.
"""

from __future__ import annotations

from dmlap_kernels.functional.distances import (
    fused_contrastive_loss,
    fused_lifted_structure_loss,
    fused_margin_loss,
    fused_triplet_loss,
)
from dmlap_kernels.functional.proxies import (
    fused_proxy_anchor_loss,
    fused_proxy_nca_loss,
    fused_soft_triple_loss,
)
from dmlap_kernels.functional.similarities import (
    fused_angular_loss,
    fused_circle_loss,
    fused_multi_similarity_loss,
    fused_n_pairs_loss,
    fused_nt_xent_loss,
    fused_sup_con_loss,
)

__all__ = [
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
]
