"""The angular loss of a batch with itself, where all of its products are one panel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmlap_kernels.backends.triton import configurations
from dmlap_kernels.backends.triton.angular_kernels import (
    angular_kernel,
    angular_weights_kernel,
    runs_kernel,
)
from dmlap_kernels.backends.triton.steps import HEADER, Step, plain
from dmlap_kernels.problem import Gradients


class AngularStep(Step):
    """A `Step` whose one sweep goes through the rows of each class. Its backward half holds a
    second panel."""

    # Rows class by class; where classes begin; of each row the number of its class.
    classes: tuple[Tensor, Tensor, Tensor]

    def pack(self) -> Tensor:
        labels, order = self.x.labels.sort(stable=True)
        begins = torch.empty(self.anchors + 1, dtype=torch.int32, device=labels.device)
        classes = torch.empty(self.anchors, dtype=torch.int32, device=labels.device)
        runs_kernel[(1,)](
            labels, order, begins, classes, self.anchors, configurations.ROWS_REDUCED, num_warps=8
        )
        self.classes = order, begins, classes
        return super().pack()

    def _sweep(self, number: int, panel: Tensor, table: Tensor, top: int, prefix: int) -> None:
        launch = configurations.panel_launch("angular")
        angular_kernel[(self.anchors,)](
            panel, *self.classes, table, self.anchors, *self._rates(), launch.BN, **launch.options
        )

    def backward(self, saved: Tensor, grad: Tensor) -> Gradients:
        grad = plain(grad)
        panel = self.product(0) if self.panel is None else self.panel
        weights = torch.empty_like(panel)
        launch = configurations.panel_launch("angular")
        angular_weights_kernel[(self.anchors,)](
            panel,
            weights,
            *self.classes,
            saved[HEADER:],
            saved,
            grad,
            grad.stride(0) if grad.ndim else 0,
            self.anchors,
            *self._rates(),
            self.spec.reduction,
            launch.BN,
            **launch.options,
        )
        # Its products are gone.
        self.panel = None
        product = torch.mm(weights, self.x.packed)
        product.addmm_(weights.T, self.x.packed)
        gx = torch.empty_like(self.problem.x, memory_format=torch.contiguous_format)
        self._unpack(gx, None, [product, product], None, saved)
        return Gradients(gx, None, None)

    def _rates(self) -> tuple[float, float]:
        square = math.tan(math.radians(float(self.spec.params[0]))) ** 2
        return 4 * square, 2 * (1 + square)
