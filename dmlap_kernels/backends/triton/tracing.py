"""The formulas of a loss over vectors (B,) as expressions, and these as text of Triton functions.

The losses of `backends/device` are plain PyTorch. Run once with a `Symbol` in the place of each
tensor and of each number, they say what kernels are to compute: one statement serves all backends.
Derivatives are taken by `torch.autograd.grad`, as everywhere, which here adds expressions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

FLOAT, WHOLE, TRUTH = "float", "int", "bool"


class Symbol:
    """A vector over the anchors, or a number, by how it is made.

    Attributes:
        op: ``row`` and ``param`` are given from outside, by the name or the index in ``key``;
            ``const`` is the number ``key``; others are made of ``parts``.
        dtype: one of the above.
    """

    def __init__(
        self, op: str, parts: tuple[Symbol, ...] = (), dtype: str = FLOAT, key: Any = None
    ):
        self.op, self.parts, self.dtype, self.key = op, parts, dtype, key
        self._leaf = False

    @staticmethod
    def row(name: str, dtype: str = FLOAT) -> Symbol:
        return Symbol("row", (), dtype, name)

    @property
    def is_number(self) -> bool:
        """Whether it is known before a kernel is launched."""
        return self.op in ("param", "const") or (
            self.op != "row" and all(part.is_number for part in self.parts)
        )

    # What losses do with tensors.

    @property
    def requires_grad(self) -> bool:
        if self.op == "detach":
            return self._leaf
        return any(part.requires_grad for part in self.parts)

    def requires_grad_(self, wanted: bool = True) -> Symbol:
        self._leaf = wanted
        return self

    def detach(self) -> Symbol:
        return Symbol("detach", (self,), self.dtype)

    def to(self, dtype: str) -> Symbol:
        if dtype == self.dtype:
            return self
        if self.op == "const":
            return _symbol({FLOAT: float, WHOLE: int, TRUTH: bool}[dtype](self.key))
        return Symbol("cast", (self,), dtype)

    def long(self) -> Symbol:
        return self.to(WHOLE)

    def double(self) -> Symbol:
        """Kernels add up in float64 what they compute in float32."""
        return self

    def relu(self) -> Symbol:
        return _where(self > 0, self, 0.0)

    def clamp(self, min: float) -> Symbol:
        return Symbol("clamp", (self, _symbol(min)), self.dtype)

    def sqrt(self) -> Symbol:
        return Symbol("sqrt", (self,))

    def log(self) -> Symbol:
        return Symbol("log", (self,))

    def __getitem__(self, index: None) -> Symbol:
        """As a table of one row."""
        if index is not None:
            raise TypeError(f"{index} of a vector that is known to kernels alone")
        return self

    def __bool__(self) -> bool:
        raise TypeError("the truth of a vector is known to kernels alone")

    def __add__(self, other: Any) -> Symbol:
        return _arithmetic("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return _arithmetic("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return _arithmetic("sub", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return _arithmetic("sub", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return _arithmetic("mul", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return _arithmetic("mul", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return Symbol("div", (_symbol(self), _symbol(other)))

    def __rtruediv__(self, other: Any) -> Symbol:
        return Symbol("div", (_symbol(other), _symbol(self)))

    def __neg__(self) -> Symbol:
        return Symbol("neg", (self,), self.dtype)

    def __gt__(self, other: Any) -> Symbol:
        return Symbol("gt", (self, _symbol(other)), TRUTH)

    def __ge__(self, other: Any) -> Symbol:
        return Symbol("ge", (self, _symbol(other)), TRUTH)

    def __and__(self, other: Any) -> Symbol:
        return Symbol("and", (self, _symbol(other)), TRUTH)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        known = _FUNCTIONS.get(function.__name__)
        if known is None:
            raise TypeError(
                f"a formula that kernels compute must do without {function.__name__}, or "
                "`tracing._FUNCTIONS` must say what it is"
            )
        return known(*args, **(kwargs or {}))


class Param(Symbol):
    """A number of the loss. Where a loss asks whether it is 0, a flag, that is noted."""

    def __init__(self, index: int, value: float, flags: set[int]) -> None:
        super().__init__("param", key=index)
        self._value, self._flags = value, flags

    def __bool__(self) -> bool:
        self._flags.add(self.key)
        return bool(self._value)


def _symbol(value: Any) -> Symbol:
    if isinstance(value, Symbol):
        return value
    dtype = {bool: TRUTH, int: WHOLE}.get(type(value), FLOAT)
    return Symbol("const", (), dtype, value)


def _arithmetic(op: str, a: Any, b: Any) -> Symbol:
    a, b = _symbol(a), _symbol(b)
    dtype = FLOAT if FLOAT in (a.dtype, b.dtype) else WHOLE
    if op == "add" and a.op == "const" and a.key == 0:
        return b.to(dtype)  # a vector filled with a number is that number
    return Symbol(op, (a, b), dtype)


def _where(condition: Any, a: Any, b: Any) -> Symbol:
    a, b = _symbol(a), _symbol(b)
    return Symbol(
        "where", (_symbol(condition), a, b), FLOAT if FLOAT in (a.dtype, b.dtype) else WHOLE
    )


def _stack(rows: Iterable[Any], dim: int = 0) -> list[Symbol]:
    return list(map(_symbol, rows))


def _softplus(x: Symbol, beta: float = 1.0, threshold: float = 20.0) -> Symbol:
    """Kernels have one that needs no threshold."""
    return Symbol("softplus", (x,))


def _grad(
    outputs: Sequence[Symbol],
    inputs: Sequence[Symbol],
    grad_outputs: Sequence[Symbol],
    **_: Any,
) -> tuple[Symbol, ...]:
    """Of the sum of outputs times ``grad_outputs``, 0 where an input is in none of them."""
    found: dict[int, Symbol] = {}
    order = _sorted(outputs)
    for output, grad in zip(outputs, grad_outputs, strict=True):
        _accumulate(found, output, _symbol(grad))
    for node in reversed(order):
        if id(node) in found and node.op != "detach":
            for part, share in _SLOPES[node.op](node, found[id(node)]) if node.parts else ():
                if part.requires_grad:
                    _accumulate(found, part, share)
    return tuple(found.get(id(leaf), _symbol(0.0)) for leaf in inputs)


def _accumulate(found: dict[int, Symbol], node: Symbol, share: Symbol) -> None:
    found[id(node)] = found[id(node)] + share if id(node) in found else share


def _sorted(roots: Iterable[Symbol]) -> list[Symbol]:
    """All that the roots are made of, parts before what is made of them."""
    order: list[Symbol] = []
    seen: set[int] = set()

    def visit(node: Symbol) -> None:
        if id(node) not in seen:
            seen.add(id(node))
            for part in node.parts:
                visit(part)
            order.append(node)

    for root in roots:
        visit(root)
    return order


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "where": _where,
    "stack": _stack,
    "softplus": _softplus,
    "addcmul": lambda a, b, c, value=1: _symbol(a) + _symbol(b) * c * value,
    "grad": _grad,
    "logaddexp": lambda a, b: Symbol("log_add", (_symbol(a), _symbol(b))),
    "full_like": lambda like, value: _symbol(value),
    "ones_like": lambda like, dtype=None: _symbol(1.0),
    "zeros_like": lambda like: _symbol(0.0),
}
# What the parts of a node get of the derivative g by it.
_SLOPES: dict[str, Callable[[Symbol, Symbol], Iterable[tuple[Symbol, Symbol]]]] = {
    "add": lambda n, g: ((n.parts[0], g), (n.parts[1], g)),
    "sub": lambda n, g: ((n.parts[0], g), (n.parts[1], -g)),
    "mul": lambda n, g: ((n.parts[0], g * n.parts[1]), (n.parts[1], g * n.parts[0])),
    "div": lambda n, g: (
        (n.parts[0], g / n.parts[1]),
        (n.parts[1], -g * n / n.parts[1]),
    ),
    "neg": lambda n, g: ((n.parts[0], -g),),
    "cast": lambda n, g: ((n.parts[0], g),),
    "where": lambda n, g: (
        (n.parts[1], _where(n.parts[0], g, 0.0)),
        (n.parts[2], _where(n.parts[0], 0.0, g)),
    ),
    "clamp": lambda n, g: ((n.parts[0], _where(n.parts[0] >= n.parts[1], g, 0.0)),),
    "softplus": lambda n, g: ((n.parts[0], g * Symbol("sigmoid", n.parts)),),
    "sqrt": lambda n, g: ((n.parts[0], g / (2.0 * n)),),
    "log": lambda n, g: ((n.parts[0], g / n.parts[0]),),
    "log_add": lambda n, g: tuple((part, g * Symbol("exp", (part - n,))) for part in n.parts),
}


# Text.

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "gt": ">", "ge": ">=", "and": "&"}
_IN_KERNELS = {
    "neg": "-{}",
    "where": "tl.where({}, {}, {})",
    "softplus": "softplus({})",
    "sigmoid": "sigmoid({})",
    "exp": "tl.exp({})",
    "sqrt": "tl.sqrt({})",
    "log": "tl.log({})",
    "log_add": "log_add({}, {})",
    "clamp": "tl.maximum({}, {})",
    "detach": "{}",
}
_CASTS = {FLOAT: "tl.float32", WHOLE: "tl.int64"}


def leaves_of(symbols: Iterable[Symbol]) -> set[str]:
    """Names of the rows that these are made of."""
    return {node.key for node in _sorted(symbols) if node.op == "row"}


def numbers_of(symbols: Iterable[Symbol]) -> list[Symbol]:
    """The largest numbers in expressions of rows, each once; constants are none."""
    roots = list(symbols)
    used = [part for node in _sorted(roots) if not node.is_number for part in node.parts]
    numbers = [one for one in (*roots, *used) if one.is_number and one.op != "const"]
    return list({in_python(one): one for one in numbers}.values())


def in_python(number: Symbol) -> str:
    """The text of a number, of the list ``p`` of params."""
    if number.op == "param":
        return f"p[{number.key}]"
    if number.op == "const":
        return _literal(number.key)
    parts = [in_python(part) for part in number.parts]
    if number.op in _INFIX:
        return f"({parts[0]} {_INFIX[number.op]} {parts[1]})"
    return {"neg": "(-{})", "detach": "{}", "cast": "{}"}[number.op].format(*parts)


def in_kernels(
    outputs: Sequence[Symbol], given: Mapping[str, str], numbers: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Statements, and the expressions of the outputs as float32.

    Args:
        given: by its name, the text of each row.
        numbers: `in_python` of what the tuple ``numbers`` holds.
    """
    text: dict[int, str] = {}
    lines: list[str] = []
    for node in _sorted(outputs):
        if node.op == "row":
            text[id(node)] = given[node.key]
        elif node.op == "const":
            text[id(node)] = _literal(node.key)
        elif node.is_number and in_python(node) in numbers:
            text[id(node)] = f"numbers[{numbers.index(in_python(node))}]"
        elif node.is_number:
            text[id(node)] = in_python(node)  # a part of a number, which nobody reads
        else:
            name = f"t{len(lines)}"
            lines.append(f"{name} = {_expression(node, [text[id(part)] for part in node.parts])}")
            text[id(node)] = name
    return lines, [_as_float(node, text[id(node)]) for node in outputs]


def _expression(node: Symbol, parts: list[str]) -> str:
    if node.op in _INFIX:
        return f"{parts[0]} {_INFIX[node.op]} {parts[1]}"
    if node.op == "cast":
        return f"({parts[0]}).to({_CASTS[node.dtype]})"
    return _IN_KERNELS[node.op].format(*parts)


def _as_float(node: Symbol, text: str) -> str:
    if node.op == "const":
        return _literal(float(node.key))
    return text if node.dtype == FLOAT else f"({text}).to(tl.float32)"


def _literal(value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)
