"""Clustering metrics: how well k-means finds the classes again.

k-means is faiss's, NMI and AMI are scikit-learn's; both are optional dependencies.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels import checks
from dmlap_kernels.evaluation.ranges import check_finite, in_range
from dmlap_kernels.extras import require
from dmlap_kernels.faiss_gpus import gpus
from dmlap_kernels.problem import NONNEGATIVE_DISTANCES

# faiss's own default, so that the numbers are those of pytorch-metric-learning.
SEED = 1234
_ITERATIONS = 20
_PURPOSE = "clustering"


def clustering_metrics(
    embeddings: Tensor,
    labels: Tensor,
    *,
    distance: str = "euclidean",
    normalize: bool = False,
    seed: int = SEED,
) -> dict[str, float]:
    """NMI, F1 and AMI of a k-means clustering into as many clusters as there are classes.

    The protocol of the literature on deep metric learning since "Deep Metric Learning via Lifted
    Structured Feature Embedding" (arXiv 1511.06452): `assign_clusters`, then `compare_clusters`.
    k-means runs on GPUs if faiss has some, the rest on the CPU, in O(N * D) memory but for NMI and
    AMI, which hold the pairs of a class and a cluster that share a row. With the 11,316 test
    classes of Stanford Online Products AMI alone takes 18 seconds of a core.

    Args:
        embeddings: (N, D) floating point, finite.
        labels: (N,) or (N, 1) whole numbers of any dtype, a tensor or a NumPy array.
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"``; rows are L2-normalised for the
            last.
        normalize: L2-normalise the rows for the others too.
        seed: of the centroids to begin with, 0 to 2^31 - 1.

    Returns:
        ``nmi``, ``f1`` and ``ami``: normalised mutual information, F1 of pairs of rows and adjusted
        mutual information, at most 1.

    Raises:
        ValueError, TypeError: naming the argument at fault, and the rows that are not finite.
        MissingExtra: faiss or scikit-learn is not installed.

    Example:
        >>> import torch
        >>> from dmlap_kernels.evaluation import clustering_metrics
        >>> embeddings = torch.tensor([[0.0, 1.0], [0.0, 2.0], [50.0, 0.0], [51.0, 0.0]])
        >>> found = clustering_metrics(embeddings, torch.tensor([5, 5, 8, 8]))
        >>> {name: round(value, 3) for name, value in found.items()}
        {'nmi': 1.0, 'f1': 1.0, 'ami': 1.0}
    """
    checks.embeddings("embeddings", embeddings)
    labels = checks.labels("labels", labels, embeddings, "embeddings")
    checks.choice("distance", distance, NONNEGATIVE_DISTANCES)
    checks.flag("normalize", normalize)
    check_finite("embeddings", embeddings)
    if normalize or distance == "cosine":
        embeddings = in_range(embeddings, None, directions=True, dtype=torch.float32)[0]
        embeddings = F.normalize(embeddings.float(), dim=1)
    # What is missing is said before k-means runs.
    require("sklearn.metrics", purpose=_PURPOSE)
    clusters = torch.unique(labels).numel()
    return compare_clusters(labels, assign_clusters(embeddings, clusters, seed=seed))


def assign_clusters(embeddings: Tensor, clusters: int, *, seed: int = SEED) -> Tensor:
    """The cluster of every row, (N,) int64 on the CPU, by 20 rounds of k-means in float32.

    All rows take part in every round. The same seed gives the same clusters on one machine, but on
    GPUs, which round in another order each time. faiss runs on GPUs if its build has some. Values
    whose squares are too large or too small for float32 are multiplied by a power of two first, the
    same for all.

    Args:
        embeddings: (N, D) floating point, N at least 1, finite.
        clusters: 1..N.
        seed: draws the rows that are the first centroids, 0 to 2^31 - 1.

    Raises:
        ValueError, TypeError: naming the argument at fault, and the rows that are not finite.
        MissingExtra: faiss is not installed.

    Example:
        >>> import torch
        >>> from dmlap_kernels.evaluation import assign_clusters
        >>> clusters = assign_clusters(torch.tensor([[0.0], [1.0], [50.0], [51.0]]), 2)
        >>> bool(clusters[0] == clusters[1]), bool(clusters[0] == clusters[2])
        (True, False)
    """
    checks.embeddings("embeddings", embeddings)
    if not len(embeddings):
        raise ValueError(f"embeddings must have at least one row, got {tuple(embeddings.shape)}")
    clusters = checks.count(
        "clusters", clusters, minimum=1, maximum=len(embeddings), why="the rows"
    )
    seed = checks.count("seed", seed, minimum=0, maximum=2**31 - 1, why="what faiss takes")
    check_finite("embeddings", embeddings)
    faiss = require("faiss", purpose=_PURPOSE, extra="faiss")
    # Of distances that are infinite faiss would end the process.
    embeddings = in_range(embeddings.detach(), None, directions=False, dtype=torch.float32)[0]
    x = embeddings.to("cpu", torch.float32).contiguous().numpy()
    kmeans = faiss.Kmeans(
        x.shape[1],
        clusters,
        niter=_ITERATIONS,
        seed=seed,
        # The defaults warn of fewer rows a cluster than this, and draw a sample from more.
        min_points_per_centroid=1,
        max_points_per_centroid=len(x),
        gpu=gpus(faiss) > 0,
    )
    kmeans.train(x)
    return torch.from_numpy(kmeans.assign(x)[1].astype("int64"))


def compare_clusters(labels: Tensor, clusters: Tensor) -> dict[str, float]:
    """How well clusters agree with classes.

    - ``nmi``: mutual information over the arithmetic mean of the entropies;
    - ``f1``: 2 P R / (P + R) over pairs of rows, P the share of pairs in one cluster that are of
      one class, R the share of pairs of one class that are in one cluster (arXiv 1511.06452);
      1 if there is no pair of either kind;
    - ``ami``: mutual information corrected for chance, over the same mean (Vinh et al., 2010).

    Args:
        labels: (N,) whole numbers of any dtype, a tensor or a NumPy array.
        clusters: (N,) likewise.

    Returns:
        The three by name, at most 1; NMI and F1 at least 0, AMI about 0 for random clusters.

    Raises:
        ValueError, TypeError: the lengths differ or are 0, or these are no labels.
        MissingExtra: scikit-learn is not installed.

    Example:
        >>> import torch
        >>> from dmlap_kernels.evaluation import compare_clusters
        >>> classes, clusters = torch.tensor([0, 0, 1, 1]), torch.tensor([7, 7, 3, 3])
        >>> found = compare_clusters(classes, clusters)
        >>> {name: round(value, 3) for name, value in found.items()}
        {'nmi': 1.0, 'f1': 1.0, 'ami': 1.0}
    """
    labels = checks.data_labels("labels", labels)
    clusters = checks.data_labels("clusters", clusters)
    if labels.ndim != 1 or labels.shape != clusters.shape or not len(labels):
        raise ValueError(
            f"labels and clusters must have the same shape (N,), N at least 1, got "
            f"{tuple(labels.shape)} and {tuple(clusters.shape)}"
        )
    metrics = require("sklearn.metrics", purpose=_PURPOSE)
    pair: tuple[Any, Any] = (labels.numpy(), clusters.numpy())
    return {
        "nmi": float(metrics.normalized_mutual_info_score(*pair)),
        "f1": _pair_f1(labels, clusters),
        "ami": float(metrics.adjusted_mutual_info_score(*pair)),
    }


def _pair_f1(labels: Tensor, clusters: Tensor) -> float:
    both = torch.stack((labels, clusters))  # [2, N]
    shared, of_a_class, of_a_cluster = (
        _pairs(torch.unique(rows, dim=1, return_counts=True)[1])
        for rows in (both, both[:1], both[1:])
    )
    return 2 * shared / (of_a_class + of_a_cluster) if of_a_class + of_a_cluster else 1.0


def _pairs(counts: Tensor) -> int:
    """Unordered pairs within groups of these sizes."""
    return int((counts * (counts - 1) // 2).sum())
