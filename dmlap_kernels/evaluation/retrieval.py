"""Retrieval metrics on the fused `nearest`, and on request those of clustering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels import checks
from dmlap_kernels.evaluation.clustering import clustering_metrics
from dmlap_kernels.mining import nearest

_ROWS_AT_ONCE = 4096


def retrieval_metrics(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    distance: str = "euclidean",
    normalize: bool = False,
    backend: str = "auto",
    clustering: bool = False,
) -> dict[str, float]:
    """Recall@K, R-precision and MAP@R of retrieval by distance; NMI, F1 and AMI of clusters.

    Every row of ``embeddings`` is a query. Its R relevant references are those of its label;
    queries without any are left out of every mean. Definitions of "A Metric Learning Reality Check"
    (arXiv 2003.08505, section 4.3):

    - ``recall@K``: share of queries with a relevant reference among the K nearest;
    - ``r_precision``: share of relevant references among the R nearest, mean over queries;
    - ``map@r``: mean over queries of 1/R sum over i = 1..R of P(i) [reference i is relevant], P(i)
      the share of relevant references among the i nearest;
    - ``nmi``, ``f1``, ``ami`` with ``clustering``: of the queries alone, as in
      `dmlap_kernels.evaluation.clustering_metrics`.

    Takes O(N k) memory for k the largest of ``ks`` and R.

    Args:
        embeddings: (N, D) floating point queries.
        labels: (N,) integers.
        ref_embeddings: (M, D) references. Default: the queries themselves, none of which retrieves
            itself.
        ref_labels: (M,) integers.
        ks: values of K; with fewer than K references, all of them are looked at.
        distance, normalize, backend: as in `dmlap_kernels.nearest`.
        clustering: also cluster the queries; on the CPU, and not quickly where classes are many.

    Returns:
        The metrics by name, in the order above, between 0 and 1 (AMI: at most 1).

    Raises:
        TypeError, ValueError: bad input, or no query has a relevant reference.
        MissingExtra: ``clustering`` without faiss or scikit-learn.
    """
    problem = checks.pair_problem(embeddings, labels, ref_embeddings, ref_labels)
    ks = _checked_ks(ks)
    references, reference_labels = problem.ref_side
    self_case = problem.y is None
    relevant = _count_relevant(problem.labels, reference_labels) - int(self_case)
    valid = relevant > 0
    if not bool(valid.any()):
        raise ValueError("labels must give at least one query a relevant reference, got none")
    # First, since it may refuse.
    clusters: dict[str, float] = {}
    if checks.flag("clustering", clustering):
        options: dict[str, Any] = {"distance": distance, "normalize": normalize}
        clusters = clustering_metrics(problem.x, problem.labels, **options)
    candidates = len(references) - int(self_case)
    k = min(max(*ks, int(relevant.max())), candidates)
    found = nearest(
        problem.x, problem.y, k, distance=distance, normalize=normalize, backend=backend
    ).indices
    totals: dict[str, float] = {}
    for rows in valid.nonzero().flatten().split(_ROWS_AT_ONCE):
        hits = reference_labels[found[rows]] == problem.labels[rows, None]  # [Q, k]
        for name, values in _query_metrics(hits, relevant[rows], ks).items():
            totals[name] = totals.get(name, 0.0) + values.sum(dtype=torch.float64).item()
    count = int(valid.sum())
    return {name: total / count for name, total in totals.items()} | clusters


def _query_metrics(hits: Tensor, relevant: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
    """The metrics (Q,) of each query; hits (Q, k) by rank, relevant (Q,)."""
    rank = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    among_r = hits & (rank <= relevant[:, None])
    precision = hits.cumsum(1, dtype=torch.float64) / rank
    metrics = {f"recall@{k}": hits[:, :k].any(1) for k in ks}
    return metrics | {
        "r_precision": among_r.sum(1) / relevant.double(),
        "map@r": (precision * among_r).sum(1) / relevant,
    }


def _count_relevant(labels: Tensor, reference_labels: Tensor) -> Tensor:
    """Number of references with each query's label, (N,) int64."""
    values, counts = torch.unique(reference_labels, return_counts=True)
    if not len(values):
        return torch.zeros_like(labels)
    # Of labels with gaps between them torch would warn.
    position = torch.searchsorted(values, labels.contiguous()).clamp_(max=len(values) - 1)
    return counts[position] * (values[position] == labels)


def _checked_ks(ks: Any) -> tuple[int, ...]:
    if isinstance(ks, int):
        ks = (ks,)
    ks = tuple(ks)
    if not ks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ks):
        raise ValueError(f"ks must be one or more positive integers, got {ks!r}")
    return ks
