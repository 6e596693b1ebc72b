"""One triplet an anchor, batch-hard or with the easiest positive: all but mining is O(B * D)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlap_kernels.backends.device.terms import (
    Call,
    Found,
    Group,
    PackedGradients,
    Statistics,
    add_rows,
    anchor_group,
    row_distances,
    softplus,
)
from dmlap_kernels.problem import PairProblem, PairSpec

# Whole numbers of the size of a float.
_WHOLE = {torch.float32: torch.int32, torch.float64: torch.int64}


class Hard:
    """The losses ``triplet_hard``, ``triplet_easy_positive`` and
    ``triplet_easy_positive_semihard``. Keeps the mined columns, whole numbers in the place of
    floats."""

    def groups(self, spec: PairSpec) -> int:
        return 1

    def kept_rows(self, spec: PairSpec, problem: PairProblem) -> int:
        return 2

    def forward(self, call: Call) -> Found:
        mined = torch.stack(mined_columns(call))
        for_numbers = torch.is_grad_enabled()
        made = _made(call, mined)
        group, excess = made.group, made.excess.detach()
        if not for_numbers:
            call.memo["made"] = made
            group = group._replace(total=group.total.detach())

        def statistics() -> Statistics:
            hinge = torch.where(group.number, excess.relu(), 0)
            return Statistics(group.number, hinge > 0, hinge.double())

        kept = mined.to(_WHOLE[excess.dtype]).view(excess.dtype)
        return Found((group,), kept, statistics)

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        y, sides = call.sides.y, call.sides
        if not (sides.x_grad or sides.y_grad):  # only a number of the loss needs one
            return PackedGradients(None, None)
        made = call.memo.get("made")
        if made is None or not made.group.total.requires_grad:
            made = _made(call, kept.view(_WHOLE[kept.dtype]))
        leaves = [rows for rows in (made.x, made.others) if rows.requires_grad]
        found = list(torch.autograd.grad(made.group.total, leaves, weights[0], retain_graph=True))
        gx = found.pop(0) if sides.x_grad else None
        if sides.self_case and gx is not None:
            return PackedGradients(add_at(gx, made.columns, found.pop()), None)
        gy = None
        if sides.y_grad:
            gy = add_at(torch.zeros_like(y), made.columns, found.pop())
        return PackedGradients(gx, gy)


def mined_columns(call: Call) -> tuple[Tensor, Tensor]:
    """Columns (B,) of the positives and of the negatives, -1 for none."""
    if call.spec.loss == "triplet_hard":
        return call.extremes.positive_column, call.extremes.negative_column
    found = call.sweeps.nearest_pairs(call.sides)
    negative = found.negative_column
    if call.spec.loss == "triplet_easy_positive_semihard":
        # Beyond a positive at inf, which is none, there is no negative either.
        negative = call.sweeps.nearest_pairs(call.sides, found.positive).negative_column
    return found.positive_column, negative


class _Made(NamedTuple):
    """The terms of the mined triplets, under autograd.

    The rows of the anchors (B, Dp) and those of the mined ``columns`` (2 B,), of all positives and
    then all negatives; d_ap - d_an + margin (B,); the terms.
    """

    x: Tensor
    others: Tensor
    columns: Tensor
    excess: Tensor
    group: Group


def _made(call: Call, mined: Tensor) -> _Made:
    """Of the mined columns (2, B), -1 for none."""
    sides = call.sides
    columns = mined.clamp(min=0).view(-1).long()
    with torch.enable_grad():
        x = sides.x.detach().requires_grad_(sides.x_grad)
        others = _rows_of(sides.y, columns).requires_grad_(sides.y_grad)
        margin, smooth, swap = call.spec.params
        excess = excess_of(call.spec.distance, x, others, margin, swap)
        term = term_of(excess, smooth)
        return _Made(x, others, columns, excess, anchor_group(term, (mined >= 0).all(0)))


def term_of(excess: Tensor, smooth: float) -> Tensor:
    """Of d_ap - d_an + margin (B,)."""
    return softplus(excess) if smooth else excess.relu()


def _rows_of(rows: Tensor, columns: Tensor) -> Tensor:
    """Rows (k, Dp) at columns (k,), zeros where there are none at all."""
    found = rows.detach()
    if not found.shape[0]:
        return found.new_zeros(len(columns), found.shape[1])
    return found.index_select(0, columns)


def add_at(rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """Rows (N, Dp), to which values (k, Dp) were added at columns (k,), in a fixed order."""
    return add_rows(rows, columns, values) if rows.shape[0] else rows


def excess_of(distance: str, x: Tensor, others: Tensor, margin: Any, swap: Any) -> Tensor:
    """d_ap - d_an + margin (B,), of anchors (B, Dp), and positives and negatives (2 B, Dp)."""
    pair = others.view(2, *x.shape)
    d_ap, d_an = row_distances(x, pair, distance).unbind()
    if swap:
        p, n = pair.unbind()
        d_an = torch.minimum(d_an, row_distances(p, n, distance))
    return d_ap - d_an + margin
