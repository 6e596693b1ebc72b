"""Losses of similarities and their exponentials."""

from __future__ import annotations

from torch import Tensor

from dmlap_kernels import checks
from dmlap_kernels.functional.options import (
    INNER_PRODUCT,
    SIMILARITY,
    Result,
    most_similar,
    run,
    run_exponents,
)

_LARGEST_ANGLE = 70.0


def fused_multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    alpha: float | Tensor = 2.0,
    beta: float | Tensor = 50.0,
    base: float | Tensor = 0.5,
    epsilon: float | None = None,
    distance: str = "cosine",
    normalize: bool = False,
    reduction: str = "mean",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Result:
    """Multi-similarity loss (1904.06627, eq. 15), with its pair mining (eq. 10, 11) on request.

    Per anchor ``1/alpha log(1 + sum_P e^(-alpha (s - base))) + 1/beta log(1 + sum_N
    e^(beta (s - base)))``; every anchor is a term.

    Args:
        embeddings, labels, ref_embeddings, ref_labels: see the module's documentation.
        alpha, beta: sharpness for positives and negatives, more than 0.
        base: finite number: the similarity (for Euclidean distances: the distance) at which a pair
            weighs half.
        epsilon: None for all pairs; a finite number for those alone whose positive is not more
            similar than the most similar negative by ``epsilon``, and the other way round. An
            anchor without negatives then keeps no positives, and vice versa.
        distance: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"sqeuclidean"``.
        normalize, reduction, backend, precision, return_stats: see the module's documentation.

    Returns:
        The loss, or (loss, `PairStats`). Agrees with pytorch-metric-learning's
        ``MultiSimilarityLoss`` and ``MultiSimilarityMiner``.
    """
    problem = checks.pair_problem(embeddings, labels, ref_embeddings, ref_labels, self_index)
    base = checks.number("base", base)
    params = (
        checks.number("alpha", alpha, above=0),
        checks.number("beta", beta, above=0),
        most_similar(distance) - base if distance in INNER_PRODUCT else base,
        epsilon is not None,
        0.0 if epsilon is None else checks.constant("epsilon", epsilon),
    )
    return run(
        "multi_similarity",
        params,
        problem,
        distance=distance,
        accepted=SIMILARITY,
        normalize=normalize,
        reduction=reduction,
        backend=backend,
        precision=precision,
        return_stats=return_stats,
    )


def fused_n_pairs_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    distance: str = "dot",
    normalize: bool = False,
    reduction: str = "mean",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Result:
    """Multi-class N-pair loss (Sohn 2016, eq. 7).

    One pair a class: of the classes with two rows or more the first row is the anchor and the
    second, in the order of the batch, its positive; the positives of the other pairs are the
    negatives. Per pair ``log(1 + sum_c e^(s(a, p_c) - s(a, p)))``. With references, all of them
    take part: per positive pair ``log(1 + sum_N e^(s(i, n) - s(i, p)))``.

    Args:
        embeddings, labels, ref_embeddings, ref_labels: see the module's documentation.
        distance: ``"dot"``, ``"cosine"``, ``"euclidean"`` or ``"sqeuclidean"``.
        normalize, reduction, backend, precision, return_stats: see the module's documentation.

    Returns:
        The loss, or (loss, `PairStats`). Agrees with pytorch-metric-learning's ``NPairsLoss``,
        which takes no references.
    """
    problem = checks.pair_problem(embeddings, labels, ref_embeddings, ref_labels, self_index)
    return run(
        "n_pairs",
        (),
        problem,
        distance=distance,
        accepted=SIMILARITY,
        normalize=normalize,
        reduction=reduction,
        backend=backend,
        precision=precision,
        return_stats=return_stats,
    )


def fused_nt_xent_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    temperature: float | Tensor = 0.07,
    distance: str = "cosine",
    normalize: bool = False,
    reduction: str = "mean",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Result:
    """Normalised temperature-scaled cross entropy (2002.05709, eq. 1).

    Per positive pair (i, p) ``log(1 + sum_N e^((s(i, n) - s(i, p)) / temperature))``: each positive
    against the anchor's negatives, without its other positives.

    Args:
        embeddings, labels, ref_embeddings, ref_labels: see the module's documentation.
        temperature: more than 0, in units of the similarity.
        distance: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"sqeuclidean"``.
        normalize, reduction, backend, precision, return_stats: see the module's documentation.

    Returns:
        The loss, or (loss, `PairStats`). Agrees with pytorch-metric-learning's ``NTXentLoss``.
    """
    problem = checks.pair_problem(embeddings, labels, ref_embeddings, ref_labels, self_index)
    temperature = checks.number("temperature", temperature, above=0)
    return run_exponents(
        "nt_xent",
        temperature,
        problem,
        distance=distance,
        accepted=SIMILARITY,
        normalize=normalize,
        reduction=reduction,
        backend=backend,
        precision=precision,
        return_stats=return_stats,
    )


def fused_sup_con_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    distance: str = "cosine",
    normalize: bool = False,
    reduction: str = "mean",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Result:
    """Supervised contrastive loss (2004.11362, eq. 2).

    Per anchor with positives the mean over P of minus the logarithm of the softmax of
    ``s / temperature`` over P and N. Anchors without positives are terms of 0.

    Args:
        embeddings, labels, ref_embeddings, ref_labels: see the module's documentation.
        temperature: more than 0, in units of the similarity.
        distance: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"sqeuclidean"``.
        normalize, reduction, backend, precision, return_stats: see the module's documentation.

    Returns:
        The loss, or (loss, `PairStats`). Agrees with pytorch-metric-learning's ``SupConLoss`` with
        ``MeanReducer`` (``"mean"``) and ``AvgNonZeroReducer`` (``"mean_nonzero"``, its default).
    """
    problem = checks.pair_problem(embeddings, labels, ref_embeddings, ref_labels, self_index)
    temperature = checks.number("temperature", temperature, above=0)
    return run_exponents(
        "sup_con",
        temperature,
        problem,
        distance=distance,
        accepted=SIMILARITY,
        normalize=normalize,
        reduction=reduction,
        backend=backend,
        precision=precision,
        return_stats=return_stats,
    )


def fused_angular_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    alpha: float | Tensor = 40.0,
    reduction: str = "mean",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Result:
    """Angular loss (1708.01682, eq. 8), on L2-normalised rows x.

    Per positive pair (i, p) ``log(1 + sum_N e^(4 t (x_i + x_p).x_n - 2 (1 + t) x_i.x_p))`` with
    ``t = tan(alpha)^2``.

    Args:
        embeddings, labels, ref_embeddings, ref_labels: see the module's documentation.
        alpha: upper bound of the angle at the negative, in degrees; more than 0, at most 70.
        reduction, backend, precision, return_stats: see the module's documentation; statistics are
            those of the cosine distance.

    Returns:
        The loss, or (loss, `PairStats`). Agrees with pytorch-metric-learning's ``AngularLoss`` for
        rows of length 1, to which that library brings anchors and positives, but not negatives.
    """
    problem = checks.pair_problem(embeddings, labels, ref_embeddings, ref_labels, self_index)
    return run(
        "angular",
        (checks.number("alpha", alpha, above=0, maximum=_LARGEST_ANGLE),),
        problem,
        distance="cosine",
        accepted=SIMILARITY,
        normalize=False,
        reduction=reduction,
        backend=backend,
        precision=precision,
        return_stats=return_stats,
    )


def fused_circle_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    m: float | Tensor = 0.4,
    gamma: float | Tensor = 80.0,
    reduction: str = "mean",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Result:
    """Circle loss for labels (2002.10857, eq. 6, 8), on cosines s.

    Per anchor ``log(1 + sum_P e^(-gamma a_p (s - (1 - m))) * sum_N e^(gamma a_n (s - m)))`` with
    ``a_p = [1 + m - s]+`` and ``a_n = [s + m]+``, which count as constants in the gradient. Anchors
    that lack positives or negatives are terms of 0.

    Args:
        embeddings, labels, ref_embeddings, ref_labels: see the module's documentation.
        m: relaxation, a finite number.
        gamma: scale of the similarities, more than 0.
        reduction, backend, precision, return_stats: see the module's documentation; statistics are
            those of the cosine distance.

    Returns:
        The loss, or (loss, `PairStats`). Agrees with pytorch-metric-learning's ``CircleLoss`` with
        ``MeanReducer`` (``"mean"``) and ``AvgNonZeroReducer`` (``"mean_nonzero"``, its default).
    """
    problem = checks.pair_problem(embeddings, labels, ref_embeddings, ref_labels, self_index)
    return run(
        "circle",
        (checks.number("m", m), checks.number("gamma", gamma, above=0)),
        problem,
        distance="cosine",
        accepted=SIMILARITY,
        normalize=False,
        reduction=reduction,
        backend=backend,
        precision=precision,
        return_stats=return_stats,
    )
