"""`fused_*_loss`: names, defaults and documentation; nothing else happens here.

Common to every function:

* ``embeddings`` (B, D) of float32, float64, float16 or bfloat16 and ``labels`` (B,) of any integer
  dtype. Without references every other row of the batch is a reference (the pair (i, i) never
  exists); with ``ref_embeddings`` (N, D) and ``ref_labels`` (N,) every pair exists, and the
  gradient flows to both tensors.
* The loss is float64 for float64 embeddings and float32 otherwise; gradients have the dtype of
  their input. An empty set of terms gives 0, still attached to the graph. Non-finite embeddings
  give a non-finite loss. The gradient of a Euclidean distance of zero is the zero vector.
* ``ValueError`` or ``TypeError`` names the argument at fault, before any kernel runs. A second
  derivative raises ``RuntimeError``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dmlap_kernels import checks
from dmlap_kernels.backends.registry import NAMES as BACKENDS
from dmlap_kernels.problem import DISTANCES, REDUCTIONS, PairProblem, PairSpec, PairStats
from dmlap_kernels.sweep import pair_loss

TRIPLET_MINING = ("hard",)


def fused_triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    margin: float = 0.2,
    mining: str = "hard",
    smooth: bool = False,
    swap: bool = False,
    distance: str = "euclidean",
    normalize: bool = False,
    reduction: str = "mean",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Tensor | tuple[Tensor, PairStats]:
    """Triplet loss on mined triplets (1703.07737, eq. 5).

    Per anchor ``[max_P d - min_N d + margin]+`` over its positives P and negatives N; anchors that
    lack either are left out.

    Args:
        embeddings, labels, ref_embeddings, ref_labels: see the module's documentation.
        margin: finite number, in units of the distance.
        mining: ``"hard"``: the farthest positive and the nearest negative of each anchor.
        smooth: softplus in place of the hinge.
        swap: after mining take the smaller of d(anchor, negative) and d(positive, negative); both
            are rows of the references where there are references.
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"`` (1 - cos).
        normalize: L2-normalise the rows first, gradient included.
        reduction: ``"mean"`` over anchors with a triplet, ``"mean_nonzero"`` over strictly positive
            terms, ``"sum"``, or ``"none"``: (B,) with 0 for anchors without a triplet.
        backend: ``"auto"`` or a backend by name; ``dmlap info`` lists them.
        precision: the least matmul precision a backend may use (``"highest"``, ``"high"``,
            ``"medium"``); None follows ``torch.get_float32_matmul_precision()``. The ``cpu``
            and ``torch`` backends always compute at the highest.
        return_stats: True to also return `PairStats`; ``"class_scores"`` to have them include
            `ClassScores`.

    Returns:
        The loss, or (loss, `PairStats`). Agrees with pytorch-metric-learning's ``BatchHardMiner``
        followed by ``TripletMarginLoss``, but for ``swap`` with references, where that library
        looks the distance up in the matrix of the anchors.
    """
    problem = checks.pair_problem(embeddings, labels, ref_embeddings, ref_labels)
    common = _common(distance, normalize, reduction, backend, precision)
    checks.choice("mining", mining, TRIPLET_MINING)
    params = (
        checks.number("margin", margin),
        float(checks.flag("smooth", smooth)),
        float(checks.flag("swap", swap)),
    )
    return _run(PairSpec(f"triplet_{mining}", params, **common), problem, backend, return_stats)


def fused_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    squared: bool = False,
    distance: str = "euclidean",
    normalize: bool = False,
    reduction: str = "mean",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Tensor | tuple[Tensor, PairStats]:
    """Contrastive loss (Hadsell, Chopra, LeCun 2006).

    ``[d - pos_margin]+`` over positive pairs and ``[neg_margin - d]+`` over negative pairs. Pairs
    are ordered: (i, j) and (j, i) both count in the self case.

    Args:
        embeddings, labels, ref_embeddings, ref_labels: see the module's documentation.
        pos_margin, neg_margin: finite numbers, in units of the distance.
        squared: square every hinge (the form of the paper).
        distance, normalize, backend, precision, return_stats: as in `fused_triplet_loss`.
        reduction: ``"mean"``: mean over the batch's positive pairs plus mean over its negative
            pairs; ``"mean_nonzero"``: the same over strictly positive terms; ``"sum"`` of all
            terms; ``"none"``: (B,), each anchor's mean over its positives plus its mean over its
            negatives.

    Returns:
        The loss, or (loss, `PairStats`). Agrees with pytorch-metric-learning's ``ContrastiveLoss``
        with ``MeanReducer`` (``"mean"``) and ``AvgNonZeroReducer`` (``"mean_nonzero"``).
    """
    problem = checks.pair_problem(embeddings, labels, ref_embeddings, ref_labels)
    common = _common(distance, normalize, reduction, backend, precision)
    params = (
        checks.number("pos_margin", pos_margin),
        checks.number("neg_margin", neg_margin),
        float(checks.flag("squared", squared)),
    )
    return _run(PairSpec("contrastive", params, **common), problem, backend, return_stats)


def _common(
    distance: Any, normalize: Any, reduction: Any, backend: Any, precision: Any
) -> dict[str, Any]:
    """The options that every loss shares, checked."""
    checks.choice("backend", backend, BACKENDS)
    return {
        "distance": checks.choice("distance", distance, DISTANCES),
        "normalize": checks.flag("normalize", normalize),
        "reduction": checks.choice("reduction", reduction, REDUCTIONS),
        "precision": checks.precision(precision),
    }


def _run(
    spec: PairSpec, problem: PairProblem, backend: str, return_stats: bool | str
) -> Tensor | tuple[Tensor, PairStats]:
    if not isinstance(return_stats, bool) and return_stats != "class_scores":
        raise ValueError(
            f"return_stats must be True, False or 'class_scores', got {return_stats!r}"
        )
    scores = return_stats == "class_scores"
    loss, stats = pair_loss(spec, problem, backend, stats=bool(return_stats), scores=scores)
    return (loss, stats) if stats is not None else loss
