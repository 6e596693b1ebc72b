"""Losses of distances and margins."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dmlap_kernels import checks
from dmlap_kernels.functional.documentation import documented
from dmlap_kernels.functional.options import (
    DISTANCE,
    INNER_PRODUCT,
    Number,
    Result,
    most_similar,
    operand,
    run,
)

TRIPLET_MINING = (
    *("hard", "semihard", "all", "distance_weighted"),
    *("easy_positive", "easy_positive_semihard"),
)
LIFTED_FORMS = ("generalized", "original")
_CUTOFF = 0.5
_NONZERO_LOSS_CUTOFF = 1.4
# A seed travels to the backends as a float64, which holds every integer below 2^53.
_LAST_SEED = 2**53 - 1

__all__ = [
    "fused_contrastive_loss",
    "fused_lifted_structure_loss",
    "fused_margin_loss",
    "fused_siglip_loss",
    "fused_triplet_loss",
]


@documented
def fused_triplet_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    match: Tensor | Callable[[Tensor, Tensor], Tensor] | None = None,
    margin: float | Tensor = 0.2,
    mining: str = "hard",
    smooth: bool = False,
    swap: bool = False,
    cutoff: float = _CUTOFF,
    nonzero_loss_cutoff: float = _NONZERO_LOSS_CUTOFF,
    seed: int | None = None,
    distance: str = "euclidean",
    normalize: bool = False,
    reduction: str = "mean",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Result:
    """Triplet loss on mined triplets (1503.03832, 1703.07737, 1706.07567, 1904.04370).

    ``[d(i, p) - d(i, n) + margin]+`` for the triplets (i, p, n) that ``mining`` picks.

    Args:
        margin: finite number, in units of the distance.
        mining: ``"hard"``: the farthest positive and the nearest negative of each anchor.
            ``"semihard"``: each positive pair with the nearest negative that is farther than the
            positive, or with the farthest negative where none is.
            ``"all"``: every triplet.
            ``"distance_weighted"``: each positive pair with a negative drawn with a probability
            inverse to the density of distances on the unit sphere; rows are L2-normalised.
            ``"easy_positive"``: the nearest positive and the nearest negative of each anchor.
            ``"easy_positive_semihard"``: the nearest positive of each anchor and the nearest
            negative that is farther; without such a negative there is no triplet.
            Anchors without a positive or a negative have no triplet.
        smooth: softplus in place of the hinge.
        swap: after mining take the smaller of d(anchor, negative) and d(positive, negative); both
            are rows of the references where there are references.
        cutoff: for distance-weighted mining, at least 0: Euclidean distances below count as this
            one, so that the closest negatives do not take all of the draws.
        nonzero_loss_cutoff: for distance-weighted mining, more than ``cutoff``: negatives at this
            Euclidean distance or farther are not drawn.
        seed: for distance-weighted mining, 0..2^53 - 1: the same seed draws the same triplets on
            every backend. None takes one from torch's default generator (`torch.manual_seed`);
            under `torch.compile` a new one at each call as well.
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"``.

    Returns:
        Agrees with pytorch-metric-learning's ``TripletMarginLoss`` on all triplets and after
        ``BatchHardMiner``, ``BatchEasyHardMiner("easy", "hard")`` and ``("easy", "semihard")``, and
        ``DistanceWeightedMiner`` (which draws other negatives), and with
        sentence-transformers' ``BatchSemiHardTripletLoss``; but for ``swap`` with references, where
        the former looks the distance up in the matrix of the anchors. Its defaults are others:
        ``mining="all"``, ``margin=0.05``, ``normalize=True`` and ``reduction="mean_nonzero"``.

    Example:
        >>> import torch
        >>> from dmlap_kernels import fused_triplet_loss
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> loss = fused_triplet_loss(embeddings, labels, margin=0.2, mining="semihard")
        >>> loss.backward()
    """
    given = embeddings, labels, ref_embeddings, ref_labels, self_index, match
    problem, alike = checks.matched_problem(*given)
    checks.choice("mining", mining, TRIPLET_MINING)
    params: tuple[Number | bool, ...] = (
        checks.number("margin", margin),
        checks.flag("smooth", smooth),
        checks.flag("swap", swap),
    )
    if mining == "distance_weighted":
        if alike is not None:
            raise ValueError("match must be left out with mining='distance_weighted'")
        nearest = checks.constant("cutoff", cutoff, minimum=0)
        above = nearest if isinstance(nearest, float) else 0.0
        farthest = checks.constant("nonzero_loss_cutoff", nonzero_loss_cutoff, above=above)
        params += (nearest, farthest, _seed(seed))
        normalize = checks.flag("normalize", normalize) or distance != "cosine"
    elif (cutoff, nonzero_loss_cutoff, seed) != (_CUTOFF, _NONZERO_LOSS_CUTOFF, None):
        raise ValueError(
            "cutoff, nonzero_loss_cutoff and seed must be left at their defaults unless "
            f"mining='distance_weighted', got mining={mining!r} with cutoff={cutoff!r}, "
            f"nonzero_loss_cutoff={nonzero_loss_cutoff!r} and seed={seed!r}"
        )
    options = distance, DISTANCE, normalize, reduction, backend, precision, return_stats
    return run(f"triplet_{mining}", params, problem, *options, match=alike)


def _seed(seed: int | None) -> Number:
    if seed is not None:
        return checks.count("seed", seed, minimum=0, maximum=_LAST_SEED, why="2^53 - 1")
    drawn = torch.randint(_LAST_SEED + 1, (), device="cpu")
    # A graph draws anew at each call.
    return drawn if torch.compiler.is_compiling() else float(drawn)


@documented
def fused_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    match: Tensor | Callable[[Tensor, Tensor], Tensor] | None = None,
    pos_margin: float | Tensor = 0.0,
    neg_margin: float | Tensor = 1.0,
    squared: bool = False,
    distance: str = "euclidean",
    normalize: bool = True,
    reduction: str = "mean_nonzero",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Result:
    """Contrastive loss (Hadsell, Chopra, LeCun 2006).

    ``[d - pos_margin]+`` over positive pairs and ``[neg_margin - d]+`` over negative pairs. Pairs
    are ordered: (i, j) and (j, i) both count in the self case.

    Args:
        pos_margin, neg_margin: finite numbers, in units of the distance.
        squared: square every hinge (the form of the paper).
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"``.
        {normalize}
        {two_groups}
        {run}

    Returns:
        Agrees with pytorch-metric-learning's ``ContrastiveLoss``, defaults included.

    Example:
        >>> import torch
        >>> from dmlap_kernels import fused_contrastive_loss
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> loss, stats = fused_contrastive_loss(embeddings, labels, return_stats=True)
        >>> loss.backward()
        >>> int(stats.constraints)  # 8 ordered positive pairs and 48 negative ones
        56
    """
    given = embeddings, labels, ref_embeddings, ref_labels, self_index, match
    problem, alike = checks.matched_problem(*given)
    params = (
        checks.number("pos_margin", pos_margin),
        checks.number("neg_margin", neg_margin),
        checks.flag("squared", squared),
    )
    options = distance, DISTANCE, normalize, reduction, backend, precision, return_stats
    return run("contrastive", params, problem, *options, match=alike)


@documented
def fused_margin_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    match: Tensor | Callable[[Tensor, Tensor], Tensor] | None = None,
    margin: float | Tensor = 0.2,
    beta: float | Tensor = 1.2,
    distance: str = "euclidean",
    normalize: bool = True,
    reduction: str = "mean_nonzero",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Result:
    """Margin loss with a boundary that can be learned (1706.07567, eq. 6).

    Over all triplets (i, p, n), ``[margin + d(i, p) - beta_i]+ + [margin - d(i, n) + beta_i]+``:
    a positive pair counts once for each negative of its anchor, and the other way round.

    Args:
        margin: finite number, in units of the distance.
        beta: the boundary between positive and negative distances: a number, or a floating tensor
            on the device of the embeddings, to which the gradient flows: () or (1,) for one
            boundary, (C,) for one a class, in which case labels must be in 0..C - 1.
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"``.
        {normalize}
        reduction: ``"mean"`` over triplets; ``"mean_nonzero"``: the sum over the number of strictly
            positive hinges of all triplets; ``"sum"``; ``"none"``: (B,), each anchor's mean over
            its triplets.
        {run}

    Returns:
        Agrees with pytorch-metric-learning's ``MarginLoss`` with ``triplets_per_anchor="all"``,
        defaults included.

    Example:
        >>> import torch
        >>> from dmlap_kernels import fused_margin_loss
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> beta = torch.full((4,), 1.2, requires_grad=True)  # a boundary for each class
        >>> fused_margin_loss(embeddings, labels, beta=beta).backward()
        >>> beta.grad.shape
        torch.Size([4])
    """
    given = embeddings, labels, ref_embeddings, ref_labels, self_index, match
    problem, alike = checks.matched_problem(*given)
    if alike is not None and isinstance(beta, Tensor) and beta.numel() > 1:
        checks.classes_given("beta", labels)
    problem = problem.changed(anchor_params=checks.per_anchor("beta", beta, problem))
    options = distance, DISTANCE, normalize, reduction, backend, precision, return_stats
    return run("margin", (checks.number("margin", margin),), problem, *options, match=alike)


@documented
def fused_siglip_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    match: Tensor | Callable[[Tensor, Tensor], Tensor] | None = None,
    scale: float | Tensor = 10.0,
    bias: float | Tensor = -10.0,
    distance: str = "cosine",
    normalize: bool = False,
    reduction: str = "mean",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Result:
    """SigLIP's sigmoid loss (2303.15343, eq. 1).

    Per anchor the sum over P of ``-log sigmoid(scale s + bias)`` and over N of
    ``-log sigmoid(-scale s - bias)``. Every anchor is a term, so that the mean is the sum over all
    pairs by the number of anchors, as in the paper. With images as anchors, their texts as
    references and ``torch.arange`` as both labels it is the paper's loss.

    Args:
        scale: more than 0; the paper's t itself, of which it learns the logarithm.
        bias: finite number, the paper's b; far below 0 where most pairs are negative.
        distance: ``"cosine"`` or ``"dot"``.

    Returns:
        Agrees with open_clip's ``SigLipLoss`` on one device.

    Example:
        >>> import torch
        >>> from dmlap_kernels import fused_siglip_loss
        >>> images, texts = torch.randn(2, 8, 16, requires_grad=True)
        >>> log_scale = torch.tensor(2.3, requires_grad=True)
        >>> bias = torch.tensor(-10.0, requires_grad=True)
        >>> pairs = images, torch.arange(8), texts, torch.arange(8)
        >>> fused_siglip_loss(*pairs, scale=log_scale.exp(), bias=bias).backward()
    """
    given = embeddings, labels, ref_embeddings, ref_labels, self_index, match
    problem, alike = checks.matched_problem(*given)
    scale, bias = operand(checks.number("scale", scale, above=0)), checks.number("bias", bias)
    params = scale, most_similar(distance) + bias / scale
    options = distance, INNER_PRODUCT, normalize, reduction, backend, precision, return_stats
    return run("siglip", params, problem, *options, match=alike)


@documented
def fused_lifted_structure_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    match: Tensor | Callable[[Tensor, Tensor], Tensor] | None = None,
    pos_margin: float | Tensor = 0.0,
    neg_margin: float | Tensor = 1.0,
    form: str = "original",
    distance: str = "euclidean",
    normalize: bool = True,
    reduction: str = "mean",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Result:
    """Lifted structure loss (1511.06452; the generalised form 1703.07737, section 2).

    Original, per positive pair (i, p): ``[log(sum_N(i) e^(neg_margin - d(i, n)) + sum_N(p)
    e^(neg_margin - d(p, n))) + d(i, p) - pos_margin]+ ^ 2 / 2``; the negatives of a reference p are
    the anchors of other labels. Where neither has negatives, as in a batch of one class, the
    logarithm is -inf and the term 0, by the paper's equation 4.
    Generalised, per anchor: ``[log sum_P e^(d - pos_margin) + log sum_N e^(neg_margin - d)]+``,
    where the logarithm of an empty sum counts as 0; every anchor is a term.

    Args:
        pos_margin, neg_margin: finite numbers, in units of the distance.
        form: ``"original"`` or ``"generalized"``.
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"``.

    Returns:
        Agrees with pytorch-metric-learning's ``LiftedStructureLoss``, defaults included, and
        ``GeneralizedLiftedStructureLoss``; of the former without references, as it compares indices
        of anchors with indices of references.

    Example:
        >>> import torch
        >>> from dmlap_kernels import fused_lifted_structure_loss
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> fused_lifted_structure_loss(embeddings, labels, form="generalized").backward()
    """
    given = embeddings, labels, ref_embeddings, ref_labels, self_index, match
    problem, alike = checks.matched_problem(*given)
    checks.choice("form", form, LIFTED_FORMS)
    params = (checks.number("pos_margin", pos_margin), checks.number("neg_margin", neg_margin))
    options = distance, DISTANCE, normalize, reduction, backend, precision, return_stats
    return run(
        "lifted_structure" if form == "generalized" else "lifted_structure_original",
        params,
        problem,
        *options,
        match=alike,
    )
