"""Nearest references and hard classes."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels.backends.device.packing import pack_rows
from dmlap_kernels.backends.device.sweeps import Sweeps
from dmlap_kernels.problem import HardClasses, Nearest

# Neighbours and hard classes are to be exact, whatever products of matrices elsewhere may be.
_PRECISION = "highest"
# Pairs of classes whose scores are held at once.
_SCORES = 1 << 22


def nearest(
    sweeps: Sweeps, queries: Tensor, refs: Tensor | None, k: int, distance: str, normalize: bool
) -> Nearest:
    labels = _one_class(queries), None if refs is None else _one_class(refs)
    sides = pack_rows(queries, refs, labels, distance, normalize, _PRECISION)
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
    sides = pack_rows(rows, None, (labels, None), distance, normalize, _PRECISION)
    classes, sizes = torch.unique_consecutive(labels[sides.order_x], return_counts=True)
    ends = sizes.cumsum(0)
    last_rows = [0, *ends.tolist()]
    count = len(classes)
    step = max(1, _SCORES // count)
    found = []
    for top in range(0, count, step):
        bottom = min(top + step, count)
        begin, end = last_rows[top], last_rows[bottom]
        # Positive pairs do not count here, so neither does the pair of a row with itself.
        block = sides._replace(
            x=sides.x[begin:end],
            x_norms=sides.x_norms[begin:end],
            first=sides.first[begin:end],
            last=sides.last[begin:end],
            self_case=False,
        )
        bounds = torch.full_like(block.x_norms, margin)
        sums, smallest = sweeps.class_scores(block, bounds, ends[top:bottom] - begin, ends)
        scores = sums / torch.outer(sizes[top:bottom], sizes)
        own = torch.arange(top, bottom, device=rows.device)[:, None]
        scores.scatter_(1, own, -1)
        best = torch.sort(_keys(scores, smallest), dim=1, stable=True).indices[:, :k]
        found.append((classes[best], scores.gather(1, best), smallest.gather(1, best)))
    return HardClasses(classes, *(torch.cat(parts) for parts in zip(*found, strict=True)))


def _one_class(rows: Tensor) -> Tensor:
    return torch.zeros(rows.shape[0], dtype=torch.int64, device=rows.device)


def _keys(scores: Tensor, smallest: Tensor) -> Tensor:
    """int64 numbers that ascend as scores fall, and where these are equal as distances rise."""
    return (-_ordered(scores) << 32) + _ordered(smallest)


def _ordered(values: Tensor) -> Tensor:
    """int64 numbers of 32 bits, in the order of float32 values."""
    bits = (values + 0.0).view(torch.int32).long()
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
