"""Whether kernels can be handed a tensor: they read memory, not what stands for it."""

from __future__ import annotations

import torch
from torch import Tensor


def refuse_without_memory(backend: str, *tensors: Tensor | None) -> None:
    """TypeError for the first tensor whose elements do not lie in memory of its device.

    Such are fake tensors, those of ``torch.func`` transforms, sparse and wrapped ones. A conjugate
    or negative view has memory; plain PyTorch, which packs all tensors, makes its values first.
    """
    for tensor in tensors:
        if tensor is not None and not _has_memory(tensor):
            raise TypeError(
                f"backend {backend!r} reads dense tensors that lie in memory, got a "
                f"{type(tensor).__name__} ({tensor.layout}, on {tensor.device}) that does not"
            )


def _has_memory(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided:
        return False
    try:
        storage = tensor.untyped_storage()
        if storage.device.type != tensor.device.type:  # of a fake tensor
            return False
        return storage.data_ptr() != 0 or tensor.numel() == 0
    except RuntimeError:  # of a wrapper
        return False
