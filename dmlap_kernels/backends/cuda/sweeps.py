"""The primitives of `dmlap_kernels.backends.device.sweeps` as CUDA kernels (``csrc/cuda``).

Outputs and workspaces are allocated here; the extension gets addresses, sizes and the stream.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import (
    Both,
    Exponent,
    Extremes,
    HingeSums,
    LogSums,
    PairTerms,
    Weigher,
)
from dmlap_kernels.problem import DISTANCES, PRECISIONS

_DISTANCES = {name: i for i, name in enumerate(DISTANCES)}
_PRECISIONS = {name: i for i, name in enumerate(PRECISIONS)}
_PAIR_KINDS = {"nt_xent": 0, "lifted": 1}
_WEIGHT_KINDS = {
    "hinge": 0,
    "squared_hinge": 1,
    "exponential": 2,
    "mined": 3,
    "nt_xent": 4,
    "lifted": 5,
}


class CudaSweeps:
    """See `dmlap_kernels.backends.device.sweeps.Sweeps`; ``extension`` holds the launchers."""

    def __init__(self, extension: Any) -> None:
        self.extension = extension

    def extremes(self, sides: Sides, sums: bool) -> Extremes:
        d = _floats(sides, 4 if sums else 2)
        columns = _counts(sides, 2)
        optional = (d[2], d[3]) if sums else (None, None)
        out = Extremes(d[0], columns[0], d[1], columns[1], *optional)
        self._forward("cuda_extremes", sides, _addresses(*out))
        return out

    def hinge_sums(
        self, sides: Sides, positive_bound: Tensor, negative_bound: Tensor, squared: bool
    ) -> HingeSums:
        out = HingeSums(*_floats(sides, 4), *_counts(sides, 2))
        with _Inputs(positive_bound, negative_bound) as bounds:
            self._forward("cuda_hinge_sums", sides, bounds, squared, _addresses(*out))
        return out

    def log_sums(
        self,
        sides: Sides,
        positive: Exponent,
        negative: Exponent,
        positive_above: Tensor | None = None,
        negative_below: Tensor | None = None,
    ) -> LogSums:
        out = LogSums(*_floats(sides, 3))
        with _Inputs(positive_above, negative_below) as mining:
            self._forward(
                "cuda_log_sums", sides, tuple(positive), tuple(negative), mining, _addresses(*out)
            )
        return out

    def pair_terms(
        self,
        sides: Sides,
        kind: str,
        exponent: Exponent,
        zn: Tensor,
        zn_of_columns: Tensor | None = None,
        weight_of_columns: Tensor | None = None,
    ) -> PairTerms:
        total, by_zn = _floats(sides, 2)
        out = PairTerms(total, _counts(sides, 1)[0], by_zn)
        number = _PAIR_KINDS[kind]
        with _Inputs(zn, zn_of_columns, weight_of_columns) as given:
            self._forward(
                "cuda_pair_terms", sides, number, tuple(exponent), given, _addresses(*out)
            )
        return out

    def gradient(self, sides: Sides, weigher: Weigher) -> Both:
        if sides.self_case:
            return self._gradient(sides, weigher, weigher.anchors, weigher.anchors), None
        gx = gy = None
        if sides.x_grad:
            gx = self._gradient(sides, weigher, weigher.anchors, weigher.columns)
        if sides.y_grad:
            gy = self._gradient(sides.swapped(), weigher, weigher.columns, weigher.anchors)
        return gx, gy

    def nearest(self, sides: Sides, k: int) -> tuple[Tensor, Tensor]:
        arguments = _arguments(sides)
        groups = self.extension.cuda_nearest_groups(arguments)
        d = sides.x.new_empty(groups, sides.anchors, k)
        columns = sides.first.new_empty(d.shape)
        self.extension.cuda_nearest(arguments, k, _addresses(d, columns), _queue(d))
        return d[0], columns[0].long()

    def class_scores(
        self, sides: Sides, thresholds: Tensor, ends_x: Tensor, ends_y: Tensor
    ) -> tuple[Tensor, Tensor]:
        sums = sides.x.new_zeros(ends_x.numel(), ends_y.numel())
        smallest = torch.full_like(sums, torch.inf)
        counts = ends_x.numel(), ends_y.numel()
        ends = ends_x.contiguous(), ends_y.contiguous()
        with _Inputs(thresholds) as (bounds,):
            self.extension.cuda_class_scores(
                _arguments(sides),
                bounds,
                _addresses(*ends),
                counts,
                _addresses(sums, smallest),
                _queue(sums),
            )
        return sums, smallest

    def _gradient(
        self, sides: Sides, weigher: Weigher, rows: Tensor | None, columns: Tensor | None
    ) -> Tensor:
        """The gradient (B, Dp) at x, with the weigher's numbers of rows and columns."""
        out = torch.empty_like(sides.x)
        arguments = _arguments(sides)
        splits = self.extension.cuda_gradient_splits(arguments)
        parts = out.new_empty((splits, *out.shape) if splits > 1 else 0)
        exponents = tuple(weigher.positive), tuple(weigher.negative)
        with _Inputs(rows, columns) as tables:
            self.extension.cuda_gradient(
                arguments,
                _WEIGHT_KINDS[weigher.kind],
                *exponents,
                tables,
                *_addresses(out, parts),
                _queue(out),
            )
        return out

    def _forward(self, name: str, sides: Sides, *arguments: Any) -> None:
        """Launches a forward sweep, with what it needs as workspace."""
        of_sides = _arguments(sides)
        size = self.extension.cuda_sweep_workspace(of_sides)
        workspace = torch.empty(size, dtype=torch.uint8, device=sides.x.device)
        launch = getattr(self.extension, name)
        launch(of_sides, *arguments, workspace.data_ptr(), _queue(workspace))


class _Inputs:
    """Addresses of float32 tensors or Nones, which are kept while the extension is called."""

    def __init__(self, *tensors: Tensor | None) -> None:
        self.tensors = [None if t is None else t.float().contiguous() for t in tensors]

    def __enter__(self) -> list[int]:
        return _addresses(*self.tensors)

    def __exit__(self, *error: object) -> None:
        self.tensors.clear()


def _arguments(sides: Sides) -> tuple:
    """As ``python_bindings/cuda_sweeps.cpp`` takes sides."""
    tensors = (sides.x, sides.y, sides.x_norms, sides.y_norms)
    runs = (sides.first, sides.last, sides.col_first, sides.col_last)
    return (
        _addresses(*tensors, *runs),
        (sides.anchors, sides.columns, sides.x.shape[1]),
        sides.self_case,
        _DISTANCES[sides.distance],
        _PRECISIONS[sides.precision],
    )


def _addresses(*tensors: Tensor | None) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _floats(sides: Sides, count: int) -> tuple[Tensor, ...]:
    """(B,) float32, ``count`` of them."""
    return sides.x.new_empty(count, sides.anchors).unbind()


def _counts(sides: Sides, count: int) -> tuple[Tensor, ...]:
    """(B,) int32, ``count`` of them."""
    return sides.first.new_empty(count, sides.anchors).unbind()


def _queue(tensor: Tensor) -> tuple[int, int]:
    """Device and stream on which kernels for a tensor run."""
    if not tensor.is_cuda:  # in tests, where the kernels run on the CPU
        return 0, 0
    stream = torch.cuda.current_stream(tensor.device)
    return tensor.device.index, stream.cuda_stream
