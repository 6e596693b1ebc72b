"""Checkpoints: one safetensors file, tensors beside a JSON state in its header.

One file, because a rename replaces one file atomically: whenever the process is killed, the path
holds a complete checkpoint, the new one or the one before.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.extras import require

FILE_NAME = "checkpoint.safetensors"
_FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint is missing, broken, or belongs to something else."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``: at no moment is the file missing or incomplete."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_checkpoint(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write ``tensors`` and the JSON-able ``state`` to ``folder / FILE_NAME``."""
    safetensors = require("safetensors.torch", purpose="checkpoints")
    # clone: tied weights would be refused as shared memory.
    plain = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    header = {"state": json.dumps({"format": _FORMAT, **state})}
    path = folder / FILE_NAME
    write_atomically(path, safetensors.save(plain, metadata=header))
    return path


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state that `save_checkpoint` wrote.

    Raises:
        CheckpointError: there is no checkpoint, or it is not one of ours.
    """
    safetensors = require("safetensors", purpose="checkpoints")
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {FILE_NAME}: it is not the folder of a run")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from error
    if state.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} has format {state.get('format')}; this version reads format {_FORMAT}"
        )
    return tensors, state


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer by name, ``INDEX.NAME``, parameters numbered in order."""
    found = {}
    for i, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if value is None:  # SGD without momentum
                continue
            if not isinstance(value, Tensor):
                raise TypeError(f"the optimizer's {name} must be a tensor, got {value!r}")
            found[f"{i}.{name}"] = value
    return found


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned."""
    parameters = _parameters(optimizer)
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            # In the parameter's own memory layout, as the optimizer made it.
            value = torch.empty_like(parameter).copy_(value)
        optimizer.state[parameter][name] = value


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def of_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
