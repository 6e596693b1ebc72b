"""`fused_*_loss`: names, defaults and documentation; nothing else happens here.

Common to every function:

* ``embeddings`` (B, D) of float32, float64, float16 or bfloat16 and ``labels`` (B,) of any integer
  dtype. Without references every other row of the batch is a reference (the pair (i, i) never
  exists); with ``ref_embeddings`` (N, D) and ``ref_labels`` (N,) every pair exists, and the
  gradient flows to both tensors. An anchor's positives P are the references of its label, its
  negatives N those of other labels.
* ``distance``: d is ``"euclidean"``, ``"sqeuclidean"``, ``"cosine"`` (1 - cos) or, for losses of
  similarities, ``"dot"`` (minus the inner product). Where a formula has a similarity s, it is the
  cosine or the inner product, and -d for the other two.
* ``normalize``: L2-normalise the rows first, gradient included.
* ``reduction``: ``"mean"`` over the terms of the batch; ``"mean_nonzero"`` over the strictly
  positive ones; ``"sum"``; or ``"none"``: (B,), for each anchor the mean of its terms, 0 if it has
  none. Losses of two groups of terms (attraction and repulsion) reduce each and add the results.
* ``backend``: ``"auto"`` or a backend by name; ``dmlap info`` lists them.
* ``precision``: the least matmul precision a backend may use (``"highest"``, ``"high"``,
  ``"medium"``); None follows ``torch.get_float32_matmul_precision()``. The ``cpu`` and ``torch``
  backends always compute at the highest.
* ``return_stats``: True to return (loss, `PairStats`) instead of the loss; ``"class_scores"`` to
  have the statistics include `ClassScores`.
* The loss is float64 for float64 embeddings and float32 otherwise; gradients have the dtype of
  their input. An empty set of terms gives 0, still attached to the graph. Non-finite embeddings
  give a non-finite loss. The gradient of a Euclidean distance of zero is the zero vector.
* ``ValueError`` or ``TypeError`` names the argument at fault, before any kernel runs. A second
  derivative raises ``RuntimeError``.
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
