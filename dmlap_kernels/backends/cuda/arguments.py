"""What the launchers of ``python_bindings/cuda_sweeps.cpp`` are called with."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides


class Inputs:
    """Addresses of float32 tensors or Nones, which are kept while the extension is called."""

    def __init__(self, *tensors: Tensor | None) -> None:
        self.tensors = [None if t is None else t.float().contiguous() for t in tensors]

    def __enter__(self) -> list[int]:
        return addresses_of(*self.tensors)

    def __exit__(self, *error: object) -> None:
        self.tensors.clear()


def arguments_of(sides: Sides) -> tuple:
    """As ``python_bindings/cuda_sweeps.cpp`` takes sides."""
    tensors = (sides.x, sides.y, sides.x_norms, sides.y_norms)
    runs = (sides.first, sides.last, sides.col_first, sides.col_last)
    return (
        addresses_of(*tensors, *runs),
        (sides.anchors, sides.columns, sides.x.shape[1]),
        sides.self_case,
        sides.distance,
        sides.precision,
        addresses_of(sides.itself, sides.col_itself),
    )


def addresses_of(*tensors: Tensor | None) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def floats(sides: Sides, count: int) -> tuple[Tensor, ...]:
    """(B,) float32, ``count`` of them."""
    return sides.x.new_empty(count, sides.anchors).unbind()


def counts(sides: Sides, count: int) -> tuple[Tensor, ...]:
    """(B,) int32, ``count`` of them."""
    return sides.first.new_empty(count, sides.anchors).unbind()


def queue_of(tensor: Tensor) -> tuple[int, int]:
    """Device and stream on which kernels for a tensor run."""
    if not tensor.is_cuda:  # in tests, where the kernels run on the CPU
        return 0, 0
    stream = torch.cuda.current_stream(tensor.device)
    return tensor.device.index, stream.cuda_stream
