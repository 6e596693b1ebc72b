"""Checkpoints: one safetensors file, tensors beside a JSON state in its header.

One file, because a rename replaces one file atomically: whenever the process is killed, the path
holds a complete checkpoint, the new one or the one before.
"""

from __future__ import annotations

import contextlib
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.extras import require
from dmlap_kernels.trainer.chunks import map_tensors
from dmlap_kernels.trainer.nested_state import pack, unpack

FILE_NAME = "checkpoint.safetensors"
_FORMAT = 2
# Of format 1 the optimizer's state is tensors alone.
_READABLE = (1, 2)


class CheckpointError(ValueError):
    """A checkpoint is missing, broken, or belongs to something else."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``: at no moment is the file missing or incomplete.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # Half a file would take the room that is wanting.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = error.strerror or error
        kept = "; the one from before is kept" if path.exists() else ""
        raise OSError(f"{path} cannot be written: {reason}{kept}") from error
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
        tensors, metadata = _read(path)
        state = json.loads(metadata["state"])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from error
    if not isinstance(state, dict) or state.get("format") not in _READABLE:
        found = state.get("format") if isinstance(state, dict) else None
        readable = " and ".join(map(str, _READABLE))
        raise CheckpointError(f"{path} has format {found}; this version reads {readable}")
    return tensors, state


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        # The library opens files by names of UTF-8 alone: this one is read for it.
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8:end]).get("__metadata__", {})
        return require("safetensors.torch", purpose="checkpoints").load(content), metadata
    safetensors = require("safetensors", purpose="checkpoints")
    with safetensors.safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return tensors, file.metadata() or {}


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[Any, dict[str, Tensor]]:
    """All that ``optimizer.state_dict()`` holds, as JSON and its tensors by name.

    Raises:
        TypeError: naming what a checkpoint cannot hold.
    """
    tensors: dict[str, Tensor] = {}
    whole = dict(optimizer.state_dict())
    state = whole.pop("state", {})
    values = {
        # By number of the parameter, or by a key of the optimizer's own.
        "state": [[pack(k, {}, "key"), pack(v, tensors, str(k))] for k, v in state.items()],
        "rest": pack(whole, tensors, "optimizer"),
        "device": next((p.device.type for p in _parameters(optimizer)), "cpu"),
    }
    return values, tensors


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimizer by name; those of a parameter are called ``INDEX.NAME``."""
    return pack_optimizer(optimizer)[1]


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], values: Any = None
) -> None:
    """Put back what `pack_optimizer` returned; without its ``values`` the tensors alone.

    Raises:
        CheckpointError: the optimizer has other groups than the one that was saved.
    """
    parameters = _parameters(optimizer)
    if values is None:
        for key, value in tensors.items():
            index, _, name = key.partition(".")
            parameter = parameters[int(index)]
            optimizer.state[parameter][name] = _in_layout(value, parameter)
        return
    device = parameters[0].device if parameters else torch.device("cpu")
    state = {}
    for packed_key, packed in values["state"]:
        key, entries = unpack(packed_key, tensors, device), unpack(packed, tensors, device)
        state[key] = entries
        if isinstance(key, int):
            state[key] = map_tensors(entries, partial(_in_layout, parameter=parameters[key]))
    rest = unpack(values["rest"], tensors, device)
    try:
        optimizer.load_state_dict({"state": state, **rest})
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"the optimizer is not the one of the run: {error}") from error
    own_form = type(optimizer).state_dict is not torch.optim.Optimizer.state_dict
    if own_form or values["device"] != device.type:
        return
    # load_state_dict has cast tensors to the parameters' dtype, and does not know all types.
    for key, entries in state.items():
        owner = parameters[key] if isinstance(key, int) else key
        optimizer.state[owner] = entries


def _in_layout(value: Tensor, parameter: Tensor) -> Tensor:
    """``value`` in the parameter's own memory layout, as the optimizer made it."""
    if value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def of_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
