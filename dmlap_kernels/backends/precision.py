"""The precision of float32 products, from whichever of PyTorch's two settings speaks of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

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


def full_precision(tensor: Tensor) -> AbstractContextManager:
    """Autocast would take matrix products in half precision."""
    kind = tensor.device.type
    available = torch.amp.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if available else nullcontext()
