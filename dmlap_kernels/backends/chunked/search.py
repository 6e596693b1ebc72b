"""Nearest references and hard classes, block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels.backends.chunked.blocks import (
    anchor_blocks,
    distances,
    in_label_order,
    ready,
)
from dmlap_kernels.problem import HardClasses, Nearest


def nearest(
    queries: Tensor, refs: Tensor | None, k: int, distance: str, normalize: bool
) -> Nearest:
    unit = normalize or distance == "cosine"
    q = ready(queries, unit)
    r = q if refs is None else ready(refs, unit)
    # Filled in place: slices of what was sorted would keep all of it alive, an entry a pair.
    found = q.new_empty(q.shape[0], k)
    indices = torch.empty(q.shape[0], k, dtype=torch.int64, device=q.device)
    for at in anchor_blocks(q.shape[0], r.shape[0], q.element_size()):
        d = distances(q[at], r, distance)
        if refs is None:
            rows = torch.arange(at.stop - at.start, device=q.device)
            d[rows, rows + at.start] = torch.inf
        values, order = torch.sort(d, dim=1, stable=True)
        found[at] = values[:, :k]
        indices[at] = order[:, :k]
    return Nearest(found, indices)


def hard_classes(
    rows: Tensor, labels: Tensor, k: int, margin: float, distance: str, normalize: bool
) -> HardClasses:
    refs = in_label_order(ready(rows, normalize or distance == "cosine"), labels)
    classes, ids, sizes = torch.unique_consecutive(
        refs.labels, return_inverse=True, return_counts=True
    )
    ends = sizes.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    shape = (len(classes), k)
    order = classes.new_empty(shape)
    scores, lowest = refs.rows.new_empty(shape), refs.rows.new_empty(shape)
    for c, (start, end) in enumerate(zip(starts, ends, strict=True)):
        total, smallest = rows.new_zeros(len(classes), dtype=torch.float64), None
        for at in anchor_blocks(end - start, len(ids), refs.rows.element_size()):
            d = distances(refs.rows[start + at.start : start + at.stop], refs.rows, distance)
            total.index_add_(0, ids, (margin - d).relu().double().sum(0))
            low = d.new_full((len(classes),), torch.inf)
            low.scatter_reduce_(0, ids, d.amin(0), "amin")
            smallest = low if smallest is None else torch.minimum(smallest, low)
        assert smallest is not None
        mean = (total / (sizes * (end - start))).to(smallest.dtype)
        mean[c], smallest[c] = -1, torch.inf
        by_distance = torch.sort(smallest, stable=True).indices
        ranks = torch.sort(mean[by_distance], descending=True, stable=True).indices
        best = by_distance[ranks[:k]]
        order[c], scores[c], lowest[c] = best, mean[best], smallest[best]
    return HardClasses(classes, classes[order], scores, lowest)
