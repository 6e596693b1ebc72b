"""Distances as integers in the same order, which atomic operations and sorts take."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_NAN_BITS = tl.constexpr(0x7FC00000)


@triton.jit
def ordered(d):
    """int64 numbers in the order of the floats d, below 2^31 in size; NaN comes last."""
    bits = tl.where(d != d, _NAN_BITS, (d + 0.0).to(tl.int32, bitcast=True))  # -0.0 + 0.0 is 0.0
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


def distances_of(order: Tensor) -> Tensor:
    """What `ordered` made these numbers of."""
    bits = order.int()
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)
