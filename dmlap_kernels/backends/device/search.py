"""Nearest references and hard classes."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels.backends.device.packing import pack_rows
from dmlap_kernels.backends.device.sweeps import Sweeps
from dmlap_kernels.problem import HardClasses, Nearest

# Neighbours and hard classes are to be exact, whatever products of matrices elsewhere may be.
_PRECISION = "highest"
# Pairs of classes whose scores are held at once; fewer on the CPU, where a launch costs little.
_SCORES = 1 << 22
_SCORES_ON_CPU = 1 << 19


def nearest(
    sweeps: Sweeps, queries: Tensor, refs: Tensor | None, k: int, distance: str, normalize: bool
) -> Nearest:
    labels = _one_class(queries), None if refs is None else _one_class(refs)
    how = distance, normalize, _PRECISION
    sides = pack_rows(queries, refs, labels, *how, each_by_itself=True)
    return Nearest(*sweeps.nearest(sides, k))


def hard_classes(
    sweeps: Sweeps,
    rows: Tensor,
    labels: Tensor,
    k: int,
    margin: float,
    distance: str,
    normalize: bool,
) -> HardClasses:
    """Some classes against all, block by block. Waits for the device, to know the classes."""
    how = distance, normalize, _PRECISION
    sides = pack_rows(rows, None, (labels, None), *how, each_by_itself=True)
    classes, sizes = torch.unique_consecutive(labels[sides.order_x], return_counts=True)
    ends = sizes.cumsum(0)
    last_rows = [0, *ends.tolist()]
    count = len(classes)
    held = min(_SCORES, _SCORES_ON_CPU) if rows.device.type == "cpu" else _SCORES
    step = max(1, held // count)
    # Filled in place: small tensors kept between the large ones of successive blocks would leave
    # the allocator with holes of no use.
    found = HardClasses(
        classes,
        classes.new_empty(count, k),
        sides.x.new_empty(count, k),
        sides.x.new_empty(count, k),
    )
    for top in range(0, count, step):
        bottom = min(top + step, count)
        begin, end = last_rows[top], last_rows[bottom]
        # Positive pairs do not count here, so neither does the pair of a row with itself.
        block = sides._replace(
            x=sides.x[begin:end],
            x_norms=sides.x_norms[begin:end],
            first=sides.first[begin:end],
            last=sides.last[begin:end],
            labels_x=sides.labels_x[begin:end],
            self_case=False,
        )
        bounds = torch.full_like(block.x_norms, margin)
        sums, smallest = sweeps.class_scores(block, bounds, ends[top:bottom] - begin, ends)
        scores = sums / torch.outer(sizes[top:bottom], sizes)
        own = torch.arange(top, bottom, device=rows.device)[:, None]
        scores.scatter_(1, own, -1)
        best = _hardest(scores, smallest)[:, :k]
        found.neighbors[top:bottom] = classes[best]
        found.scores[top:bottom] = scores.gather(1, best)
        found.distances[top:bottom] = smallest.gather(1, best)
    return found


def _one_class(rows: Tensor) -> Tensor:
    return torch.zeros(rows.shape[0], dtype=torch.int64, device=rows.device)


def _hardest(scores: Tensor, smallest: Tensor) -> Tensor:
    """The columns of each row as scores fall, and where these are equal as distances rise."""
    by_distance = torch.sort(smallest, dim=1, stable=True).indices
    ranked = torch.sort(scores.gather(1, by_distance), dim=1, descending=True, stable=True).indices
    return by_distance.gather(1, ranked)
