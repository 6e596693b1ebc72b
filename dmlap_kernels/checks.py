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

from dmlap_kernels.problem import EMBEDDING_DTYPES, PRECISIONS, PairProblem, compute_dtype

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


def number(
    argument: str, value: Any, *, minimum: float = -math.inf, above: float = -math.inf
) -> float:
    """``value`` as a finite float of at least ``minimum``, more than ``above``."""
    given = value
    if not isinstance(value, (int, float)) and getattr(value, "ndim", None) == 0:
        value = value.item()  # a tensor or array of one number
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be a number, got {describe(given)}")
    # Comparisons rather than math.isfinite, which torch.compile cannot trace for dynamic numbers.
    if not (-math.inf < value < math.inf and value >= minimum and value > above):
        bound = "" if minimum == -math.inf else f" and at least {minimum:g}"
        bound += "" if above == -math.inf else f" and greater than {above:g}"
        raise ValueError(f"{argument} must be finite{bound}, got {value!r}")
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


def _readable(tensor: Tensor) -> bool:
    """Whether its values can be looked at now: neither being traced nor without data."""
    return not torch.compiler.is_compiling() and type(tensor) in (Tensor, torch.nn.Parameter)


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


def self_index(value: Any, rows: Tensor, refs: Tensor | None, *names: str) -> Tensor | None:
    """``value`` as int64 (rows,): for each row the reference that is the row itself, -1 for none.

    ``names`` are those of the arguments ``rows`` and ``refs``. On the CPU the indices are looked
    at; elsewhere one that is no reference leaves nothing out.
    """
    if value is None:
        return None
    rows_argument, refs_argument = names
    if refs is None:
        raise ValueError(
            f"self_index must be left out without {refs_argument}: a row is then never paired "
            f"with itself, got {describe(value)}"
        )
    found = labels("self_index", value, rows, rows_argument)
    if found.device.type == "cpu" and _readable(found) and found.numel():
        least, most = (int(v) for v in found.aminmax())
        if least < -1 or most >= refs.shape[0]:
            raise ValueError(
                f"self_index must be in -1..{refs.shape[0] - 1} (rows of {refs_argument}, -1 for "
                f"none), got {least if least < -1 else most}"
            )
    return found


def pair_problem(x: Any, x_labels: Any, y: Any, y_labels: Any, self_at: Any = None) -> PairProblem:
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
    itself = self_index(self_at, x, y, "embeddings", "ref_embeddings")
    return PairProblem(x, x_labels, y, y_labels, None, itself)


def proxy_problem(x: Any, x_labels: Any, proxies: Any, proxy_labels: Any) -> PairProblem:
    """The checked tensors of a call with proxies as references.

    Proxies are parameters, which keep their dtype under autocast while embeddings do not: tensors
    of two dtypes are both brought to the wider one.
    """
    embeddings("embeddings", x)
    x_labels = labels("labels", x_labels, x, "embeddings")
    embeddings("proxies", proxies)
    if proxies.dtype != x.dtype:
        common = torch.promote_types(proxies.dtype, x.dtype)
        proxies, x = proxies.to(common), x.to(common)
    same_kind("proxies", proxies, x, "embeddings")
    if proxy_labels is None:
        proxy_labels = torch.arange(proxies.shape[0], device=proxies.device)
    proxy_labels = labels("proxy_labels", proxy_labels, proxies, "proxies")
    return PairProblem(x, x_labels, proxies, proxy_labels)


def per_anchor(argument: str, value: Any, problem: PairProblem) -> Tensor:
    """``value``, one number or one a class, as the number of each anchor (B,).

    Differentiable; in the compute dtype of the embeddings.
    """
    x = problem.x
    real = compute_dtype(x.dtype)
    if not isinstance(value, Tensor):
        return torch.full((x.shape[0],), number(argument, value), dtype=real, device=x.device)
    if not value.dtype.is_floating_point:
        raise TypeError(f"{argument} must be a number or a floating tensor, got {describe(value)}")
    if value.ndim > 1 or value.numel() == 0:
        raise ValueError(
            f"{argument} must have shape (), (1,) or (classes,), got {tuple(value.shape)}"
        )
    if value.device != x.device:
        raise ValueError(
            f"{argument} must be on the device of embeddings ({x.device}), got {value.device}"
        )
    if value.numel() == 1:
        return value.to(real).expand(x.shape[0])
    if torch.compiler.is_compiling():
        return value.to(real).index_select(0, problem.labels)
    try:
        return value.to(real).index_select(0, problem.labels)
    except IndexError as error:
        raise ValueError(
            f"{argument} must have an entry for every label, which are then in "
            f"0..{value.numel() - 1}, got shape {tuple(value.shape)} and a label beyond"
        ) from error
