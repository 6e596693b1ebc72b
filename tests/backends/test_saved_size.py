"""What a forward sweep of the `cpu` backend leaves for its backward: sizes that may be symbols."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from dmlap_kernels.backends.cpu import CpuBackend, _saved_size
from dmlap_kernels.backends.cpu import native as extension
from dmlap_kernels.problem import PairProblem, PairSpec
from tests.losses.calls import EVERY_CALL, Call

SIZES = (0, 1, 2, 23, 24, 25, 47, 48, 49, 96, 97, 1000)


def losses() -> dict[str, int]:
    return {} if isinstance(extension(), str) else extension().losses()


@pytest.mark.parametrize("loss", losses())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_python_and_the_extension_count_the_same(
    loss: str, dtype: torch.dtype, native: str
) -> None:
    spec = PairSpec(loss, ())
    for rows, refs in itertools.product(SIZES, (None, *SIZES)):
        x, labels = torch.empty(rows, 3, dtype=dtype), torch.empty(rows, dtype=torch.int64)
        y = None if refs is None else torch.empty(refs, 3, dtype=dtype)
        ref_labels = None if refs is None else torch.empty(refs, dtype=torch.int64)
        saved = CpuBackend().saved_like(spec, PairProblem(x, labels, y, ref_labels))
        columns = rows if refs is None else refs
        double = dtype == torch.float64
        expected = extension().saved_bytes(losses()[loss], rows, columns, refs is None, double)
        assert saved.numel() == expected, (rows, refs)


@pytest.mark.parametrize("loss", losses())
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_symbols_stay_symbols(loss: str, refs: bool, native: str) -> None:
    """No guard on a size, and none is pinned."""
    shapes = ShapeEnv()
    real = [torch.empty(n, 8) for n in ((57, 91) if refs else (57,))]
    with FakeTensorMode(shape_env=shapes) as mode:
        tensors = [mode.from_tensor(t, static_shapes=False) for t in real]
        labels = [t.new_empty(t.shape[0], dtype=torch.int64) for t in tensors]
        problem = PairProblem(tensors[0], labels[0], None, None)
        if refs:
            problem = problem._replace(y=tensors[1], ref_labels=labels[1])
        before = len(shapes.guards)
        saved = CpuBackend().saved_like(PairSpec(loss, ()), problem)
    assert not shapes.replacements
    assert [guard.expr for guard in shapes.guards[before:]] == []
    grows = any(_saved_size(loss, not refs, False)[1:4])
    assert isinstance(saved.shape[0], torch.SymInt) == grows


@EVERY_CALL
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_batches_of_any_size_run_one_graph(call: Call, refs: bool, native: str) -> None:
    """The sizes of a loader's batches are many, the last one another."""
    graphs = 0

    def compiler(graph: torch.fx.GraphModule, _: list) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    @torch.compile(fullgraph=True, dynamic=True, backend=compiler)
    def step(x, labels, y, ref_labels):
        return call(x, labels, y, ref_labels, backend=native)

    torch.compiler.reset()
    for rows in (20, 33, 57, 128):
        x, *others = call.draw(refs, rows=rows)
        value = step(x.requires_grad_(), *others)
        (grad,) = torch.autograd.grad(value, x)
        eager = call(x, *others, backend=native)
        torch.testing.assert_close(value, eager)
        torch.testing.assert_close(grad, torch.autograd.grad(eager, x)[0])
    assert graphs == 1
