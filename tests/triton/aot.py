"""Compiles what a call would launch, by Triton's own way, for chips that need not be here."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from dmlap_kernels.backends.triton import configurations

# Shared memory of a program, in bytes, by capability.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# What Triton and ptxas make of a kernel is a matter of their versions: resources and instructions
# are for the one that is looked at closely, while any that is supported must compile.
CHECKED = os.environ.get("DMLAP_CHECK_REGISTERS") == "1"
_RUN = JITFunction.run
_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True)
class Chip:
    """What Triton asks a driver before it compiles. Each chip has a device number of its own: what
    was compiled is kept by device."""

    capability: int

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


@dataclass(frozen=True)
class Launch:
    """A kernel, the arguments of one launch by name, and what is launched: ``metadata.shared``,
    ``asm`` and more."""

    kernel: JITFunction
    arguments: dict[str, Any]
    compiled: Any
    capability: int

    @property
    def ptx(self) -> str:
        return self.compiled.asm["ptx"]


def launches(monkeypatch: Any, call: Callable[[], Any], capability: int) -> list[Launch]:
    """What a call launches on a chip, without running it; what differs from an earlier launch in
    numbers alone is left out."""
    found: dict[int, Launch] = {}

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        compiled = _RUN(self, *args, grid=grid, warmup=True, **keywords)
        arguments = dict(zip(self.arg_names, args, strict=False)) | keywords
        found.setdefault(id(compiled), Launch(self, arguments, compiled, capability))

    active = "_active" if hasattr(driver, "_active") else "active"  # before Triton 3.5
    monkeypatch.setattr(driver, active, Chip(capability))
    monkeypatch.setattr(JITFunction, "run", record)
    chip = divmod(capability, 10)
    monkeypatch.setattr(configurations, "capability_of", lambda device: chip)
    call()
    return list(found.values())


def assert_fits(launch: Launch, folder: Path, instruction: str = "", stack: int = 0) -> None:
    """Asserts that a launch has been compiled; with DMLAP_CHECK_REGISTERS=1 in the environment also
    that it needs no more than its chip has, that a thread spills no more than ``stack`` bytes, and
    that it has an instruction."""
    assert launch.compiled.asm["cubin"]
    if not CHECKED:
        return
    assert instruction in launch.ptx
    assert launch.compiled.metadata.shared <= SHARED_MEMORY[launch.capability]
    usage = _dumped(launch, folder, "--dump-resource-usage")
    # What a thread keeps in memory for lack of registers.
    (kept,) = re.findall(r"STACK:(\d+)", usage)
    assert int(kept) <= stack, usage


def main_loop(launch: Launch, folder: Path) -> list[str]:
    """The instructions of a kernel's first loop that reads memory, as the chip has them."""
    listing = _dumped(launch, folder, "-sass")
    code = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", listing, re.MULTILINE)
    for place, text in code:
        target = re.search(r"\bBRA\b.*0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < int(place, 16):
            inside = range(int(target[1], 16), int(place, 16) + 1)
            loop = [text for place, text in code if int(place, 16) in inside]
            if any("LDG" in text for text in loop):
                return loop
    raise AssertionError("no loop reads memory")


def _dumped(launch: Launch, folder: Path, what: str) -> str:
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(launch.compiled.asm["cubin"])
    command = [_CUOBJDUMP, what, str(cubin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
