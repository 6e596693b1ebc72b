"""SoftTriple by panels, of distances that are products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.triton import configurations
from dmlap_kernels.backends.triton.centre_kernels import (
    centres_kernel,
    classes_kernel,
    terms_kernel,
    weights_of_centres_kernel,
)
from dmlap_kernels.backends.triton.steps import Step, blocks_in


class SoftTripleStep(Step):
    """A `Step` whose one sweep goes through the centres of each class."""

    # The centres' labels in ascending order, and which centre each is; begins, names and number of
    # the classes.
    classes: tuple[Tensor, Tensor, Tensor, Tensor]

    def pack(self) -> Tensor:
        labels, order = self.y.labels.sort(stable=True)
        begins = torch.empty(self.columns + 1, dtype=torch.int32, device=labels.device)
        names, count = torch.empty_like(labels), begins.new_empty(1)
        classes_kernel[(1,)](
            labels, begins, names, count, self.columns, configurations.ROWS_REDUCED, num_warps=8
        )
        self.classes = order, begins, names, count
        return super().pack()

    def _sweep(self, number: int, panel: Tensor, table: Tensor, top: int, prefix: int) -> None:
        rows = panel.shape[0]
        la, gamma, margin = map(float, self.spec.params)
        launch, blocks, splits, _ = self._cut("centres", rows)
        partials = panel.new_empty((4, splits, rows))
        centres_kernel[(blocks * splits,)](
            panel,
            self.x.labels,
            *self.classes,
            partials,
            top,
            self.anchors,
            self.columns,
            splits,
            la,
            1 / gamma,
            margin,
            self.height,
            launch.BM,
            launch.BN,
            **launch.options,
        )
        block = configurations.ROWS_OF_FORMULAS
        terms_kernel[(blocks_in(rows, block),)](
            partials, table, top, self.anchors, splits, self.height, block, num_warps=4
        )

    def _differentiate(
        self,
        panel: Tensor,
        table: Tensor,
        header: Tensor,
        grad: Tensor,
        stride: int,
        at_params: Any,
        top: int,
    ) -> tuple[Tensor, int, int]:
        la, gamma, _ = map(float, self.spec.params)
        launch, blocks, splits, span = self._cut("centres", panel.shape[0])
        weights_of_centres_kernel[(blocks * splits,)](
            panel,
            self.x.labels,
            *self.classes,
            table,
            header,
            grad,
            stride,
            top,
            self.anchors,
            self.columns,
            splits,
            la,
            1 / gamma,
            self.height,
            self.spec.reduction,
            launch.BM,
            launch.BN,
            **launch.options,
        )
        # There are no near pairs.
        return header, splits, span
