"""Losses between embeddings and proxies, the learnable stand-ins of classes.

Common to them: ``proxies`` (N, D) on the device of the embeddings and ``proxy_labels`` (N,) of any
integer dtype, None for 0..N - 1 in this order. Gradients flow to both tensors. Where the dtypes
differ, as under autocast, both are brought to the wider one.
"""

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
from dmlap_kernels.problem import PairProblem


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
        embeddings, labels, proxies, proxy_labels: see the module's documentation.
        softmax_scale: more than 0.
        distance: ``"sqeuclidean"``, ``"euclidean"``, ``"cosine"`` or ``"dot"``.
        normalize, reduction, backend, precision, return_stats: see `dmlap_kernels.functional`.

    Returns:
        The loss, or (loss, `PairStats`). Agrees with pytorch-metric-learning's ``ProxyNCALoss``.
    """
    problem = checks.proxy_problem(embeddings, labels, proxies, proxy_labels)
    return run_exponents(
        "proxy_nca",
        checks.number("softmax_scale", softmax_scale, above=0),
        problem,
        distance=distance,
        accepted=SIMILARITY,
        normalize=normalize,
        reduction=reduction,
        backend=backend,
        precision=precision,
        return_stats=return_stats,
    )


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
        embeddings, labels, proxies, proxy_labels: see the module's documentation.
        margin: finite number, in units of the similarity.
        alpha: scale of the similarities, more than 0.
        distance: ``"cosine"`` or ``"dot"``.
        normalize, backend, precision, return_stats: see `dmlap_kernels.functional`.
        reduction: likewise; ``"none"`` gives (N,), the sum of both terms of each proxy.

    Returns:
        The loss, or (loss, `PairStats`). Agrees with pytorch-metric-learning's
        ``ProxyAnchorLoss``.
    """
    given = checks.proxy_problem(embeddings, labels, proxies, proxy_labels)
    assert given.y is not None and given.ref_labels is not None
    problem = PairProblem(given.y, given.ref_labels, given.x, given.labels)
    margin = checks.number("margin", margin)
    alpha = checks.number("alpha", alpha, above=0)
    offset = most_similar(distance)
    return run(
        "proxy_anchor",
        (alpha, offset - margin, offset + margin),
        problem,
        distance=distance,
        accepted=INNER_PRODUCT,
        normalize=normalize,
        reduction=reduction,
        backend=backend,
        precision=precision,
        return_stats=return_stats,
    )


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
        embeddings, labels, proxies, proxy_labels: see the module's documentation.
        la: scale of the similarities, more than 0.
        gamma: temperature between the centres of a class, more than 0.
        margin: finite number, in units of the similarity.
        distance: ``"cosine"`` or ``"dot"``.
        normalize, reduction, backend, precision, return_stats: see `dmlap_kernels.functional`.

    Returns:
        The loss, or (loss, `PairStats`). Agrees with pytorch-metric-learning's ``SoftTripleLoss``.
    """
    problem = checks.proxy_problem(embeddings, labels, proxies, proxy_labels)
    params = (
        checks.number("la", la, above=0),
        checks.number("gamma", gamma, above=0),
        checks.number("margin", margin),
    )
    return run(
        "soft_triple",
        params,
        problem,
        distance=distance,
        accepted=INNER_PRODUCT,
        normalize=normalize,
        reduction=reduction,
        backend=backend,
        precision=precision,
        return_stats=return_stats,
    )
