"""Exact nearest neighbours and hard classes, without distance matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels import checks
from dmlap_kernels.backends import registry
from dmlap_kernels.problem import NONNEGATIVE_DISTANCES, HardClasses, Nearest


def nearest(
    queries: Tensor,
    references: Tensor | None = None,
    k: int = 1,
    *,
    distance: str = "euclidean",
    normalize: bool = False,
    self_index: Tensor | None = None,
    backend: str = "auto",
) -> Nearest:
    """The ``k`` nearest references of every query, exactly, in O((Q + N) * D + Q * k) memory.

    Args:
        queries: (Q, D) of float32, float64, float16 or bfloat16.
        references: (N, D) on the same device; of two dtypes the wider one counts for both. None
            for the queries themselves, in which case a row is never its own neighbour.
        k: 1..N; 1..N - 1 with ``self_index``, 1..Q - 1 without references.
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"`` (1 - cos).
        normalize: L2-normalise the rows first.
        self_index: (Q,) of any integer dtype: for each query the index of the reference that is
            the query itself, which is then not among its neighbours; -1 for none. Without it a
            query that lies among the references is its own nearest neighbour.
        backend: ``"auto"``, or one of ``"cpu"``, ``"torch"``, ``"triton"``, ``"cuda"``; ``dmlap
            info`` lists those that run here.

    Returns:
        `Nearest`: distances (Q, k) in ascending order (float64 for float64, else float32) and
        int64 indices (Q, k); ties go to the lower index, distances that are not numbers to the
        end. No gradient.

    Raises:
        ValueError, TypeError: an argument is not as above; the message names it.

    Example:
        >>> import torch
        >>> from dmlap_kernels import nearest
        >>> gallery = torch.tensor([[0.0], [1.0], [3.0]])
        >>> nearest(torch.tensor([[0.9]]), gallery, k=2).indices
        tensor([[1, 0]])
        >>> nearest(gallery, k=1).indices[:, 0]  # each row's nearest other
        tensor([1, 0, 1])
    """
    checks.embeddings("queries", queries)
    candidates, why = queries.shape[0] - 1, "the other queries"
    if references is not None:
        checks.embeddings("references", references)
        checks.same_kind("references", references, queries, "queries")
        queries, references = checks.promoted(queries, references)
        candidates, why = references.shape[0], "the number of references"
    itself = checks.self_index(self_index, queries, references, "queries", "references")
    if itself is not None:
        candidates, why = candidates - 1, "the number of references but the query itself"
    k = checks.count("k", k, minimum=1, maximum=candidates, why=why)
    checks.choice("distance", distance, NONNEGATIVE_DISTANCES)
    checks.flag("normalize", normalize)
    checks.choice("backend", backend, registry.NAMES)
    runner = registry.choose(backend, None, queries, references)
    with torch.no_grad():
        if itself is None:
            return runner.nearest(queries, references, k, distance, normalize)
        one_more = runner.nearest(queries, references, k + 1, distance, normalize)
        return _without(one_more, itself)


def _without(found: Nearest, itself: Tensor) -> Nearest:
    """One neighbour less: the query itself, or the last where it is not among them."""
    # Nearly always it is the first, and the rest need not be gathered.
    distances, indices = found.distances[:, 1:], found.indices[:, 1:]
    rows = (found.indices[:, 0] != itself).nonzero().flatten()
    if len(rows):
        distances, indices = distances.contiguous(), indices.contiguous()
        is_self = found.indices[rows] == itself[rows, None]
        is_self[:, -1] |= ~is_self.any(1)
        shape = len(rows), indices.shape[1]
        distances[rows] = found.distances[rows][~is_self].view(shape)
        indices[rows] = found.indices[rows][~is_self].view(shape)
    return Nearest(distances, indices)


def hard_classes(
    representatives: Tensor,
    labels: Tensor,
    k: int,
    *,
    margin: float = 1.0,
    distance: str = "euclidean",
    normalize: bool = False,
    backend: str = "auto",
) -> HardClasses:
    """For every class its ``k`` hardest others, without the C x C matrix.

    The score of two classes is the mean over their pairs of ``[margin - d]+``; equal scores are
    ordered by the smallest distance between the classes, then by the lower label. With one
    representative a class the order is that of the distances, whatever the margin.

    Args:
        representatives: (R, D) of float32, float64, float16 or bfloat16, one or several rows a
            class.
        labels: (R,) or (R, 1), a whole number a row, of any integer dtype, bool, or floats without
            a fraction; a tensor or a NumPy array.
        k: 1..C - 1 for C classes.
        margin: finite number, in units of the distance.
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"`` (1 - cos).
        normalize: L2-normalise the rows first.
        backend: ``"auto"``, or one of ``"cpu"``, ``"torch"``, ``"triton"``, ``"cuda"``; ``dmlap
            info`` lists those that run here.

    Returns:
        `HardClasses`: classes (C,) in ascending order; neighbors (C, k), labels, hardest first;
        scores and smallest distances (C, k). No gradient.

    Raises:
        ValueError, TypeError: an argument is not as above; the message names it.

    Example:
        >>> import torch
        >>> from dmlap_kernels import hard_classes
        >>> representatives = torch.tensor([[0.0], [1.0], [1.5], [9.0]])
        >>> hard_classes(representatives, torch.tensor([0, 1, 2, 3]), k=1).neighbors[:, 0]
        tensor([1, 2, 1, 2])
    """
    checks.embeddings("representatives", representatives)
    checks.with_data("representatives", representatives)
    labels = checks.labels("labels", labels, representatives, "representatives")
    others = torch.unique(labels).numel() - 1
    k = checks.count("k", k, minimum=1, maximum=others, why="the number of other classes")
    margin = float(checks.constant("margin", margin))
    checks.choice("distance", distance, NONNEGATIVE_DISTANCES)
    checks.flag("normalize", normalize)
    checks.choice("backend", backend, registry.NAMES)
    runner = registry.choose(backend, None, representatives)
    with torch.no_grad():
        return runner.hard_classes(representatives, labels, k, margin, distance, normalize)
