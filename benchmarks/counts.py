"""What a step asks of a device: operations, bytes and products, counted without one.

Backends run on tensors that have a shape and no values; kernels of Triton are noted where they
would be launched, and not run. Plain PyTorch whose shapes depend on values (`nonzero`) runs on the
CPU in small, and its bytes and products are carried on to larger batches by their growth.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.batch import Absent
from benchmarks.candidates import LOSSES, PAIRED, SEARCHES
from benchmarks.gpu import loss_of
from dmlap_kernels.backends.device.backend import DeviceBackend
from dmlap_kernels.backends.registry import backends
from dmlap_kernels.calibration import spec_of
from dmlap_kernels.problem import PairProblem

# That hand out memory, or are done on the host.
FREE = ("empty", "new_empty", "detach", "scalar_tensor", "lift_fresh", "_local_scalar_dense")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_cdist_forward")
# Plain PyTorch runs with values up to so many rows; two sizes below tell the growth.
MOST_ROWS = 1024
LEAST_PANEL = 256
# Kernels that are handed the rows and go over them, or over positive pairs alone.
NO_SWEEP = (
    "pack_kernel",
    "unpack_kernel",
    "near_kernel",
    "near_triplets_kernel",
    "positive_distances",
    "mined_terms",
)


@dataclass(frozen=True)
class Cost:
    """Of a step.

    Attributes:
        operations: of the device, kernels among them.
        bytes: that each of them reads and writes, summed.
        flops: of matrix products by the library, two for a multiplication and a sum.
        kernels: launches of our own.
        fused: flops of the products that these take themselves.
    """

    operations: float = 0
    bytes: float = 0
    flops: float = 0
    kernels: int = 0
    fused: float = 0

    def __add__(self, other: Cost) -> Cost:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Cost(*(mine + theirs for mine, theirs in pairs))


class Counted(TorchDispatchMode):
    """Adds up what the operators inside cost."""

    def __init__(self) -> None:
        super().__init__()
        self.total = Cost()
        self.launched: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        found = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if not function.is_view and not name.startswith(FREE):
            tensors = [t for t in tree_leaves((args, kwargs, found)) if isinstance(t, Tensor)]
            moved = sum(map(size_of, {id(t): t for t in tensors}.values()))
            self.total += Cost(1, moved, product(name.rstrip("_"), args))
        return found

    def launch(self, kernel: str, tensors: list[Tensor], problem: PairProblem) -> None:
        moved = sum(map(size_of, {id(t): t for t in tensors}.values()))
        flops = of_kernel(kernel, tensors, problem, kernel in self.launched)
        self.launched.add(kernel)
        self.total += Cost(1, moved, 0, 1, flops)


def size_of(tensor: Tensor) -> int:
    """Bytes that lie in memory: an expanded tensor is as large as what it repeats."""
    kept = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or n == 1]
    return math.prod(kept) * tensor.element_size()


def product(name: str, arguments: Any) -> float:
    """Flops of a matrix product, two for a multiplication and a sum."""
    if name not in PRODUCTS:
        return 0.0
    left, right = arguments[1:3] if name in ("addmm", "baddbmm") else arguments[:2]
    columns = right.shape[-2 if name == "_cdist_forward" else -1]
    return 2.0 * left.numel() * columns


def of_kernel(name: str, tensors: list[Tensor], problem: PairProblem, again: bool) -> float:
    """Flops of the products that a kernel takes itself, by what it is handed.

    One that is handed the rows compares all pairs, the first time it is launched: later windows of
    positives are empty where classes are small. A gradient multiplies once more for each side, and
    forward without references visits half of the tiles. Of a panel only those that make its weights
    and those that multiply them take products.
    """
    anchors, features = problem.x.shape
    matrices = [t for t in tensors if t.ndim == 2 and t.is_floating_point()]
    rows = [t for t in matrices if t.shape[0] >= anchors and t.shape[1] >= features]
    # Workspaces of parts of the columns are as wide, and not as high.
    panels = [t for t in matrices if t.shape[1] >= problem.num_refs > features]
    panels = [t for t in panels if t.shape[0] >= LEAST_PANEL]
    if panels:
        multiplies = name in ("weights_kernel", "product_kernel")
        return 2.0 * panels[0].numel() * features if multiplies else 0.0
    if not rows or again or name in NO_SWEEP:
        return 0.0
    sides = 1.0 if problem.y is None else 2.0
    times = 1.0 + sides if "gradient" in name else sides / 2
    return times * 2.0 * anchors * problem.num_refs * features


def of_backend(op: str, name: str, rows: int, features: int) -> Cost:
    """Forward and backward of a loss, or a search; raises `Absent` where it cannot be counted."""
    backend = backends()[name]
    if not isinstance(backend, DeviceBackend) or name == "cuda":
        raise Absent("its launches are made in C++ and not counted")
    with contextlib.ExitStack() as stack:
        seen = Counted()
        problem = _problem(op, rows, features, "meta")
        if name == "triton":
            stack.enter_context(_no_launches(seen, problem))
        stack.enter_context(seen)
        stack.enter_context(torch.no_grad())
        try:
            _step(backend, op, problem)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise Absent(f"not counted: {str(error).splitlines()[0][:120]}") from error
    return seen.total


def _problem(op: str, rows: int, features: int, device: str) -> PairProblem:
    def whole(count: int) -> Tensor:
        return torch.empty(count, dtype=torch.int64, device=device)

    x = torch.empty(rows, features, device=device, requires_grad=True)
    row = (LOSSES | PAIRED).get(op)
    if row is None or not row.proxies:
        beta = torch.empty(rows, device=device) if op.startswith("margin") else None
        return PairProblem(x, whole(rows), None, None, beta)
    proxies = rows if row.paired else rows // 4 * row.proxies
    y = torch.empty(proxies, features, device=device, requires_grad=True)
    if op == "proxy-anchor":
        return PairProblem(y, whole(proxies), x, whole(rows))
    return PairProblem(x, whole(rows), y, whole(proxies))


def _step(backend: Any, op: str, problem: PairProblem) -> None:
    if op in SEARCHES:
        backend.nearest(problem.x.detach(), None, 10, "euclidean", False)
        return
    spec = spec_of(loss_of(op))
    done = backend.forward(spec, problem, False, False)
    grad = problem.x.new_empty(())
    backend.backward(spec, problem, done.saved, grad, done.context)


@contextlib.contextmanager
def _no_launches(seen: Counted, problem: PairProblem) -> Iterator[None]:
    """As on a chip of capability 9.0 with 132 multiprocessors, whose kernels do nothing."""
    from triton.runtime.jit import JITFunction

    from dmlap_kernels.backends.triton import configurations

    def run(self: Any, *arguments: Any, grid: Any, warmup: Any = None, **options: Any) -> None:
        given = tree_leaves((arguments, options))
        seen.launch(self.fn.__name__, [t for t in given if isinstance(t, Tensor)], problem)

    with contextlib.ExitStack() as stack:
        for place, what in (
            ((JITFunction, "run"), run),
            ((configurations, "capability_of"), lambda device: (9, 0)),
            ((configurations, "_multiprocessors"), lambda device: 132),
            ((DeviceBackend, "_refuse_without_memory"), lambda self, *tensors: None),
            ((DeviceBackend, "_at"), lambda self, tensor: contextlib.nullcontext()),
        ):
            stack.enter_context(mock.patch.object(*place, what))
        yield


def of_eager(step: Callable[[int], Callable[[], Any]], rows: int) -> Cost:
    """Of plain PyTorch, ``step(rows)`` being a step on so many rows of the CPU."""
    if rows <= MOST_ROWS:
        return _run(step(rows))
    small, large = (_run(step(n)) for n in (MOST_ROWS // 2, MOST_ROWS))
    times = rows / MOST_ROWS

    def carried(a: float, b: float) -> float:
        """A sum of what grows with the pairs and what grows with the rows, through both."""
        pairs = max(0.0, 2 * b - 4 * a)
        return pairs * times**2 + (b - pairs) * times

    return Cost(
        large.operations,
        carried(small.bytes, large.bytes),
        carried(small.flops, large.flops),
    )


def _run(step: Callable[[], Any]) -> Cost:
    with Counted() as seen:
        step()
    return seen.total
