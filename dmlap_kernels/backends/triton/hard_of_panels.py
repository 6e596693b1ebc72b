"""Batch-hard triplets out of panels: as `dmlap_kernels.backends.device.hard`, but with the mined
distances of the sweep, and weights of pairs in the place of single rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.device.hard import term_of
from dmlap_kernels.backends.device.sweeps import PairGradient
from dmlap_kernels.backends.device.terms import Call, Found, PackedGradients, anchor_group, found
from dmlap_kernels.problem import PairProblem, PairSpec


class HardOfPanels:
    """The loss ``triplet_hard`` without swap. Keeps the mined columns and the term's slope."""

    def groups(self, spec: PairSpec) -> int:
        return 1

    def kept_rows(self, spec: PairSpec, problem: PairProblem) -> int:
        return 3

    def forward(self, call: Call) -> Found:
        mined = call.extremes
        margin, smooth, _ = call.spec.params
        counted: Any = (call.positives > 0) & (call.negatives > 0)
        with torch.enable_grad():
            excess = (mined.positive - mined.negative + margin).detach().requires_grad_()
            group = anchor_group(term_of(excess, smooth), counted)
        columns = mined.positive_column, mined.negative_column
        return found((group,), (*columns, excess, group.total))

    def backward(self, call: Call, kept: Any, weights: Tensor) -> PackedGradients:
        positive, negative, excess, total = kept
        (slope,) = torch.autograd.grad((total,), (excess,), (weights[0],))
        coefficients = torch.stack((positive, negative, slope))
        return PackedGradients(
            *call.sweeps.gradient(call.sides, PairGradient("hard", coefficients))
        )
