"""What a measurement or a self-check holds for: the chip of a device, and what drives it."""

from __future__ import annotations

import functools
import platform
import re
from pathlib import Path
from typing import NamedTuple

import torch

from dmlap_kernels import versions


class Chip(NamedTuple):
    """Another value in any field may run other machine code.

    Attributes:
        type: of the device, such as ``"cuda"``.
        name: of the chip, such as ``"NVIDIA H100 80GB HBM3"``; of the processor on the CPU.
        capability: such as ``"9.0"``; the instruction set of PyTorch on the CPU.
        driver: its version, empty where there is none.
        torch, triton, package: versions; empty without Triton.
    """

    type: str
    name: str
    capability: str
    driver: str
    torch: str
    triton: str
    package: str


@functools.cache
def chip_at(device: torch.device) -> Chip | None:
    """The chip behind a device; None where there is none, as for fake tensors."""
    if device.type == "cuda":
        # Fake tensors are "cuda" where there is none as well.
        if not torch.cuda.is_available():
            return None
        properties = torch.cuda.get_device_properties(device)
        capability = f"{properties.major}.{properties.minor}"
        if torch.version.hip is not None:
            capability = str(getattr(properties, "gcnArchName", capability))
        found = (properties.name, capability, _gpu_driver())
    elif device.type == "cpu":
        found = (_processor(), torch.backends.cpu.get_cpu_capability(), "")
    else:
        return None
    here = (torch.__version__, versions.found("triton"), versions.found("dmlap_kernels"))
    return Chip(device.type, *found, *(version or "" for version in here))


def _gpu_driver() -> str:
    if torch.version.hip is not None:
        return torch.version.hip
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        text = ""
    if match := re.search(r"\b\d{3,}\.\d[\d.]*", text):
        return match[0]
    # Elsewhere the version of CUDA that the driver supports has to do.
    return str(getattr(torch._C, "_cuda_getDriverVersion", lambda: "")())


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.*)$", text, re.M)
    return match[1] if match else platform.processor() or platform.machine()
