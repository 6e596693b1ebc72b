"""Nested state as JSON beside named tensors, and back, bit for bit and without pickle."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def pack(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """``value`` for JSON; its tensors go into ``tensors``, by the path that they stand at.

    Takes None, bool, int, float, complex, str, dense tensors, torch dtypes and devices,
    NumPy's arrays and numbers, and dicts, lists, tuples, sets and deques of them. A tensor that
    stands twice is kept once.

    Raises:
        TypeError: naming what is something else.
    """
    return _Packer(tensors).pack(value, path)


class _Packer:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self._paths: dict[int, str] = {}

    def pack(self, value: Any, path: str) -> Any:
        if value is None or isinstance(value, (bool, str)):
            return value
        for kind in (int, float):
            if isinstance(value, kind) and not isinstance(value, np.generic):
                return kind(value)
        if isinstance(value, Tensor):
            return self._pack_tensor(value, path)
        if isinstance(value, Mapping):
            items = enumerate(value.items())
            return {
                "dict": [
                    [self.pack(key, f"{path}.key{i}"), self.pack(part, f"{path}.{key}")]
                    for i, (key, part) in items
                ]
            }
        if isinstance(value, list):
            return self._parts(value, path)
        for name, kinds in (("tuple", tuple), ("set", (set, frozenset)), ("deque", deque)):
            if isinstance(value, kinds):  # type: ignore[arg-type]
                length = {"maxlen": value.maxlen} if isinstance(value, deque) else {}
                return {name: self._parts(value, path), **length}
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            return {"array": self._pack_tensor(torch.tensor(value, device="cpu"), path)}
        if isinstance(value, np.generic) and value.dtype.kind in "biuf":
            return {"numpy": [value.dtype.str, value.item()]}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        raise TypeError(
            f"{path} is of type {type(value).__name__}, which a checkpoint cannot hold; it holds "
            "numbers, strings, None, dense tensors, and dicts, lists, tuples and sets of them"
        )

    def _parts(self, values: Any, path: str) -> list[Any]:
        return [self.pack(part, f"{path}.{i}") for i, part in enumerate(values)]

    def _pack_tensor(self, value: Tensor, path: str) -> dict[str, Any]:
        if value.layout is not torch.strided or value.is_quantized or value.device.type == "meta":
            raise TypeError(f"{path} is a tensor that is not dense, which a checkpoint cannot hold")
        path = self._paths.setdefault(id(value), path)
        self._tensors[path] = value.detach()
        return {"tensor": path, "on_cpu": value.device.type == "cpu"}


def unpack(packed: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """What `pack` was given; its tensors on ``device``, except those that were on the CPU."""
    found: dict[str, Tensor] = {}

    def tensor(entry: dict[str, Any]) -> Tensor:
        path = entry["tensor"]
        if path not in found:
            found[path] = tensors[path] if entry["on_cpu"] else tensors[path].to(device)
        return found[path]

    def back(value: Any) -> Any:
        if isinstance(value, list):
            return [back(part) for part in value]
        if not isinstance(value, dict):
            return value
        makers: dict[str, Callable[[Any], Any]] = {
            "tensor": lambda _: tensor(value),
            "dict": lambda items: {back(key): back(part) for key, part in items},
            "tuple": lambda parts: tuple(map(back, parts)),
            "set": lambda parts: set(map(back, parts)),
            "deque": lambda parts: deque(map(back, parts), value["maxlen"]),
            "complex": lambda parts: complex(*parts),
            "array": lambda part: back(part).numpy(),
            "numpy": lambda parts: np.dtype(parts[0]).type(parts[1]),
            "dtype": lambda name: getattr(torch, name),
            "device": torch.device,
        }
        kind = next(iter(value))
        return makers[kind](value[kind])

    return back(packed)


def apart(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a ``state_dict``, and what is none: ``get_extra_state`` of a module."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in state.items() if name not in tensors}
