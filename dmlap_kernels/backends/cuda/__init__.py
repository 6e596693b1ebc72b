"""The `cuda` backend: the sweeps in CUDA C++, for NVIDIA GPUs of capability 8.0 and up."""

from __future__ import annotations

import functools
import json
from typing import Any

import torch

from dmlap_kernels.backends.cpu import native
from dmlap_kernels.backends.cuda.cuda_sweeps import CudaSweeps
from dmlap_kernels.backends.device.backend import DeviceBackend
from dmlap_kernels.backends.device.sweeps import Sweeps
from dmlap_kernels.problem import PairSpec

# Losses of primitives that it has no kernels for.
WITHOUT = ("triplet_easy_positive", "triplet_easy_positive_semihard")


@functools.cache
def machine() -> dict[str, Any]:
    """What the CUDA runtime of the extension sees: versions, devices, and its error if any."""
    extension = native()
    assert not isinstance(extension, str)
    return extension.cuda_machine()


def built_archs() -> list[str]:
    """Capabilities the extension holds code for, such as ``["80", "90"]``; empty without CUDA."""
    extension = native()
    if isinstance(extension, str):
        return []
    return json.loads(extension.build_info())["cuda_archs"] or []


def why_without() -> str:
    """Why the build left the CUDA half out, in its own words."""
    return json.loads(native().build_info()).get("cuda_why", "unknown")


def why_unavailable(archs: list[str], found: dict[str, Any], torch_cuda: str | None) -> str | None:
    """Why a machine as `machine` describes it cannot run code built for ``archs``."""
    driver, runtime = found["driver_version"], found["runtime_version"]
    if driver == 0:
        return "no NVIDIA driver was found"
    if driver // 1000 < runtime // 1000:
        return (
            f"the NVIDIA driver supports CUDA {_version(driver)}, but the extension was built with "
            f"CUDA {_version(runtime)}; install a newer driver, or build with an older nvcc"
        )
    if found["error"]:
        return f"the CUDA devices could not be listed: {found['error']}"
    if not found["devices"]:
        return "no CUDA device is visible"
    capabilities = [device["capability"] for device in found["devices"]]
    if not any(_runs(archs, capability) for capability in capabilities):
        have = ", ".join(sorted({f"{major}.{minor}" for major, minor in capabilities}))
        built = ", ".join(f"{arch[:-1]}.{arch[-1]}" for arch in archs)
        return (
            f"the only capabilities here are {have}, but the extension was built for {built} "
            "(DMLAP_CUDA_ARCHS)"
        )
    if torch_cuda is None:
        return "this PyTorch was built without CUDA"
    return None


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _runs(archs: list[str], capability: tuple[int, int]) -> bool:
    """Machine code serves its own major version from its minor on, PTX everything later."""
    mine = 10 * capability[0] + capability[1]
    exact = [int(arch) for arch in archs if arch.isdigit()]
    same_major = any(arch // 10 == capability[0] and arch <= mine for arch in exact)
    later = archs[-1].isdigit() and int(archs[-1]) <= mine
    return same_major or later or f"{mine}a" in archs or f"{mine}f" in archs


class CudaBackend(DeviceBackend):
    """Compiled sweeps for CUDA tensors."""

    name = "cuda"

    def unavailable(self) -> str | None:
        extension = native()
        if isinstance(extension, str):
            return extension
        archs = built_archs()
        if not archs:
            return f"the extension was built without CUDA: {why_without()}"
        return why_unavailable(archs, machine(), torch.version.cuda)

    def refuses(self, spec: PairSpec | None, device_type: str, dtype: torch.dtype) -> str | None:
        if spec is not None and spec.loss in WITHOUT:
            return f"it has no kernel for {spec.loss!r} (the torch and triton backends serve it)"
        return super().refuses(spec, device_type, dtype)

    def sweeps(self) -> Sweeps:
        return _sweeps()


@functools.cache
def _sweeps() -> Any:
    return CudaSweeps(native())
