"""The `triton` backend: sweeps as Triton kernels, on NVIDIA GPUs.

With ``TRITON_INTERPRET=1`` in the environment before Triton is imported, its interpreter runs them
on CPU tensors: slow, and meant for tests.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from typing import Any

import torch

from dmlap_kernels import versions
from dmlap_kernels.backends.device.backend import DeviceBackend
from dmlap_kernels.backends.device.sweeps import Sweeps

OLDEST_TRITON = versions.numbers(versions.SUPPORTED["triton"].oldest)


class TritonBackend(DeviceBackend):
    """Triton kernels for CUDA tensors; in the interpreter also for CPU tensors."""

    name = "triton"

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed (pip install triton)"
        try:
            version = _version()
        except ImportError as error:
            return f"Triton cannot be imported: {error}"
        if version < OLDEST_TRITON:
            have, need = (".".join(map(str, one)) for one in (version, OLDEST_TRITON))
            return f"it needs Triton {need} or newer, got {have}"
        if _interpreted():
            return None
        if torch.version.cuda is None:
            return "this PyTorch was built without CUDA"
        if not torch.cuda.is_available():
            return "no CUDA device is visible"
        if torch.cuda.get_device_capability() < (8, 0):
            return "it needs a device of capability 8.0 or higher"
        return None

    def device_types(self) -> tuple[str, ...]:
        return ("cpu", "cuda") if _interpreted() else ("cuda",)

    def sweeps(self) -> Sweeps:
        return _sweeps()


def _version() -> tuple[int, ...]:
    """Of the Triton that would be imported, whatever the distribution that brought it is called."""
    import triton

    return tuple(map(int, re.findall(r"\d+", triton.__version__)[:3]))


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _sweeps() -> Any:
    from dmlap_kernels.backends.triton.sweeps import TritonSweeps

    return TritonSweeps()
