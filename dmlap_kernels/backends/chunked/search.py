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
    out_d, out_i = [q.new_empty(0, k)], [torch.empty(0, k, dtype=torch.int64, device=q.device)]
    for at in anchor_blocks(q.shape[0], r.shape[0], q.element_size()):
        d = distances(q[at], r, distance)
        if refs is None:
            rows = torch.arange(at.stop - at.start, device=q.device)
            d[rows, rows + at.start] = torch.inf
        values, order = torch.sort(d, dim=1, stable=True)
        out_d.append(values[:, :k])
        out_i.append(order[:, :k])
    return Nearest(torch.cat(out_d), torch.cat(out_i))


def hard_classes(
    rows: Tensor, labels: Tensor, k: int, margin: float, distance: str, normalize: bool
) -> HardClasses:
    refs = in_label_order(ready(rows, normalize or distance == "cosine"), labels)
    classes, ids, sizes = torch.unique_consecutive(
        refs.labels, return_inverse=True, return_counts=True
    )
    ends = sizes.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    scores, lowest, order = [], [], []
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
        best = by_distance[torch.sort(mean[by_distance], descending=True, stable=True).indices]
        order.append(best[:k])
        scores.append(mean[best[:k]])
        lowest.append(smallest[best[:k]])
    return HardClasses(
        classes, classes[torch.stack(order)], torch.stack(scores), torch.stack(lowest)
    )
