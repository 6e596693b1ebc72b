"""Nearest columns and class scores, panel by panel."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.panels.panel import Panels


def nearest(panels: Panels, sides: Sides, k: int) -> tuple[Tensor, Tensor]:
    """`Sweeps.nearest`."""
    # Filled in place: slices of what was sorted would keep all of it alive, an entry a pair.
    found = sides.x.new_empty(sides.anchors, k)
    columns = torch.empty(found.shape, dtype=torch.int64, device=found.device)
    for panel in panels.of(sides, keep=False):
        d = panel.d
        if sides.self_case:
            d.diagonal(panel.at.start).fill_(torch.inf)
        values, order = torch.sort(d, dim=1, stable=True)
        found[panel.at], columns[panel.at] = values[:, :k], order[:, :k]
    return found, columns


def class_scores(
    panels: Panels, sides: Sides, thresholds: Tensor, ends_x: Tensor, ends_y: Tensor
) -> tuple[Tensor, Tensor]:
    """`Sweeps.class_scores`. Classes are runs of rows: each is reduced by itself, in its order."""
    shape = ends_x.numel(), ends_y.numel()
    smallest = sides.x.new_full(shape, torch.inf)
    sums = torch.zeros_like(smallest, dtype=torch.float64)
    sizes = ends_y.diff(prepend=ends_y.new_zeros(1))
    of_column = _runs_of(ends_y, 0, sides.columns)
    for panel in panels.of(sides):
        at = panel.at
        violation = (thresholds[at, None] - panel.d).relu_().masked_fill_(panel.alike, 0)
        by_class = _run_sums(violation.T, sizes)
        inside = ends_x.clamp(at.start, at.stop)
        rows = inside.diff(prepend=inside.new_full((1,), at.start))
        sums += _run_sums(by_class.T, rows)
        low = violation.new_full((len(violation), shape[1]), torch.inf)
        d = panel.d.masked_fill(panel.alike, torch.inf)
        low.scatter_reduce_(1, of_column.expand_as(d), d, "amin")
        of_row = _runs_of(ends_x, at.start, at.stop)
        smallest.scatter_reduce_(0, of_row[:, None].expand_as(low), low, "amin")
    return sums.to(smallest.dtype), smallest


def _runs_of(ends: Tensor, start: int, stop: int) -> Tensor:
    """The run that each row from ``start`` on lies in, given where the runs end."""
    index = torch.arange(start, stop, device=ends.device)
    return torch.searchsorted(ends, index, right=True)


def _run_sums(values: Tensor, sizes: Tensor) -> Tensor:
    """The sums (C, k), float64, of runs of rows (n, k) of such sizes (C,)."""
    values = values.double().contiguous()
    return torch.segment_reduce(values, "sum", lengths=sizes, axis=0, unsafe=True, initial=0)
