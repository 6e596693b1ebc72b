"""Compiles what a call would launch, for chips that need not be here."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from dmlap_kernels.backends.triton import configurations

# Shared memory of a program, in bytes, by capability.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
_TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
_OPTIONS = ("num_warps", "num_stages", "maxnreg")


@dataclass(frozen=True)
class Launch:
    """A kernel and the arguments of one launch, by name."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, int]

    def compiled(self, capability: int) -> Any:
        """The kernel for a chip: ``metadata.shared``, ``asm`` and more."""
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.is_constexpr or _is_constant(value):
                signature[parameter.name], constants[parameter.name] = "constexpr", value
                continue
            signature[parameter.name] = _type_of(value)
            attributes |= {(index, *path): [["tt.divisibility", 16]] for path in _aligned(value)}
        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, GPUTarget("cuda", capability, 32), self.options)


def _is_constant(value: Any) -> bool:
    return value is None or (isinstance(value, int) and value == 1)


def _type_of(value: Any) -> Any:
    if isinstance(value, tuple):
        parts = map(_type_of, value)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _aligned(value: Any) -> list[tuple[int, ...]]:
    """Where in an argument, maybe a tuple, there are addresses and multiples of 16."""
    if isinstance(value, tuple):
        return [(i, *path) for i, part in enumerate(value) for path in _aligned(part)]
    aligned = isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
    return [()] if aligned else []


def launches(monkeypatch: Any, call: Callable[[], Any], capability: int = 80) -> list[Launch]:
    """What a call launches on a chip of this capability, without running it."""
    found: list[Launch] = []

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        options = {name: keywords.pop(name) for name in _OPTIONS if name in keywords}
        arguments = dict(zip(self.arg_names, args, strict=False)) | keywords
        found.append(Launch(self, arguments, options))

    monkeypatch.setattr(JITFunction, "run", record)
    chip = divmod(capability, 10)
    monkeypatch.setattr(configurations, "capability_of", lambda device: chip)
    call()
    return found


def assert_fits(launch: Launch, capability: int, folder: Path) -> None:
    """Compiles a launch and asserts that it needs no more than a chip has, and spills nothing."""
    compiled = launch.compiled(capability)
    assert compiled.metadata.shared <= SHARED_MEMORY[capability]
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    command = [_CUOBJDUMP, "--dump-resource-usage", str(cubin)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # What a thread keeps in memory for lack of registers.
    stacks = re.findall(r"STACK:(\d+)", usage)
    assert stacks == ["0"], usage
