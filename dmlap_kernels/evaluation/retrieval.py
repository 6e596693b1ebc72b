"""Retrieval metrics on the fused `nearest`, and on request those of clustering."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from dmlap_kernels import checks
from dmlap_kernels.evaluation.clustering import clustering_metrics
from dmlap_kernels.evaluation.ranges import check_finite, in_range
from dmlap_kernels.mining import nearest

# Metrics of queries, and those of clusters of them.
AT_K = ("recall", "precision", "mrr", "map")
AT_R = ("r_precision", "map@r")
CLUSTERING = ("nmi", "f1", "ami")
METRICS = (*AT_K, *AT_R, *CLUSTERING)
AVERAGES = ("micro", "macro")

# Neighbours that are looked at together: about 50 bytes each.
_NEIGHBORS_AT_ONCE = 2**20


@overload
def retrieval_metrics(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = ...,
    ref_labels: Tensor | None = ...,
    *,
    ks: Sequence[int] | int = ...,
    metrics: Sequence[str] | str = ...,
    average: Literal["micro", "macro"] = ...,
    self_index: Tensor | None = ...,
    ref_includes_query: bool = ...,
    distance: str = ...,
    normalize: bool = ...,
    backend: str = ...,
    clustering: bool = ...,
) -> dict[str, float]: ...


@overload
def retrieval_metrics(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = ...,
    ref_labels: Tensor | None = ...,
    *,
    ks: Sequence[int] | int = ...,
    metrics: Sequence[str] | str = ...,
    average: None,
    self_index: Tensor | None = ...,
    ref_includes_query: bool = ...,
    distance: str = ...,
    normalize: bool = ...,
    backend: str = ...,
    clustering: bool = ...,
) -> dict[str, dict[int, float]]: ...


def retrieval_metrics(
    embeddings: Tensor,
    labels: Tensor,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ks: Sequence[int] | int = (1, 2, 4, 8),
    metrics: Sequence[str] | str = ("recall", "r_precision", "map@r"),
    average: Literal["micro", "macro"] | None = "micro",
    self_index: Tensor | None = None,
    ref_includes_query: bool = False,
    distance: str = "euclidean",
    normalize: bool = False,
    backend: str = "auto",
    clustering: bool = False,
) -> dict[str, float] | dict[str, dict[int, float]]:
    """Recall@K, R-precision, MAP@R and more of retrieval by distance; NMI, F1 and AMI of clusters.

    Every row of ``embeddings`` is a query. Its R relevant references are those of its label;
    queries without any are left out of every mean. Where the queries are among the references, say
    so by ``ref_includes_query`` or ``self_index``: otherwise each of them finds itself first, its
    Recall@1 is 1, and it counts among its own relevant references.

    ``metrics`` are named as follows, most as in "A Metric Learning Reality Check" (arXiv
    2003.08505, section 4.3); the names on the right are those of `AccuracyCalculator` of
    pytorch-metric-learning:

    - ``recall``, as ``recall@K`` for each K: share of queries with a relevant reference among the K
      nearest (``recall@1``: precision_at_1);
    - ``precision``, as ``precision@K``: share of relevant references among the K nearest;
    - ``mrr``, as ``mrr@K``: mean of 1 / rank of the nearest relevant reference, 0 if it is not
      among the K nearest (K = the number of references: mean_reciprocal_rank);
    - ``map``, as ``map@K``: mean over queries of 1/min(R, K) sum over i = 1..K of P(i) [reference i
      is relevant], P(i) the share of relevant references among the i nearest (K = the number of
      references: mean_average_precision);
    - ``r_precision``: share of relevant references among the R nearest (r_precision);
    - ``map@r``: ``map`` with K = R for each query (mean_average_precision_at_r);
    - ``nmi``, ``f1``, ``ami``: normalised mutual information, F1 of pairs and adjusted mutual
      information of the classes and k-means clusters, as many, of the queries alone (NMI, AMI).

    Takes O(N D) memory and about 50 MB more, whatever the sizes of the classes; where K or R is
    beyond a million, as much per neighbour of one query.

    Args:
        embeddings: (N, D) floating point queries, finite.
        labels: (N,) or (N, 1) whole numbers of any dtype, a tensor or a NumPy array.
        ref_embeddings: (M, D) references, finite. Default: the queries themselves, none of which
            retrieves itself.
        ref_labels: (M,) likewise.
        ks: values of K, or one: positive integers in any order, each of which is reported once;
            with fewer than K references, all of them are looked at.
        metrics: what to compute, in the order of the result.
        average: ``"micro"``, the mean over queries; ``"macro"``, the mean over classes of their
            means over queries (avg_of_avgs), so that each class weighs the same; None: no mean over
            classes, but a dictionary from labels to the means of their queries for each metric.
            Clusters have no such values.
        self_index: (N,) integers, for each query the index of the reference that is the query
            itself, -1 for none: that pair is left out of everything.
        ref_includes_query: the first N references are the queries, in their order, and are left
            out likewise.
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"`` (1 - cos).
        normalize: L2-normalise the rows first.
        backend: ``"auto"`` or a backend by name.
        clustering: add the metrics of clusters, which run on the CPU, and not quickly where classes
            are many.

    Returns:
        The metrics by name, in the order of ``metrics`` and of ``ks``, between 0 and 1 (AMI: at
        most 1).

    Raises:
        TypeError, ValueError: bad input, values that are not finite, or no query has a relevant
            reference.
        MissingExtra: clusters without faiss or scikit-learn.

    Example:
        >>> import torch
        >>> from dmlap_kernels.evaluation import retrieval_metrics
        >>> embeddings = torch.tensor([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0], [0.0, 1.5]])
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> retrieval_metrics(embeddings, labels, ks=(1, 2))
        {'recall@1': 0.5, 'recall@2': 0.75, 'r_precision': 0.5, 'map@r': 0.5}
        >>> retrieval_metrics(embeddings, labels, metrics="mrr", ks=3, average=None)
        {'mrr@3': {0: 0.75, 1: 0.6666666666666666}}
        >>> queries = embeddings[:2], labels[:2]  # looked up among all four, but not themselves
        >>> retrieval_metrics(*queries, embeddings, labels, ks=1, ref_includes_query=True)
        {'recall@1': 0.5, 'r_precision': 0.5, 'map@r': 0.5}
    """
    problem = checks.pair_problem(embeddings, labels, ref_embeddings, ref_labels)
    ks = _checked_ks(ks)
    chosen = _checked_metrics(metrics, checks.flag("clustering", clustering))
    if average is not None:
        checks.choice("average", average, AVERAGES)
    elif set(chosen) & set(CLUSTERING):
        raise ValueError(
            "average must be 'micro' or 'macro' with metrics of clusters, of which classes have "
            "none, got None"
        )
    itself = _itself(problem, self_index, checks.flag("ref_includes_query", ref_includes_query))
    check_finite("embeddings", problem.x)
    if problem.y is not None:
        check_finite("ref_embeddings", problem.y)
    relevant = _count_relevant(problem, itself)
    if not bool((relevant > 0).any()) and not set(chosen) <= set(CLUSTERING):
        raise ValueError("labels must give at least one query a relevant reference, got none")
    # First, since it may refuse.
    clusters: dict[str, float] = {}
    if set(chosen) & set(CLUSTERING):
        clusters = clustering_metrics(
            problem.x, problem.labels, distance=distance, normalize=normalize
        )
    if set(chosen) <= set(CLUSTERING):
        return {name: clusters[name] for name in chosen}
    directions = normalize is True or distance == "cosine"
    x, y = in_range(
        problem.x.detach(),
        None if problem.y is None else problem.y.detach(),
        directions=directions,
    )
    if y is None:
        y, itself = x, torch.arange(len(x), device=x.device)
    ref_side_labels = problem.ref_side[1]
    search = _Search(x, problem.labels, y, ref_side_labels, itself, relevant, ks, chosen)
    options: dict[str, Any] = {"distance": distance, "normalize": normalize, "backend": backend}
    values = search.of_queries(options)
    found = _averaged(values, problem.labels[relevant > 0].cpu(), average)
    if average is None:
        return found
    return {
        name: clusters[name] if name in CLUSTERING else found[name]
        for metric in chosen
        for name in _names(metric, ks)
    }


@dataclass(frozen=True)
class _Search:
    """Queries x (N, D) and what is looked up.

    Attributes:
        itself: (N,) the reference that is the query, -1 for none; None: none for all.
        relevant: (N,) number of relevant references.
    """

    x: Tensor
    labels: Tensor
    references: Tensor
    ref_labels: Tensor
    itself: Tensor | None
    relevant: Tensor
    ks: tuple[int, ...]
    metrics: tuple[str, ...]

    def of_queries(self, options: dict[str, Any]) -> dict[str, Tensor]:
        """Every metric of each query with a relevant reference, float64 on the CPU."""
        values: dict[str, Tensor] = {}
        for rows, k in self._blocks():
            itself = None if self.itself is None or self.itself[rows[0]] < 0 else self.itself[rows]
            found = nearest(self.x[rows], self.references, k, self_index=itself, **options).indices
            hits = self.ref_labels[found] == self.labels[rows, None]  # [block, k]
            del found
            metrics = _query_metrics(hits, self.relevant[rows], self.ks, self.metrics)
            for name, part in metrics.items():
                whole = values.setdefault(
                    name, torch.empty(len(self.x), dtype=torch.float64, device="cpu")
                )
                whole[rows.cpu()] = part.double().cpu()
        valid = (self.relevant > 0).cpu()
        return {name: whole[valid] for name, whole in values.items()}

    def _blocks(self) -> Iterator[tuple[Tensor, int]]:
        """Queries of about as many relevant references, and how many neighbours they need.

        All queries of a block are among the references, or none is: the latter have one more.
        """
        needed = max((k for k in self.ks if set(self.metrics) & set(AT_K)), default=1)
        alone = torch.ones_like(self.relevant, dtype=torch.bool)
        among = torch.zeros_like(alone) if self.itself is None else self.itself >= 0
        for group in (among, alone & ~among):
            rows = (group & (self.relevant > 0)).nonzero().flatten()
            rows = rows[self.relevant[rows].argsort(descending=True, stable=True)]
            counts = self.relevant[rows].tolist()
            candidates = len(self.references) - int(group is among)
            start = 0
            while start < len(rows):
                k = min(max(needed, counts[start]), candidates)
                end = start + max(1, _NEIGHBORS_AT_ONCE // k)
                yield rows[start:end], k
                start = end


def _query_metrics(
    hits: Tensor, relevant: Tensor, ks: Sequence[int], metrics: Sequence[str]
) -> dict[str, Tensor]:
    """The metrics (Q,) of each query; hits (Q, k) by rank, relevant (Q,)."""
    rank = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    so_far = hits.cumsum(1, dtype=torch.float64)  # [Q, k]
    # P(i) [reference i is relevant]
    gains = (so_far / rank).mul_(hits) if {"map", "map@r"} & set(metrics) else so_far
    found: dict[str, Tensor] = {}
    for metric in metrics:
        for name, wanted in zip(_names(metric, ks), ks, strict=False):
            k = min(wanted, hits.shape[1])
            if metric == "recall":
                found[name] = so_far[:, k - 1] > 0
            elif metric == "precision":
                found[name] = so_far[:, k - 1] / k
            elif metric == "mrr":
                found[name] = (hits[:, :k] / rank[:k].double()).amax(1)
            elif metric == "map":
                found[name] = gains[:, :k].sum(1) / relevant.clamp(max=k)
            elif metric == "r_precision":
                found[name] = so_far.gather(1, relevant[:, None] - 1)[:, 0] / relevant
            elif metric == "map@r":
                found[name] = gains.masked_fill(rank > relevant[:, None], 0).sum(1) / relevant
    return found


def _averaged(values: dict[str, Tensor], labels: Tensor, average: str | None) -> dict[str, Any]:
    """Means over queries, over means of classes, or those of each class by label."""
    if average == "micro":
        return {name: float(each.mean()) for name, each in values.items()}
    classes, position, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    means = {
        name: torch.zeros(len(classes), dtype=torch.float64, device="cpu").index_add_(
            0, position, each
        )
        / counts
        for name, each in values.items()
    }
    if average == "macro":
        return {name: float(of_classes.mean()) for name, of_classes in means.items()}
    names = classes.tolist()
    return {name: dict(zip(names, m.tolist(), strict=True)) for name, m in means.items()}


def _itself(problem: Any, self_index: Any, ref_includes_query: bool) -> Tensor | None:
    """For each query the reference that is the query, -1 for none; None if there are none."""
    x, y = problem.x, problem.y
    if not ref_includes_query:
        itself = checks.self_index(self_index, x, y, "embeddings", "ref_embeddings")
        if itself is not None and itself.device.type != "cpu":
            # Looked at here, where the labels at these places are looked at, too.
            rows, refs = (torch.empty(1, device="cpu").expand(len(each), 1) for each in (x, y))
            checks.self_index(itself.cpu(), rows, refs, "embeddings", "ref_embeddings")
        return itself
    if self_index is not None:
        raise ValueError("ref_includes_query must be False with self_index, which says as much")
    if y is None:
        raise ValueError(
            "ref_includes_query must be False without ref_embeddings: a query is then never its "
            "own reference"
        )
    if len(y) < len(x):
        raise ValueError(
            f"ref_embeddings must begin with the {len(x)} queries as ref_includes_query says, got "
            f"{len(y)} rows"
        )
    differ = (problem.ref_labels[: len(x)] != problem.labels).nonzero().flatten()
    if len(differ):
        row = int(differ[0])
        raise ValueError(
            "ref_labels must begin with the labels of the queries as ref_includes_query says, got "
            f"{int(problem.ref_labels[row])} for query {row} of label {int(problem.labels[row])}"
        )
    return torch.arange(len(x), device=x.device)


def _count_relevant(problem: Any, itself: Tensor | None) -> Tensor:
    """Number of references with each query's label but the query itself, (N,) int64."""
    labels, ref_labels = problem.labels, problem.ref_side[1]
    values, counts = torch.unique(ref_labels, return_counts=True)
    if not len(values):
        return torch.zeros_like(labels)
    # Of labels with gaps between them torch would warn.
    position = torch.searchsorted(values, labels.contiguous()).clamp_(max=len(values) - 1)
    relevant = counts[position] * (values[position] == labels)
    if problem.y is None:
        return relevant - 1
    if itself is None:
        return relevant
    return relevant - ((itself >= 0) & (ref_labels[itself.clamp(min=0)] == labels)).long()


def _names(metric: str, ks: Sequence[int]) -> list[str]:
    return [f"{metric}@{k}" for k in ks] if metric in AT_K else [metric]


def _checked_metrics(metrics: Any, clustering: bool) -> tuple[str, ...]:
    try:
        chosen = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    except TypeError as error:
        raise TypeError(f"metrics must be names, got {checks.describe(metrics)}") from error
    if not chosen and not clustering:
        raise ValueError(f"metrics must be one or more of {', '.join(METRICS)}, got none")
    for metric in chosen:
        checks.choice("metrics", metric, METRICS)
    return tuple(dict.fromkeys((*chosen, *(CLUSTERING if clustering else ()))))


def _checked_ks(ks: Any) -> tuple[int, ...]:
    """``ks`` as integers, each once."""
    given: list[Any]
    try:
        given = [ks] if isinstance(ks, str) else list(ks)
    except TypeError:  # one number, perhaps in a tensor or an array
        given = [ks]
    found = []
    for k in given:
        found.append(checks.integer(k) or 0)
    if not found or min(found) < 1:
        raise ValueError(f"ks must be one or more positive integers, got {ks!r}")
    return tuple(dict.fromkeys(found))
