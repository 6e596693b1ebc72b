"""Losses between embeddings and proxies, the learnable stand-ins of classes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels import checks
from dmlap_kernels.functional.documentation import documented
from dmlap_kernels.functional.options import (
    INNER_PRODUCT,
    SIMILARITY,
    Result,
    most_similar,
    operand,
    run,
    run_exponents,
)
from dmlap_kernels.problem import PairProblem

__all__ = [
    "fused_arcface_loss",
    "fused_cosface_loss",
    "fused_proxy_anchor_loss",
    "fused_proxy_nca_loss",
    "fused_soft_triple_loss",
]

_LARGEST_MARGIN = 180.0


@documented
def fused_proxy_nca_loss(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    proxy_labels: Tensor | None = None,
    *,
    softmax_scale: float | Tensor = 1.0,
    distance: str = "sqeuclidean",
    normalize: bool = True,
    reduction: str = "mean",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Result:
    """Proxy-NCA in the softmax form (1703.07464, with the proxy of the label in the denominator).

    Per embedding ``-log(sum_P e^(-softmax_scale d) / sum_(P, N) e^(-softmax_scale d))`` over the
    proxies of its label and all proxies. Embeddings of a label without proxies are left out.

    Args:
        softmax_scale: more than 0.
        distance: ``"sqeuclidean"``, ``"euclidean"``, ``"cosine"`` or ``"dot"``.

    Returns:
        Agrees with pytorch-metric-learning's ``ProxyNCALoss``, defaults included.

    Example:
        >>> import torch
        >>> from dmlap_kernels import fused_proxy_nca_loss
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> proxies = torch.randn(4, 16, requires_grad=True)
        >>> fused_proxy_nca_loss(embeddings, labels, proxies).backward()
        >>> proxies.grad.shape
        torch.Size([4, 16])
    """
    problem = checks.proxy_problem(embeddings, labels, proxies, proxy_labels)
    options = distance, SIMILARITY, normalize, reduction, backend, precision, return_stats
    return run_exponents(
        "proxy_nca", checks.number("softmax_scale", softmax_scale, above=0), problem, *options
    )


@documented
def fused_cosface_loss(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    proxy_labels: Tensor | None = None,
    *,
    scale: float | Tensor = 64.0,
    margin: float | Tensor = 0.35,
    reduction: str = "mean",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Result:
    """CosFace (1801.09414, eq. 4): cross entropy over classes, the margin on the cosine.

    Per embedding ``-log(sum_P e^(scale (s - margin)) / (sum_P e^(scale (s - margin)) + sum_N
    e^(scale s)))`` over the proxies of its label and all others, s being cosines. A class usually
    has one proxy, its weights. Embeddings of a label without proxies are left out.

    Args:
        scale: of the cosines, more than 0.
        margin: finite number, in units of the cosine.
        {reduction}
        {run}
            Distances in them are cosine ones.

    Returns:
        Agrees with pytorch-metric-learning's ``CosFaceLoss``, defaults included.

    Example:
        >>> import torch
        >>> from dmlap_kernels import fused_cosface_loss
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> proxies = torch.randn(4, 16, requires_grad=True)
        >>> fused_cosface_loss(embeddings, labels, proxies, scale=30.0).backward()
        >>> proxies.grad.shape
        torch.Size([4, 16])
    """
    problem = checks.proxy_problem(embeddings, labels, proxies, proxy_labels)
    params = checks.number("scale", scale, above=0), checks.number("margin", margin)
    options = "cosine", SIMILARITY, False, reduction, backend, precision, return_stats
    return run("cosface", params, problem, *options)


@documented
def fused_arcface_loss(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    proxy_labels: Tensor | None = None,
    *,
    scale: float | Tensor = 64.0,
    margin: float | Tensor = 28.6,
    reduction: str = "mean",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Result:
    """ArcFace (1801.07698, eq. 3): cross entropy over classes, the margin on the angle.

    Per embedding ``-log(e^(scale cos(t + margin)) / (e^(scale cos(t + margin)) + sum_N
    e^(scale s)))``, where t is the angle to the proxy of its label, its class's weights, and s are
    the cosines with all others. Where t + margin is beyond 180 degrees, and its cosine would rise
    again, ``cos t - margin sin(margin)``, the margin in radians, takes its place, as in the
    authors' code. Of several proxies of a label, cos t is the logarithm of their mean
    ``e^(scale s)`` by scale, and their number is a factor of the exponential. Embeddings of a label
    without proxies are left out.

    Args:
        scale: of the cosines, more than 0.
        margin: in degrees, in 0..180.
        {reduction}
        {run}
            Distances in them are cosine ones.

    Returns:
        Agrees with pytorch-metric-learning's ``ArcFaceLoss``, defaults included. Where an embedding
        points where its proxy does, the angle has no slope: the gradient by it is 0 here.

    Example:
        >>> import torch
        >>> from dmlap_kernels import fused_arcface_loss
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> proxies = torch.randn(4, 16, requires_grad=True)
        >>> fused_arcface_loss(embeddings, labels, proxies, scale=30.0).backward()
        >>> proxies.grad.shape
        torch.Size([4, 16])
    """
    problem = checks.proxy_problem(embeddings, labels, proxies, proxy_labels)
    degrees = operand(checks.number("margin", margin, minimum=0, maximum=_LARGEST_MARGIN))
    angle = degrees * (math.pi / 180)
    of: Any = torch if isinstance(angle, Tensor) else math
    cos_margin, sin_margin = of.cos(angle), of.sin(angle)
    params = checks.number("scale", scale, above=0), cos_margin, sin_margin, angle * sin_margin
    options = "cosine", SIMILARITY, False, reduction, backend, precision, return_stats
    return run("arcface", params, problem, *options)


@documented
def fused_proxy_anchor_loss(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    proxy_labels: Tensor | None = None,
    *,
    margin: float | Tensor = 0.1,
    alpha: float | Tensor = 32.0,
    distance: str = "cosine",
    normalize: bool = False,
    reduction: str = "mean",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Result:
    """Proxy-Anchor (2003.13911, eq. 4).

    Per proxy with embeddings of its label ``log(1 + sum_P e^(-alpha (s - margin)))``, and per proxy
    ``log(1 + sum_N e^(alpha (s + margin)))``: two groups of terms. The proxies are the anchors.

    Args:
        margin: finite number, in units of the similarity.
        alpha: scale of the similarities, more than 0.
        distance: ``"cosine"`` or ``"dot"``.
        {normalize}
        reduction: ``"mean"`` over the terms of the batch; ``"mean_nonzero"``: the sum of the terms
            greater than 0 over their number; ``"sum"``; ``"none"``: (N,), the sum of both terms of
            each proxy. The two groups of terms are reduced apart, and added.
        {run}

    Returns:
        Agrees with pytorch-metric-learning's ``ProxyAnchorLoss``, defaults included.

    Example:
        >>> import torch
        >>> from dmlap_kernels import fused_proxy_anchor_loss
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> proxies = torch.randn(4, 16, requires_grad=True)
        >>> fused_proxy_anchor_loss(embeddings, labels, proxies).backward()
        >>> proxies.grad.shape
        torch.Size([4, 16])
    """
    given = checks.proxy_problem(embeddings, labels, proxies, proxy_labels)
    assert given.y is not None and given.ref_labels is not None
    problem = PairProblem(given.y, given.ref_labels, given.x, given.labels)
    margin = operand(checks.number("margin", margin))
    alpha = checks.number("alpha", alpha, above=0)
    offset = most_similar(distance)
    options = distance, INNER_PRODUCT, normalize, reduction, backend, precision, return_stats
    return run("proxy_anchor", (alpha, offset - margin, offset + margin), problem, *options)


@documented
def fused_soft_triple_loss(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    proxy_labels: Tensor | None = None,
    *,
    la: float | Tensor = 20.0,
    gamma: float | Tensor = 0.1,
    margin: float | Tensor = 0.01,
    distance: str = "cosine",
    normalize: bool = False,
    reduction: str = "mean",
    backend: str = "auto",
    precision: str | None = None,
    return_stats: bool | str = False,
) -> Result:
    """SoftTriple loss without its regulariser (1909.05235, eq. 8).

    The similarity of an embedding to a class, which has one or several proxies (its centres), is
    ``S_c = sum_k softmax_k(s_k / gamma) s_k``. Per embedding of label a the cross entropy of
    ``la (S_c - margin [c = a])`` over the classes. Embeddings of a label without proxies are left
    out.

    Args:
        la: scale of the similarities, more than 0.
        gamma: temperature between the centres of a class, more than 0.
        margin: finite number, in units of the similarity.
        distance: ``"cosine"`` or ``"dot"``.

    Returns:
        Agrees with pytorch-metric-learning's ``SoftTripleLoss``, defaults included.

    Example:
        >>> import torch
        >>> from dmlap_kernels import fused_soft_triple_loss
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> proxies = torch.randn(4, 16, requires_grad=True)
        >>> fused_soft_triple_loss(embeddings, labels, proxies).backward()
        >>> proxies.grad.shape
        torch.Size([4, 16])
    """
    problem = checks.proxy_problem(embeddings, labels, proxies, proxy_labels)
    params = (
        checks.number("la", la, above=0),
        checks.number("gamma", gamma, above=0),
        checks.number("margin", margin),
    )
    options = distance, INNER_PRODUCT, normalize, reduction, backend, precision, return_stats
    return run("soft_triple", params, problem, *options)
