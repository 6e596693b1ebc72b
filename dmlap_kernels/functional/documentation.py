"""What the docstrings of all losses share, put into each, so that ``help`` of one tells it all."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_PARTS = {
    "pairs": """\
embeddings: (B, D) of float32, float64, float16 or bfloat16: the anchors.
labels: (B,) or (B, 1), a whole number a row, of any integer dtype, bool, or floats without a
    fraction (which are read, so that a GPU is waited for); a tensor or a NumPy array.
ref_embeddings: (N, D) references on the same device, such as a memory of past batches: the
    rows that anchors are compared with, and to which the gradient flows as well. Of two dtypes
    the wider one counts for both. None for the batch itself, in which no row is compared with
    itself.
ref_labels: (N,), as ``labels``; together with ``ref_embeddings``.
self_index: (B,) of any integer dtype, with references: for each anchor the index of the
    reference that is the anchor itself, -1 for none; that pair is left out of everything.
    Without it an anchor that lies among the references is its own positive, at a distance of
    zero: ``loss(x, labels, x, labels)`` is another loss than ``loss(x, labels)``.""",
    "match": """\
match: which pairs are positive, where not those of equal labels; all others are negative. A
    bool matrix (B, N), or (B, B) without references, and labels may be None. Or a function of
    the labels (b, ...) of some anchors and (n, ...) of references that returns (b, n) bool, and
    labels and ref_labels are tensors with B and N rows of what it likes, such as several labels
    a row; it is called for a block of anchors at a time, in forward and backward, and for a
    block of references where backward looks from their side. Outside `torch.compile`; by the
    backend ``"torch"``, and on GPUs by ``"triton"`` where `dmlap_kernels.info.explain` says so.""",
    "proxies": """\
embeddings: (B, D) of float32, float64, float16 or bfloat16.
labels: (B,) or (B, 1), a whole number a row, of any integer dtype, bool, or floats without a
    fraction (which are read, so that a GPU is waited for); a tensor or a NumPy array.
proxies: (N, D) on the same device, the learnable stand-ins of classes; the gradient flows to
    them as well. Of two dtypes, as under autocast, the wider one counts for both.
proxy_labels: (N,), as ``labels``: the class of each proxy. None for 0..N - 1 in this order.""",
    "normalize": """\
normalize: L2-normalise the rows first, gradient included.""",
    "reduction": """\
reduction: ``"mean"`` over the terms of the batch; ``"mean_nonzero"``: the sum of the terms
    greater than 0 over their number; ``"sum"``; ``"none"``: (B,), for each anchor the mean of
    its terms, 0 if it has none.""",
    "two_groups": """\
reduction: ``"mean"`` over the terms of the batch; ``"mean_nonzero"``: the sum of the terms
    greater than 0 over their number; ``"sum"``; ``"none"``: (B,), for each anchor the mean of
    its terms, 0 if it has none. The two groups of terms are reduced apart, and added.""",
    "run": """\
backend: ``"auto"``, or one of ``"cpu"``, ``"torch"``, ``"triton"``, ``"cuda"``; ``dmlap info``
    lists those that run here.
precision: the least precision of matrix products that a backend may use on a GPU:
    ``"highest"``, ``"high"`` or ``"medium"``. None follows PyTorch's own setting. ``cpu`` and
    ``torch`` always take the highest.
return_stats: True to return (loss, `PairStats`); ``"class_scores"`` to have the statistics
    include `ClassScores`.""",
    "returns": """\
The loss () or, for ``reduction="none"``, (B,): float64 for float64 embeddings, float32
otherwise; or (loss, `PairStats`). It is 0, still attached to the graph, where there are no
terms, and not finite where an embedding is not. Gradients have the dtype of their input; at a
Euclidean distance of 0 the gradient is 0. A number given as a tensor () that needs a gradient,
such as an `nn.Parameter`, gets it: that of a temperature or ``softmax_scale`` at no cost, that
of another number by one more sweep, in plain PyTorch.""",
    "raises": """\
ValueError, TypeError: an argument is not as above; the message names it, and no kernel has run.
RuntimeError: a second derivative, or a forward-mode one, was asked for.""",
    "example": """\
>>> import torch
>>> from dmlap_kernels import FUNCTION
>>> embeddings = torch.randn(8, 16, requires_grad=True)
>>> labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
>>> FUNCTION(embeddings, labels).backward()""",
}


_SECTIONS = ("Args:", "Returns:", "Raises:", "Example:")
# Of these a docstring may place the one that fits, or describe the argument itself.
_REDUCTIONS = ("{reduction}", "{two_groups}", "reduction:")


def documented(function: F) -> F:
    """Fills the lines ``{part}`` of a docstring, indented as they are.

    A part that the docstring does not place goes where it belongs: to the arguments that all losses
    share, in the order of the signature, to what is returned and what is raised; and where it has
    no example, the shortest call is one.
    """
    lines = []
    for line in _with_every_part(function):
        text = line.strip()
        part = _PARTS.get(text[1:-1]) if text.startswith("{") and text.endswith("}") else None
        if part is None:
            lines.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        part = part.replace("FUNCTION", function.__name__)
        lines += [indent + one if one else one for one in part.splitlines()]
    function.__doc__ = "\n".join(lines)
    return function


def _with_every_part(function: F) -> list[str]:
    """The lines of a docstring, in which each part has its place."""
    sections: dict[str, list[str]] = {name: [] for name in ("", *_SECTIONS)}
    section = ""
    for line in inspect.cleandoc(function.__doc__ or "").splitlines():
        if line in _SECTIONS:
            section = line
        else:
            sections[section].append(line)
    names = inspect.signature(function).parameters
    told = [line.strip() for lines in sections.values() for line in lines]
    first = ["{proxies}" if "proxies" in names else "{pairs}"]
    first += ["{match}"] if "match" in names else []
    last = ["{normalize}"] if "normalize" in names else []
    last += [] if any(line.startswith(_REDUCTIONS) for line in told) else ["{reduction}"]
    for name, before, after in (
        ("Args:", first, [*last, "{run}"]),
        ("Returns:", ["{returns}"], []),
        ("Raises:", ["{raises}"], []),
        ("Example:", [] if any(sections["Example:"]) else ["{example}"], []),
    ):
        while sections[name] and not sections[name][-1]:
            sections[name].pop()
        before, after = ([f"    {p}" for p in parts if p not in told] for parts in (before, after))
        sections[name] = [*before, *sections[name], *after, ""]
    return [line for name, lines in sections.items() for line in (*([name] * bool(name)), *lines)]
