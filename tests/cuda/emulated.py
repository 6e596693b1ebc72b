"""Compiles the CUDA sources for the CPU, with `emulation.h` in CUDA's place."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# What calls the CUDA runtime itself.
_DEVICE_ONLY = {"device.cu"}


def kernels() -> list[Path]:
    """The .cu files that run on the CPU."""
    return sorted(p for p in (ROOT / "csrc/cuda").glob("*.cu") if p.name not in _DEVICE_ONLY)


def compiler() -> str | None:
    return shutil.which("g++") or shutil.which("clang++")


def build(target: Path, sources: list[Path], flags: list[str], links: list[str]) -> Path:
    """The program or library ``target``, unless another process has made it."""
    with _alone(target):
        if not target.exists():
            command = [compiler() or "g++", "-x", "c++", "-std=c++17", "-DDMLAP_WITH_CUDA=1"]
            command += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
            command += ["-include", str(HERE / "emulation.h")]
            command += ["-I", str(ROOT / "csrc/include"), "-I", str(ROOT / "csrc/cuda"), *flags]
            objects = [target.with_suffix(f".{source.name}.o") for source in sources]

            def compile_one(source: Path, to: Path) -> None:
                subprocess.run([*command, "-c", str(source), "-o", str(to)], check=True)

            with ThreadPoolExecutor(2) as pool:
                list(pool.map(compile_one, sources, objects))
            link = [compiler() or "g++", *links, "-o", str(target), *map(str, objects)]
            subprocess.run(link, check=True)
    return target


def load(folder: Path) -> Any:
    """The module `dmlap_emulated`: the functions of ``python_bindings/cuda_sweeps.h``."""
    import pybind11

    flags = ["-O1", "-fPIC", "-fvisibility=hidden"]
    for path in (pybind11.get_include(), sysconfig.get_path("include")):
        flags += ["-isystem", path]
    sources = [ROOT / "python_bindings/cuda_sweeps.cpp", HERE / "emulated_module.cpp"]
    path = build(folder / "dmlap_emulated.so", [*kernels(), *sources], flags, ["-shared"])
    spec = importlib.util.spec_from_file_location("dmlap_emulated", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Test processes of one run share a folder; one of them builds."""
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
