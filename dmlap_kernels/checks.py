"""Input validation: one place, one wording.

Every check raises before any kernel runs, with a sentence that names the argument, what was given
and what is accepted. None of them reads tensor data, so none synchronises a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.problem import EMBEDDING_DTYPES, PRECISIONS, PairProblem

_LABEL_DTYPES = frozenset(
    (
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    )
)


def names(values: Sequence[Any]) -> str:
    return ", ".join(str(v).removeprefix("torch.") for v in values)


def choice(argument: str, value: Any, accepted: Sequence[str]) -> str:
    """``value`` itself if it is one of ``accepted``; else ValueError."""
    if value not in accepted:
        listed = ", ".join(repr(a) for a in accepted)
        raise ValueError(f"{argument} must be one of {listed}, got {value!r}")
    return value


def number(argument: str, value: Any, *, minimum: float = -math.inf) -> float:
    """``value`` as a finite float of at least ``minimum``; else TypeError or ValueError."""
    given = value
    if not isinstance(value, (int, float)) and getattr(value, "ndim", None) == 0:
        value = value.item()  # a tensor or array of one number
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be a number, got {describe(given)}")
    # Comparisons rather than math.isfinite, which torch.compile cannot trace for dynamic numbers.
    if not (-math.inf < value < math.inf and value >= minimum):
        bound = "finite" if minimum == -math.inf else f"finite and at least {minimum:g}"
        raise ValueError(f"{argument} must be {bound}, got {value!r}")
    return float(value)


def flag(argument: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False, got {describe(value)}")
    return value


def count(argument: str, value: Any, *, minimum: int, maximum: int, why: str) -> int:
    """``value`` as an int within ``minimum..maximum``; ``why`` explains the upper end."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument} must be an integer, got {describe(value)}")
    if not minimum <= value <= maximum:
        raise ValueError(f"{argument} must be in {minimum}..{maximum} ({why}), got {value}")
    return value


def precision(value: Any) -> str | None:
    """The matmul precision a call may use; None leaves it to PyTorch's setting."""
    return None if value is None else choice("precision", value, PRECISIONS)


def describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return f"{value!r} ({type(value).__name__})"


def embeddings(argument: str, value: Any) -> Tensor:
    """``value`` if it is a (rows, features) tensor of an accepted dtype."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument} must be a torch.Tensor, got {type(value).__name__}")
    if value.ndim != 2:
        raise ValueError(f"{argument} must have shape (rows, features), got {tuple(value.shape)}")
    if value.dtype not in EMBEDDING_DTYPES:
        raise TypeError(
            f"{argument} must be one of {names(EMBEDDING_DTYPES)}, got {describe(value)}"
        )
    if value.shape[1] == 0:
        raise ValueError(f"{argument} must have at least one feature, got {tuple(value.shape)}")
    return value


def labels(argument: str, value: Any, rows: Tensor, rows_argument: str) -> Tensor:
    """``value`` as int64 if it labels ``rows``: one integer a row, on the same device."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in _LABEL_DTYPES:
        raise TypeError(f"{argument} must have an integer dtype, got {describe(value)}")
    if value.ndim != 1 or value.shape[0] != rows.shape[0]:
        raise ValueError(
            f"{argument} must have shape ({rows.shape[0]},), one label for each row of "
            f"{rows_argument}, got {tuple(value.shape)}"
        )
    if value.device != rows.device:
        raise ValueError(
            f"{argument} must be on the device of {rows_argument} ({rows.device}), "
            f"got {value.device}"
        )
    return value if value.dtype == torch.int64 else value.long()


def same_kind(argument: str, value: Tensor, other: Tensor, other_argument: str) -> None:
    """``value`` and ``other`` must agree in features, dtype and device."""
    if value.shape[1] != other.shape[1]:
        raise ValueError(
            f"{argument} must have the {other.shape[1]} features of {other_argument}, "
            f"got {tuple(value.shape)}"
        )
    if value.dtype != other.dtype:
        raise TypeError(
            f"{argument} must have the dtype of {other_argument} "
            f"({names((other.dtype,))}), got {names((value.dtype,))}"
        )
    if value.device != other.device:
        raise ValueError(
            f"{argument} must be on the device of {other_argument} ({other.device}), "
            f"got {value.device}"
        )


def pair_problem(x: Any, x_labels: Any, y: Any, y_labels: Any) -> PairProblem:
    """The checked tensors of a loss call."""
    embeddings("embeddings", x)
    x_labels = labels("labels", x_labels, x, "embeddings")
    if (y is None) != (y_labels is None):
        given, missing = (
            ("ref_labels", "ref_embeddings") if y is None else ("ref_embeddings", "ref_labels")
        )
        raise ValueError(
            f"{missing} must be given together with {given}: references need embeddings and "
            "labels, got one without the other"
        )
    if y is not None:
        embeddings("ref_embeddings", y)
        y_labels = labels("ref_labels", y_labels, y, "ref_embeddings")
        same_kind("ref_embeddings", y, x, "embeddings")
    return PairProblem(x, x_labels, y, y_labels)
