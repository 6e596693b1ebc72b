"""The angular loss: each positive pair against every negative of its class, panel by panel.

The positive pairs are listed, which takes their number from the device.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.terms import add_rows, softplus
from dmlap_kernels.backends.panels.block import Block
from dmlap_kernels.backends.panels.exponents import LOWEST, log_sum
from dmlap_kernels.backends.panels.gradients import Gradients
from dmlap_kernels.backends.panels.panel import PANEL_BYTES, Panel, Panels, budget_of


def terms(panels: Panels, sides: Sides, tangent: float) -> Tensor:
    """`Sweeps.angular_terms`."""

    def body(panel: Panel, tangent: float) -> tuple[Tensor, ...]:
        total, nonzero = (panel.d.new_zeros(panel.d.shape[0]) for _ in range(2))
        for rows, columns in _listed(panel):
            exponents, _ = _exponents(panel, rows, columns, tangent)
            term = softplus(log_sum(exponents))
            total = add_rows(total, rows, term)
            nonzero = add_rows(nonzero, rows, (term > 0).to(term.dtype))
        return total, nonzero

    return torch.stack(panels.each(sides, body, (), (tangent,)))


def add_gradient(
    panels: Panels, into: Gradients, sides: Sides, tangent: float, weight: Tensor
) -> None:
    """`Sweeps.angular_gradient`."""
    t = tangent**2
    for panel in panels.of(sides):
        own = weight[panel.at]
        at_d = torch.zeros_like(panel.d)
        flat, width = at_d.view(-1), panel.d.shape[1]
        for rows, columns in _listed(panel):
            exponents, block = _exponents(panel, rows, columns, tangent)
            whole = log_sum(exponents)[:, None]
            # The derivatives of the terms by their exponents, which add up to ``active``.
            active = whole.sigmoid() * own.index_select(0, rows)[:, None]
            shares = exponents.sub_(whole.clamp_(min=LOWEST)).exp_().mul_(active)
            flat.index_copy_(0, rows * width + columns, 2 * (1 + t) * active.squeeze(1))
            shares.mul_(-4 * t)
            add_rows(at_d, rows, shares)
            into.add_block(block, columns, shares)
        into.add(panel, at_d)


def _listed(panel: Panel) -> Iterator[tuple[Tensor, Tensor]]:
    rows, columns = panel.positives()
    width = panel.d.shape[1] * panel.d.element_size()
    step = max(1, budget_of(panel.d, PANEL_BYTES) // width)
    yield from zip(rows.split(step), columns.split(step), strict=True)


def _exponents(panel: Panel, rows: Tensor, columns: Tensor, tangent: float) -> tuple[Tensor, Block]:
    """(k, N), -inf where there is no negative; and the distances of the positives to them."""
    t = tangent**2
    block = panel.from_columns(columns)
    flat = panel.d.view(-1).index_select(0, rows * panel.d.shape[1] + columns)
    between = 4 * t * 2 - 2 * (1 + t) * (1 - flat)
    e = between[:, None] - 4 * t * (panel.d.index_select(0, rows) + block.d)
    return e.masked_fill(panel.alike.index_select(0, rows), -torch.inf), block
