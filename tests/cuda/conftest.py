"""The kernels of the `cuda` backend, compiled for the CPU once for all tests of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmlap_kernels.backends import registry
from dmlap_kernels.backends.cuda import CudaBackend
from dmlap_kernels.backends.cuda.cuda_sweeps import CudaSweeps
from tests.cuda import emulated


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the processes of a run."""
    if emulated.compiler() is None:
        pytest.skip("no C++ compiler to build the emulated kernels with")
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def extension(folder: Path) -> Any:
    """The launchers' bindings, on the CPU."""
    return emulated.load(folder)


@pytest.fixture(scope="session")
def sweeps(extension: Any) -> CudaSweeps:
    return CudaSweeps(extension)


@pytest.fixture(params=["ascending", "descending"])
def order(request: pytest.FixtureRequest, extension: Any) -> Iterator[str]:
    """Threads of a block take turns in this order; a missing barrier shows in one of them."""
    extension.set_descending(request.param == "descending")
    yield request.param
    extension.set_descending(False)


class EmulatedBackend(CudaBackend):
    """Serves tensors on the CPU."""

    def __init__(self, sweeps: CudaSweeps) -> None:
        self._sweeps = sweeps

    def device_types(self) -> tuple[str, ...]:
        return ("cpu",)

    def unavailable(self) -> str | None:
        return None

    def sweeps(self) -> CudaSweeps:
        return self._sweeps


@pytest.fixture
def emulated_backend(sweeps: CudaSweeps, monkeypatch: pytest.MonkeyPatch) -> str:
    """Puts the emulated backend in the place of "cuda"; its name."""
    monkeypatch.setitem(registry.backends(), "cuda", EmulatedBackend(sweeps))
    monkeypatch.setattr(registry, "_chosen", {})
    return "cuda"
