"""The precision of float32 products, from whichever of PyTorch's two settings speaks of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor


def matmul_precision() -> str:
    """What float32 matrix products on a GPU may be computed in.

    PyTorch has an old setting, ``torch.set_float32_matmul_precision``, and from 2.9 on a new one,
    ``torch.backends.cuda.matmul.fp32_precision``, which takes its value from
    ``torch.backends.fp32_precision`` where it has none of its own. The getter of the old one raises
    where the new one says otherwise, so the new one is asked first.

    Returns:
        ``"highest"`` (float32), ``"high"`` (TF32) or ``"medium"`` (bfloat16), the values of
        ``torch.get_float32_matmul_precision``; of the new setting ``"tf32"`` is ``"high"`` and
        ``"ieee"`` ``"highest"``.
    """
    new = getattr(torch.backends.cuda.matmul, "fp32_precision", "none")
    if new == "ieee":
        return "highest"
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the new setting alone was used, perhaps for another device
        return "high" if new == "tf32" else "highest"


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """PyTorch's own float32 products in this precision, where they are set to another one."""
    if matmul_precision() == precision:
        yield
        return
    # PyTorch before 2.9 has the old setting alone.
    owners: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    if not all(hasattr(owner, "fp32_precision") for owner in owners):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    values = [owner.fp32_precision for owner in owners]
    for owner in owners:
        owner.fp32_precision = "ieee" if precision == "highest" else "tf32"
    try:
        yield
    finally:
        for owner, value in zip(owners, values, strict=True):
            owner.fp32_precision = value


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device."""
    kind = tensor.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def full_precision(tensor: Tensor) -> AbstractContextManager:
    """Autocast would take matrix products in half precision."""
    kind = tensor.device.type
    available = torch.amp.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if available else nullcontext()
