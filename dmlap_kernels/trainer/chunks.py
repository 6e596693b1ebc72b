"""Inputs of an encoder, cut into chunks: tensors, and mappings and sequences of them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn


def chunk_sizes(rows: int, size: int) -> list[int]:
    """How many of ``rows`` each chunk has: ``size``, the last one what is left.

    A chunk of a single row has no statistics for batch normalisation: where one row would be left,
    the last two chunks share their rows, and chunks of two become one of three.
    """
    full, rest = divmod(rows, size)
    sizes = [size] * full + [rest] * (rest > 0)
    if rest != 1 or size == 1 or not full:
        return sizes
    shared = size + 1
    last = [shared] if shared < 4 else [shared - shared // 2, shared // 2]
    return sizes[:-2] + last


def count_rows(inputs: Any) -> int:
    """B, the rows of the tensors in ``inputs``; those without a dimension do not count.

    Raises:
        TypeError: there is no tensor.
        ValueError: tensors have different numbers of rows, or none.
    """
    found = [tensor for tensor in tensors_of(inputs) if tensor.ndim]
    if not found:
        raise TypeError(
            "inputs must be a tensor (B, ...), or a mapping, tuple or list with tensors (B, ...), "
            f"got {type(inputs).__name__} without any"
        )
    rows = {len(tensor) for tensor in found}
    if len(rows) > 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in found)
        raise ValueError(f"inputs must be tensors of the same number of rows, got shapes {shapes}")
    if not (count := rows.pop()):
        raise ValueError(
            f"inputs must have at least one row, got a tensor of shape {tuple(found[0].shape)}"
        )
    return count


def tensors_of(inputs: Any) -> list[Tensor]:
    """The tensors in ``inputs``, in their order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(inputs, keep)
    return found


def map_tensors(inputs: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """``inputs`` with ``function`` of every tensor in its place, and all else as it is."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        mapped = {key: map_tensors(value, function) for key, value in inputs.items()}
        if type(inputs) is dict or not isinstance(inputs, MutableMapping):
            return mapped
        # What tokenizers return has attributes beside its entries.
        copied = copy.copy(inputs)
        copied.update(mapped)
        return copied
    if isinstance(inputs, (tuple, list)):
        parts = [map_tensors(value, function) for value in inputs]
        return type(inputs)(*parts) if hasattr(inputs, "_fields") else type(inputs)(parts)
    return inputs


def call(encoder: Callable[..., Any], inputs: Any) -> Any:
    """``encoder(**inputs)`` or ``encoder(*inputs)`` where it takes them so, else
    ``encoder(inputs)``."""
    if isinstance(inputs, Mapping) and _takes(encoder, (), inputs):
        return encoder(**inputs)
    if isinstance(inputs, (tuple, list)) and _takes(encoder, inputs, {}):
        return encoder(*inputs)
    return encoder(inputs)


def _takes(encoder: Any, positional: Any, keywords: Any) -> bool:
    # Wrappers, such as that of distributed training, take everything and hand it on.
    while isinstance(inner := _wrapped(encoder), nn.Module):
        encoder = inner
    function = encoder.forward if isinstance(encoder, nn.Module) else encoder
    try:
        inspect.signature(function).bind(*positional, **keywords)
    except (TypeError, ValueError):
        return False
    return True


def _wrapped(encoder: Any) -> Any:
    modules = getattr(encoder, "_modules", {})
    return modules.get("_orig_mod") or (modules.get("module") if len(modules) == 1 else None)
