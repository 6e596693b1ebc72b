"""Losses of similarities and their exponentials."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dmlap_kernels import checks
from dmlap_kernels.functional.documentation import documented
from dmlap_kernels.functional.options import (
    INNER_PRODUCT,
    SIMILARITY,
    Number,
    Result,
    most_similar,
    operand,
    run,
    run_exponents,
)

__all__ = [
    "fused_angular_loss",
    "fused_circle_loss",
    "fused_multi_similarity_loss",
    "fused_n_pairs_loss",
    "fused_nt_xent_loss",
    "fused_sup_con_loss",
]

_LARGEST_ANGLE = 70.0


@documented
def fused_multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    match: Tensor | Callable[[Tensor, Tensor], Tensor] | None = None,
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
        alpha, beta: sharpness for positives and negatives, more than 0.
        base: finite number: the similarity (for Euclidean distances: the distance) at which a pair
            weighs half.
        epsilon: None for all pairs; a finite number for those alone whose positive is not more
            similar than the most similar negative by ``epsilon``, and the other way round. An
            anchor without negatives then keeps no positives, and vice versa.
        distance: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"sqeuclidean"``.

    Returns:
        Agrees with pytorch-metric-learning's ``MultiSimilarityLoss``, defaults included, and
        ``MultiSimilarityMiner``.

    Example:
        >>> import torch
        >>> from dmlap_kernels import fused_multi_similarity_loss
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> fused_multi_similarity_loss(embeddings, labels, epsilon=0.1).backward()
    """
    given = embeddings, labels, ref_embeddings, ref_labels, self_index, match
    problem, alike = checks.matched_problem(*given)
    base = operand(checks.number("base", base))
    params = (
        checks.number("alpha", alpha, above=0),
        checks.number("beta", beta, above=0),
        most_similar(distance) - base if distance in INNER_PRODUCT else base,
        epsilon is not None,
        0.0 if epsilon is None else checks.constant("epsilon", epsilon),
    )
    options = distance, SIMILARITY, normalize, reduction, backend, precision, return_stats
    return run("multi_similarity", params, problem, *options, match=alike)


@documented
def fused_n_pairs_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    distance: str = "dot",
    normalize: bool = True,
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
        distance: ``"dot"``, ``"cosine"``, ``"euclidean"`` or ``"sqeuclidean"``.

    Returns:
        Agrees with pytorch-metric-learning's ``NPairsLoss``, defaults included, which takes no
        references.
    """
    problem = checks.pair_problem(embeddings, labels, ref_embeddings, ref_labels, self_index)
    options = distance, SIMILARITY, normalize, reduction, backend, precision, return_stats
    return run("n_pairs", (), problem, *options)


@documented
def fused_nt_xent_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    match: Tensor | Callable[[Tensor, Tensor], Tensor] | None = None,
    temperature: float | Tensor = 0.07,
    hardness: float | Tensor = 0.0,
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
        temperature: more than 0, in units of the similarity.
        hardness: concentration of 2010.04592 (its beta), at least 0: each negative counts
            ``e^(hardness s(i, n) / temperature)`` times, over the mean of these weights, whose
            gradient is taken as well. 0 for equal weights.
        distance: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"sqeuclidean"``.

    Returns:
        Agrees with pytorch-metric-learning's ``NTXentLoss``, defaults included.

    Example:
        >>> import torch
        >>> from dmlap_kernels import fused_nt_xent_loss
        >>> views = torch.randn(8, 16, requires_grad=True)  # two views of each of four images
        >>> labels = torch.arange(4).repeat(2)
        >>> temperature = torch.tensor(0.07, requires_grad=True)
        >>> fused_nt_xent_loss(views, labels, temperature=temperature).backward()
        >>> temperature.grad.shape
        torch.Size([])
    """
    given = embeddings, labels, ref_embeddings, ref_labels, self_index, match
    problem, alike = checks.matched_problem(*given)
    temperature = checks.number("temperature", temperature, above=0)
    options = distance, SIMILARITY, normalize, reduction, backend, precision, return_stats
    loss, more = _by_hardness("nt_xent", hardness)
    return run_exponents(loss, temperature, problem, *options, more=more, match=alike)


@documented
def fused_sup_con_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    match: Tensor | Callable[[Tensor, Tensor], Tensor] | None = None,
    temperature: float | Tensor = 0.1,
    hardness: float | Tensor = 0.0,
    distance: str = "cosine",
    normalize: bool = False,
    reduction: str = "mean_nonzero",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Result:
    """Supervised contrastive loss (2004.11362, eq. 2).

    Per anchor with positives the mean over P of minus the logarithm of the softmax of
    ``s / temperature`` over P and N: over P alone where an anchor has no negatives, as in a batch
    of one class. Anchors without positives are terms of 0.

    Args:
        temperature: more than 0, in units of the similarity.
        hardness: concentration of 2010.04592 (its beta), at least 0: in the softmax each
            negative counts ``e^(hardness s(i, n) / temperature)`` times, over the mean of these
            weights, whose gradient is taken as well. 0 for equal weights.
        distance: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"sqeuclidean"``.

    Returns:
        Agrees with pytorch-metric-learning's ``SupConLoss``, defaults included, but for an anchor
        without negatives: there the paper's softmax is over the positives alone, which is the term
        here, and the library has a loss of 0.

    Example:
        >>> import torch
        >>> from dmlap_kernels import fused_sup_con_loss
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> memory, memory_labels = torch.randn(100, 16), torch.randint(0, 4, (100,))
        >>> fused_sup_con_loss(embeddings, labels, memory, memory_labels).backward()
    """
    given = embeddings, labels, ref_embeddings, ref_labels, self_index, match
    problem, alike = checks.matched_problem(*given)
    temperature = checks.number("temperature", temperature, above=0)
    options = distance, SIMILARITY, normalize, reduction, backend, precision, return_stats
    loss, more = _by_hardness("sup_con", hardness)
    return run_exponents(loss, temperature, problem, *options, more=more, match=alike)


def _by_hardness(loss: str, hardness: Number) -> tuple[str, tuple[Number, ...]]:
    """The policy, and its number beside the temperature."""
    hardness = checks.number("hardness", hardness, minimum=0)
    if not isinstance(hardness, Tensor) and hardness == 0:
        return loss, ()
    return f"{loss}_hardness", (hardness,)


@documented
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
        alpha: upper bound of the angle at the negative, in degrees; more than 0, at most 70.
        {reduction}
        {run}
            Distances in them are cosine ones.

    Returns:
        Agrees with pytorch-metric-learning's ``AngularLoss``, defaults included, for rows of length
        1. That library brings anchors and positives to this length, but not negatives, so that for
        other rows its default gives another number; the paper's rows all have length 1.
    """
    problem = checks.pair_problem(embeddings, labels, ref_embeddings, ref_labels, self_index)
    options = "cosine", SIMILARITY, False, reduction, backend, precision, return_stats
    return run(
        "angular",
        (checks.number("alpha", alpha, above=0, maximum=_LARGEST_ANGLE),),
        problem,
        *options,
    )


@documented
def fused_circle_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    match: Tensor | Callable[[Tensor, Tensor], Tensor] | None = None,
    m: float | Tensor = 0.4,
    gamma: float | Tensor = 80.0,
    reduction: str = "mean_nonzero",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Result:
    """Circle loss for labels (2002.10857, eq. 6, 8), on cosines s.

    Per anchor ``log(1 + sum_P e^(-gamma a_p (s - (1 - m))) * sum_N e^(gamma a_n (s - m)))`` with
    ``a_p = [1 + m - s]+`` and ``a_n = [s + m]+``, which count as constants in the gradient. Anchors
    that lack positives or negatives are terms of 0.

    Args:
        m: relaxation, a finite number.
        gamma: scale of the similarities, more than 0.
        {reduction}
        {run}
            Distances in them are cosine ones.

    Returns:
        Agrees with pytorch-metric-learning's ``CircleLoss``, defaults included.

    Example:
        >>> import torch
        >>> from dmlap_kernels import fused_circle_loss
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> fused_circle_loss(embeddings, labels, gamma=64).backward()
    """
    given = embeddings, labels, ref_embeddings, ref_labels, self_index, match
    problem, alike = checks.matched_problem(*given)
    options = "cosine", SIMILARITY, False, reduction, backend, precision, return_stats
    params = checks.number("m", m), checks.number("gamma", gamma, above=0)
    return run("circle", params, problem, *options, match=alike)
