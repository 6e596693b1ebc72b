"""Input validation: one place, one wording.

Every check raises before any kernel runs, with a sentence that names the argument, what was given
and what is accepted. Data is looked at on the CPU alone, so that nothing waits for a device, but
for labels that are floats.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlap_kernels.match import Match
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
        torch.bool,
    )
)


_MOST = sys.float_info.max


def names(values: Sequence[Any]) -> str:
    return ", ".join(str(v).removeprefix("torch.") for v in values)


def choice(argument: str, value: Any, accepted: Sequence[str]) -> str:
    """``value`` itself if it is one of ``accepted``; else ValueError."""
    if value not in accepted:
        listed = ", ".join(repr(a) for a in accepted)
        raise ValueError(f"{argument} must be one of {listed}, got {value!r}")
    return value


def number(
    argument: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    above: float = -math.inf,
    maximum: float = math.inf,
) -> float | Tensor:
    """``value`` as a finite float of at least ``minimum``, more than ``above``.

    A tensor or array of one number counts as that number. A tensor that needs a gradient, or that
    cannot be read without waiting for its device, stays a tensor () and keeps its gradient.
    """
    if isinstance(value, Tensor):
        return _number_tensor(argument, value, minimum=minimum, above=above, maximum=maximum)
    given = value
    if not isinstance(value, (int, float)) and getattr(value, "ndim", None) == 0:
        value = value.item()  # a NumPy scalar or array
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be a number, got {describe(given)}")
    # Comparisons rather than math.isfinite, which torch.compile cannot trace for dynamic numbers.
    if not (-_MOST <= value <= _MOST and minimum <= value <= maximum and value > above):
        bounds = [] if minimum == -math.inf else [f"at least {minimum:g}"]
        bounds += [] if above == -math.inf else [f"greater than {above:g}"]
        bounds += [] if maximum == math.inf else [f"at most {maximum:g}"]
        raise ValueError(f"{argument} must be {' and '.join(['finite', *bounds])}, got {value!r}")
    return value if torch.compiler.is_compiling() else float(value)


def _number_tensor(argument: str, value: Tensor, **bounds: float) -> float | Tensor:
    dense(argument, value)
    if value.numel() != 1 or value.ndim > 1 or value.dtype == torch.bool or value.is_complex():
        raise TypeError(f"{argument} must be a number or a tensor of one, got {describe(value)}")
    if torch.compiler.is_compiling():
        return value.reshape(())
    readable = value.device.type == "cpu" and _readable(value)
    checked = number(argument, value.detach().item(), **bounds) if readable else None
    return value.reshape(()) if checked is None or value.requires_grad else checked


def constant(argument: str, value: Any, **bounds: float) -> float | Tensor:
    """A `number` that only picks pairs: a tensor that needs a gradient is refused."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(
            f"{argument} only decides which pairs take part, so that the loss has no gradient with "
            f"respect to it: give a number or a tensor that needs no gradient, got "
            f"{describe(value)} with requires_grad=True"
        )
    return number(argument, value, **bounds)


def flag(argument: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False, got {describe(value)}")
    return value


def count(argument: str, value: Any, *, minimum: int, maximum: int, why: str) -> int:
    """``value`` as an int within ``minimum..maximum``; ``why`` explains the upper end."""
    whole = integer(value)
    if whole is None:
        raise TypeError(f"{argument} must be an integer, got {describe(value)}")
    if not minimum <= whole <= maximum:
        raise ValueError(f"{argument} must be in {minimum}..{maximum} ({why}), got {whole}")
    return whole


def integer(value: Any) -> int | None:
    """``value`` as an int if it is an integer of Python, of NumPy or in a tensor, but no bool."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):  # no integer, or none that can be looked at
        return None


def at_least(argument: str, value: Any, minimum: int) -> int:
    """``value`` as an int of at least ``minimum``."""
    whole = integer(value)
    if whole is None or whole < minimum:
        raise ValueError(f"{argument} must be an integer of at least {minimum}, got {value!r}")
    return whole


def seed(value: Any) -> int:
    """``value`` as an int of any size and sign."""
    whole = integer(value)
    if whole is None:
        raise TypeError(f"seed must be an integer, got {describe(value)}")
    return whole


def precision(value: Any) -> str | None:
    """The matmul precision a call may use; None leaves it to PyTorch's setting."""
    return None if value is None else choice("precision", value, PRECISIONS)


def _readable(tensor: Tensor) -> bool:
    """Whether its values can be looked at now: neither traced nor transformed nor without data."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.device.type != "meta"
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return f"{value!r} ({type(value).__name__})"


def embeddings(argument: str, value: Any) -> Tensor:
    """``value`` if it is a dense (rows, features) tensor of an accepted dtype."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument} must be a torch.Tensor, got {type(value).__name__}")
    dense(argument, value)
    if value.ndim != 2:
        raise ValueError(f"{argument} must have shape (rows, features), got {tuple(value.shape)}")
    if value.dtype not in EMBEDDING_DTYPES:
        raise TypeError(
            f"{argument} must be one of {names(EMBEDDING_DTYPES)}, got {describe(value)}"
        )
    if value.shape[1] == 0:
        raise ValueError(f"{argument} must have at least one feature, got {tuple(value.shape)}")
    return value


def dense(argument: str, value: Tensor) -> None:
    """Refuses tensors that are not laid out by strides: sparse, MKL-DNN, nested."""
    if value.layout is not torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else names((value.layout,))
        cure = "torch.nested.to_padded_tensor" if value.is_nested else ".to_dense()"
        raise TypeError(f"{argument} must be a dense tensor ({cure}), got a {kind} one")


def with_data(argument: str, value: Tensor) -> None:
    """Refuses a tensor without numbers where these have to be looked at."""
    if value.is_meta:
        raise TypeError(f"{argument} must be a tensor with data, got {describe(value)} on meta")


def labels(argument: str, value: Any, rows: Tensor, rows_argument: str) -> Tensor:
    """``value`` as int64 (rows,) if it labels ``rows``: one whole number a row, on their device.

    A tensor or NumPy array of shape (rows,) or (rows, 1), of integers, bools, or floats that are
    whole numbers, for which the values of a device are waited for.
    """
    count = rows.shape[0]
    if (  # as nearly all labels are: no closer look
        type(value) is Tensor
        and value.dtype is torch.int64
        and value.layout is torch.strided
        and not value.is_nested
        and value.shape == (count,)
        and value.device == rows.device
    ):
        return value
    value = _column(argument, value, rows.device)
    if value.ndim != 1 or value.shape[0] != count:
        raise ValueError(
            f"{argument} must have shape ({count},), one label for each row of "
            f"{rows_argument}, got {tuple(value.shape)}"
        )
    if value.device != rows.device:
        raise ValueError(
            f"{argument} must be on the device of {rows_argument} ({rows.device}), "
            f"got {value.device}"
        )
    return _as_int64(argument, value)


def data_labels(argument: str, value: Any) -> Tensor:
    """``value`` as int64 (N,) on the CPU: the labels of a data set, in any form that `labels`
    takes, or a sequence of numbers."""
    if not isinstance(value, (Tensor, np.ndarray)):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{argument} must be one number a sample: {error}") from error
        if value.dtype.kind not in "biuf":
            raise TypeError(f"{argument} must be whole numbers, got {value.dtype}")
    value = _column(argument, value, torch.device("cpu"))
    with_data(argument, value)
    if value.ndim != 1:
        raise ValueError(
            f"{argument} must have shape (N,), one label for each sample, got {tuple(value.shape)}"
        )
    return _as_int64(argument, value.cpu())


def _column(argument: str, value: Any, device: torch.device) -> Tensor:
    """A tensor or NumPy array as a tensor, without a second dimension of 1."""
    if not isinstance(value, Tensor) and isinstance(value, np.ndarray):
        value = from_array(argument, value, device)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{argument} must be a torch.Tensor or a NumPy array, got {type(value).__name__}"
        )
    dense(argument, value)
    return value[:, 0] if value.ndim == 2 and value.shape[1] == 1 else value


def from_array(argument: str, value: np.ndarray, device: torch.device) -> Tensor:
    """``value`` in a tensor, copied where PyTorch would refuse it (a foreign byte order, steps
    backwards) or warn (not to be written to, as memory maps and pandas have them)."""
    backwards = any(stride < 0 for stride in value.strides)
    if backwards or not value.flags.writeable or not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="), order="C")
    try:
        return torch.as_tensor(value, device=device)
    except TypeError as error:
        raise TypeError(f"{argument} must be whole numbers, got {value.dtype}") from error


def _as_int64(argument: str, value: Tensor) -> Tensor:
    if value.dtype == torch.int64:
        return value
    if value.dtype not in _LABEL_DTYPES:
        _whole(argument, value)
    return value.long()


def _whole(argument: str, value: Tensor) -> None:
    """Refuses what is no whole number that int64 holds."""
    if not value.dtype.is_floating_point or not _readable(value):
        raise TypeError(f"{argument} must have an integer dtype, got {describe(value)}")
    whole = (value == value.round()) & (value.abs() < 2.0**63)  # NaN is not equal to itself
    if not whole.all():
        bad = value[~whole][0].item()
        raise ValueError(f"{argument} must be whole numbers, got {bad!r}")


def same_kind(argument: str, value: Tensor, other: Tensor, other_argument: str) -> None:
    """``value`` and ``other`` must agree in features and device."""
    if value.shape[1] != other.shape[1]:
        raise ValueError(
            f"{argument} must have the {other.shape[1]} features of {other_argument}, "
            f"got {tuple(value.shape)}"
        )
    if value.device != other.device:
        raise ValueError(
            f"{argument} must be on the device of {other_argument} ({other.device}), "
            f"got {value.device}"
        )


def promoted(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype to which PyTorch promotes the two: a half batch meets a float32 memory, or
    proxies, which keep their dtype under autocast."""
    if x.dtype == y.dtype:
        return x, y
    common = torch.promote_types(x.dtype, y.dtype)
    return x.to(common), y.to(common)


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
        x, y = promoted(x, y)
    itself = self_index(self_at, x, y, "embeddings", "ref_embeddings")
    return _differentiable(PairProblem(x, x_labels, y, y_labels, None, itself))


def matched_problem(
    x: Any, x_labels: Any, y: Any, y_labels: Any, self_at: Any, match: Any
) -> tuple[PairProblem, Match | None]:
    """The checked tensors of a loss call whose positives may be those of a ``match``.

    The labels of the problem are then those of the call if they are classes, else zeros.
    """
    if match is None:
        return pair_problem(x, x_labels, y, y_labels, self_at), None
    embeddings("embeddings", x)
    refs = x
    if y is not None:
        refs = embeddings("ref_embeddings", y)
    if isinstance(match, Tensor):
        shape = x.shape[0], refs.shape[0]
        if match.dtype != torch.bool or match.shape != shape or match.device != x.device:
            raise ValueError(
                f"match must be a bool matrix {shape} on {x.device}, or a function, got "
                f"{describe(match)} on {match.device}"
            )
        found = Match(match)
    elif callable(match):
        rows = _any_labels("labels", x_labels, x, "embeddings")
        columns = rows
        if y is not None:
            columns = _any_labels("ref_labels", y_labels, refs, "ref_embeddings")
        found = Match(None, match, rows, columns)
    else:
        raise TypeError(f"match must be a bool matrix or a function, got {describe(match)}")
    if y is None and y_labels is not None:
        raise ValueError("ref_labels must be left out without ref_embeddings")
    names = _classes_or_zeros(x_labels, x), None if y is None else _classes_or_zeros(None, y)
    return pair_problem(x, names[0], y, names[1], self_at), found


def _any_labels(argument: str, value: Any, rows: Tensor, rows_argument: str) -> Tensor:
    """``value`` (rows, ...) of any dtype, which only the function of a match looks at."""
    if isinstance(value, np.ndarray):
        value = from_array(argument, value, rows.device)
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument} must be a tensor or an array, got {describe(value)}")
    if value.ndim == 0 or value.shape[0] != rows.shape[0] or value.device != rows.device:
        raise ValueError(
            f"{argument} must have the {rows.shape[0]} rows of {rows_argument} on {rows.device}, "
            f"got {describe(value)} on {value.device}"
        )
    return value


def are_classes(value: Any) -> bool:
    """Whether labels are one whole number a row."""
    shape = getattr(value, "shape", None)
    if shape is None or not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        return False
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iub"
    return isinstance(value, Tensor) and value.dtype in _LABEL_DTYPES


def classes_given(argument: str, value: Any) -> None:
    """Refuses an ``argument`` with an entry for each class where labels are none."""
    if not are_classes(value):
        raise ValueError(
            f"{argument} must be one number where labels are not one whole number a row, got "
            f"labels {describe(value)}"
        )


def _classes_or_zeros(value: Any, rows: Tensor) -> Any:
    if are_classes(value):
        return value
    return torch.zeros(rows.shape[0], dtype=torch.int64, device=rows.device)


def proxy_problem(x: Any, x_labels: Any, proxies: Any, proxy_labels: Any) -> PairProblem:
    """The checked tensors of a call with proxies as references."""
    embeddings("embeddings", x)
    x_labels = labels("labels", x_labels, x, "embeddings")
    embeddings("proxies", proxies)
    same_kind("proxies", proxies, x, "embeddings")
    x, proxies = promoted(x, proxies)
    if proxy_labels is None:
        proxy_labels = torch.arange(proxies.shape[0], device=proxies.device)
    proxy_labels = labels("proxy_labels", proxy_labels, proxies, "proxies")
    return _differentiable(PairProblem(x, x_labels, proxies, proxy_labels))


def _differentiable(problem: PairProblem) -> PairProblem:
    """Tensors made in inference mode, such as labels or a memory, cannot be kept for backward: a
    copy can."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return problem
    for tensor in problem:
        if tensor is not None and tensor.is_inference():
            return PairProblem._make(
                t.clone() if t is not None and t.is_inference() else t for t in problem
            )
    return problem


def per_anchor(argument: str, value: Any, problem: PairProblem) -> Tensor:
    """``value``, one number or one a class, as the number of each anchor (B,).

    Differentiable; in the compute dtype of the embeddings.
    """
    x = problem.x
    real = compute_dtype(x.dtype)
    if not isinstance(value, Tensor):
        return x.new_ones(x.shape[0], dtype=real) * number(argument, value)
    dense(argument, value)
    if value.numel() == 1 and value.ndim < 2:
        one = number(argument, value)
        if not isinstance(one, Tensor):
            return x.new_ones(x.shape[0], dtype=real) * one
        return one.to(x.device, real).expand(x.shape[0])
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
    classes_known(argument, value.shape[0], problem.labels)
    return value.to(real).index_select(0, problem.labels)


def classes_known(argument: str, classes: int, labels: Tensor) -> None:
    """Every label must be in 0..classes - 1, as ``argument`` has an entry for each of these.

    On the CPU a ValueError names the labels that are not. On a device, where looking would mean
    waiting, the device itself stops, as it does for PyTorch's cross entropy.
    """
    if labels.numel() == 0 or labels.device.type == "meta":
        return
    if labels.device.type != "cpu" or not _readable(labels):
        torch._assert_async(
            ((labels >= 0) & (labels < classes)).all(), f"a label has no entry in {argument}"
        )
        return
    least, most = labels.aminmax()
    if least < 0 or most >= classes:
        outside = labels[(labels < 0) | (labels >= classes)].unique()
        raise ValueError(
            f"{argument} has an entry for each label in 0..{classes - 1}, got "
            f"{listed('label', outside.tolist())}"
        )


def listed(what: str, values: Sequence[Any], most: int = 5) -> str:
    """ "label 7", "labels 7, 9", or the first of many and how many more there are."""
    shown = ", ".join(str(v) for v in values[:most])
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return f"{what}{'s' if len(values) > 1 else ''} {shown}{more}"
