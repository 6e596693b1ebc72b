"""The primitives of `dmlap_kernels.backends.device.sweeps` as CUDA kernels (``csrc/cuda``).

Outputs and workspaces are allocated here; the extension gets addresses, sizes and the stream.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.cuda import positive_windows
from dmlap_kernels.backends.cuda import soft_triple_launches as centres
from dmlap_kernels.backends.cuda.arguments import (
    Inputs,
    addresses_of,
    arguments_of,
    counts,
    floats,
    queue_of,
)
from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import (
    Both,
    Exponent,
    Extremes,
    HingeSums,
    LogSums,
    PairGradient,
    PairTerms,
    Triplets,
)


class CudaSweeps:
    """See `dmlap_kernels.backends.device.sweeps.Sweeps`; ``extension`` holds the launchers."""

    def __init__(self, extension: Any) -> None:
        self.extension = extension

    def extremes(self, sides: Sides, sums: bool) -> Extremes:
        d = floats(sides, 4 if sums else 2)
        columns = counts(sides, 2)
        optional = (d[2], d[3]) if sums else (None, None)
        out = Extremes(d[0], columns[0], d[1], columns[1], *optional)
        self._forward("cuda_extremes", sides, addresses_of(*out))
        return out

    def nearest_pairs(self, sides: Sides, negative_above: Tensor | None = None) -> Extremes:
        # The losses that ask for it are those of `WITHOUT`, which the backend refuses before.
        raise AssertionError("no loss that cuda serves asks for the nearest pairs")

    def hinge_sums(
        self, sides: Sides, positive_bound: Tensor, negative_bound: Tensor, squared: bool
    ) -> HingeSums:
        out = HingeSums(*floats(sides, 4), *counts(sides, 2))
        with Inputs(positive_bound, negative_bound) as bounds:
            self._forward("cuda_hinge_sums", sides, bounds, squared, addresses_of(*out))
        return out

    def logistic_sums(self, sides: Sides, positive: Exponent, negative: Exponent) -> Tensor:
        (out,) = floats(sides, 1)
        exponents = tuple(positive), tuple(negative)
        self._forward("cuda_logistic_sums", sides, *exponents, out.data_ptr())
        return out

    def log_sums(
        self,
        sides: Sides,
        positive: Exponent,
        negative: Exponent,
        positive_above: Tensor | None = None,
        negative_below: Tensor | None = None,
        read: tuple[str, ...] = LogSums._fields,
    ) -> LogSums:
        out = LogSums(*floats(sides, 3))
        with Inputs(positive_above, negative_below) as mining:
            self._forward(
                "cuda_log_sums", sides, tuple(positive), tuple(negative), mining, addresses_of(*out)
            )
        return out

    def pair_terms(
        self,
        sides: Sides,
        kind: str,
        exponent: Exponent,
        neg_lse: Tensor,
        neg_lse_of_columns: Tensor | None = None,
        weight_of_columns: Tensor | None = None,
    ) -> PairTerms:
        total, by_neg_lse = floats(sides, 2)
        out = PairTerms(total, counts(sides, 1)[0], by_neg_lse)
        with Inputs(neg_lse, neg_lse_of_columns, weight_of_columns) as given:
            self._forward(
                "cuda_pair_terms", sides, kind, tuple(exponent), given, addresses_of(*out)
            )
        return out

    def gradient(self, sides: Sides, pair_gradient: PairGradient) -> Both:
        if sides.self_case:
            return self._gradient(
                sides, pair_gradient, pair_gradient.anchors, pair_gradient.anchors
            ), None
        gx = gy = None
        if sides.x_grad:
            gx = self._gradient(sides, pair_gradient, pair_gradient.anchors, pair_gradient.columns)
        if sides.y_grad:
            gy = self._gradient(
                sides.swapped(), pair_gradient, pair_gradient.columns, pair_gradient.anchors
            )
        return gx, gy

    def triplet_sums(self, sides: Sides, triplets: Triplets) -> Tensor:
        return positive_windows.triplet_sums(self.extension, sides, triplets)

    def triplet_gradient(self, sides: Sides, triplets: Triplets, weight: Tensor) -> Both:
        return positive_windows.triplet_gradient(self.extension, sides, triplets, weight)

    def angular_terms(self, sides: Sides, tangent: float) -> Tensor:
        return positive_windows.angular_terms(self.extension, sides, tangent)

    def angular_gradient(self, sides: Sides, tangent: float, weight: Tensor) -> Both:
        return positive_windows.angular_gradient(self.extension, sides, tangent, weight)

    def soft_triple(self, sides: Sides, la: float, gamma: float, margin: float) -> Tensor:
        return centres.soft_triple(self.extension, sides, (la, gamma, margin))

    def soft_triple_gradient(
        self, sides: Sides, la: float, gamma: float, margin: float, kept: Tensor, weight: Tensor
    ) -> Both:
        numbers = la, gamma, margin
        return centres.soft_triple_gradient(self.extension, sides, numbers, kept, weight)

    def nearest(self, sides: Sides, k: int) -> tuple[Tensor, Tensor]:
        arguments = arguments_of(sides)
        groups = self.extension.cuda_nearest_groups(arguments)
        d = sides.x.new_empty(groups, sides.anchors, k)
        columns = sides.first.new_empty(d.shape)
        self.extension.cuda_nearest(arguments, k, addresses_of(d, columns), queue_of(d))
        return d[0], columns[0].long()

    def class_scores(
        self, sides: Sides, thresholds: Tensor, ends_x: Tensor, ends_y: Tensor
    ) -> tuple[Tensor, Tensor]:
        sums = sides.x.new_zeros(ends_x.numel(), ends_y.numel())
        smallest = torch.full_like(sums, torch.inf)
        counts = ends_x.numel(), ends_y.numel()
        ends = ends_x.contiguous(), ends_y.contiguous()
        with Inputs(thresholds) as (bounds,):
            self.extension.cuda_class_scores(
                arguments_of(sides),
                bounds,
                addresses_of(*ends),
                counts,
                addresses_of(sums, smallest),
                queue_of(sums),
            )
        return sums, smallest

    def _gradient(
        self, sides: Sides, pair_gradient: PairGradient, rows: Tensor | None, columns: Tensor | None
    ) -> Tensor:
        """The gradient (B, Dp) at x, with the pair_gradient's numbers of rows and columns."""
        out = torch.empty_like(sides.x)
        arguments = arguments_of(sides)
        splits = self.extension.cuda_gradient_splits(arguments)
        parts = out.new_empty((splits, *out.shape) if splits > 1 else 0)
        exponents = tuple(pair_gradient.positive), tuple(pair_gradient.negative)
        with Inputs(rows, columns) as tables:
            self.extension.cuda_gradient(
                arguments,
                pair_gradient.kind,
                *exponents,
                tables,
                *addresses_of(out, parts),
                queue_of(out),
            )
        return out

    def _forward(self, name: str, sides: Sides, *arguments: Any) -> None:
        """Launches a forward sweep, with what it needs as workspace."""
        of_sides = arguments_of(sides)
        size = self.extension.cuda_sweep_workspace(of_sides)
        workspace = torch.empty(size, dtype=torch.uint8, device=sides.x.device)
        launch = getattr(self.extension, name)
        launch(of_sides, *arguments, workspace.data_ptr(), queue_of(workspace))
