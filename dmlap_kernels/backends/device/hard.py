"""Batch-hard triplets: one triplet an anchor, so that all but mining is O(B * D)."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels.backends.device.terms import (
    Call,
    Found,
    PackedGradients,
    Statistics,
    add_rows,
    anchor_group,
    row_distances,
    rows_at,
    softplus,
)
from dmlap_kernels.problem import PairProblem, PairSpec

# Whole numbers of the size of a float.
_WHOLE = {torch.float32: torch.int32, torch.float64: torch.int64}


class Hard:
    """The loss ``triplet_hard``. Keeps the mined columns, whole numbers in the place of floats."""

    def groups(self, spec: PairSpec) -> int:
        return 1

    def kept_rows(self, spec: PairSpec, problem: PairProblem) -> int:
        return 2

    def forward(self, call: Call) -> Found:
        mined = torch.stack((call.extremes.positive_column, call.extremes.negative_column))
        exists = (mined >= 0).all(0)
        excess = _excess(call, call.sides.x, *(rows_at(call.sides.y, side) for side in mined))
        group = anchor_group(_term(call, excess), exists)

        def statistics() -> Statistics:
            hinge = torch.where(exists, excess.relu(), 0)
            return Statistics(group.terms.sum(), (hinge > 0).sum(), hinge.double().sum())

        kept = mined.to(_WHOLE[call.sides.x.dtype]).view(call.sides.x.dtype)
        return Found((group,), kept, statistics)

    def backward(self, call: Call, kept: Tensor, weights: Tensor) -> PackedGradients:
        x, y = call.sides.x, call.sides.y
        mined = kept.view(_WHOLE[kept.dtype])
        exists = (mined >= 0).all(0)
        wanted = call.sides.x_grad, *[call.sides.y_grad] * 2
        with torch.enable_grad():
            plain = x, *(rows_at(y, side) for side in mined)
            rows = [row.detach().requires_grad_(w) for row, w in zip(plain, wanted, strict=True)]
            terms = torch.where(exists, _term(call, _excess(call, *rows)), 0)
            leaves = [row for row in rows if row.requires_grad]
            found = list(torch.autograd.grad((terms * weights[0]).sum(), leaves))
        gx = found.pop(0) if call.sides.x_grad else None
        gy = add_at(y, mined.reshape(-1), torch.cat(found)) if call.sides.y_grad else None
        if call.sides.self_case and gx is not None and gy is not None:
            return PackedGradients(gx + gy, None)
        return PackedGradients(gx, gy)


def add_at(rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """Zeros like ``rows`` (N, Dp) to which values (k, Dp) are added at columns (k,).

    Values of the column -1 must be 0. The order of additions is fixed.
    """
    total = torch.zeros_like(rows)
    return add_rows(total, columns.clamp(min=0).long(), values) if rows.shape[0] else total


def _excess(call: Call, x: Tensor, p: Tensor, n: Tensor) -> Tensor:
    """d_ap - d_an + margin (B,)."""
    margin, _, swap = call.spec.params
    distance = call.spec.distance
    d_an = row_distances(x, n, distance)
    if swap:
        d_an = torch.minimum(d_an, row_distances(p, n, distance))
    return row_distances(x, p, distance) - d_an + margin


def _term(call: Call, excess: Tensor) -> Tensor:
    return softplus(excess) if call.spec.params[1] else excess.relu()
