"""Addresses that the `cpu` backend hands to its kernels: of memory that is there, as it is read."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dmlap_kernels
from dmlap_kernels.backends.cpu import CpuBackend
from dmlap_kernels.problem import PairProblem, PairSpec
from tests.losses.calls import EVERY_CALL, Call
from tests.losses.cases import make_problem, usual
from tests.losses.compare import run
from tests.losses.losses_table import LOSSES

# The tests lie beside the sources, which must not come before the package that is installed.
PRELUDE = f"""
    import sys
    sys.path.append({str(Path(__file__).parents[2])!r})
    import torch
    import dmlap_kernels
    from dmlap_kernels import evaluation
    from dmlap_kernels.backends.cpu import CpuBackend
    from dmlap_kernels.problem import PairProblem, PairSpec
    from tests.losses.calls import CALLS
    g = torch.Generator(device="cpu").manual_seed(0)
    x = torch.randn(30, 6, generator=g, device="cpu")
    labels = torch.arange(30, device="cpu") // 3
    y, ref_labels = x.flip(0).clone(), labels.flip(0).clone()
    spec = PairSpec("contrastive", (0.0, 1.0, 0.0))
"""


def in_a_process(code: str) -> str:
    """What it prints; a crash of the interpreter fails the test alone."""
    script = textwrap.dedent(PRELUDE) + textwrap.dedent(code)
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=False,
            cwd=elsewhere,
        )
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_default_devices_change_nothing(device: str, native: str) -> None:
    in_a_process(f"""
        def everything():
            found = []
            for call in CALLS:
                for refs in ((y, ref_labels), (None, None)):
                    if call.proxies and refs[0] is None:
                        continue
                    leaf = x.clone().requires_grad_()
                    value, stats = call(
                        leaf, labels, *refs, backend="cpu", return_stats="class_scores"
                    )
                    value.backward()
                    found += [value.detach(), leaf.grad, stats.hardest_positive]
                    found += [stats.class_scores.min_distance]
            found += [*dmlap_kernels.nearest(x, k=3, backend="cpu")]
            found += [*dmlap_kernels.nearest(x, y, k=3, backend="cpu")]
            found += [*dmlap_kernels.hard_classes(x, labels, 2, backend="cpu")]
            names = torch.arange(30, device="cpu")
            found += [*dmlap_kernels.hard_classes(x, names, 2, backend="cpu")]
            return found
        before = everything()
        torch.set_default_device({device!r})
        torch.set_default_dtype(torch.float64)
        after = everything()
        assert all(t.device.type == "cpu" for t in after)
        assert all(a.dtype == b.dtype and a.equal(b) for a, b in zip(before, after, strict=True))
    """)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_default_dtypes_change_nothing(dtype: str, native: str) -> None:
    in_a_process(f"""
        before = dmlap_kernels.fused_nt_xent_loss(x, labels, backend="cpu")
        torch.set_default_dtype(torch.{dtype})
        after = dmlap_kernels.fused_nt_xent_loss(x, labels, backend="cpu")
        assert before.dtype == after.dtype and before.equal(after)
        assert dmlap_kernels.nearest(x, k=2, backend="cpu").distances.dtype == torch.float32
    """)


NO_MEMORY = {
    "meta": "x.to('meta')",
    "fake": "FakeTensorMode().from_tensor(x)",
    "wrapper": "torch.Tensor._make_wrapper_subclass(Wrapper, x.shape, dtype=x.dtype)",
    "sparse": "x.to_sparse()",
    "functorch": "functorch._wrap_for_grad(x, functorch._grad_increment_nesting())",
}


@pytest.mark.parametrize("kind", NO_MEMORY)
def test_tensors_without_memory_are_refused(kind: str, native: str) -> None:
    """The backend itself; a sentence, no crash."""
    printed = in_a_process(f"""
        from torch._subclasses.fake_tensor import FakeTensorMode
        functorch = torch._C._functorch
        class Wrapper(torch.Tensor):
            def __torch_dispatch__(self, *_):
                raise RuntimeError("it has no data")
        strange = {NO_MEMORY[kind]}
        backend = CpuBackend()
        calls = [
            lambda: backend.forward(spec, PairProblem(strange, labels, None, None), False, False),
            lambda: backend.forward(spec, PairProblem(x, labels, strange, labels), True, True),
            lambda: backend.nearest(strange, None, 2, "euclidean", False),
            lambda: backend.nearest(x, strange, 2, "euclidean", False),
            lambda: backend.hard_classes(strange, labels, 2, 1.0, "euclidean", False),
        ]
        for call in calls:
            try:
                call()
            except (TypeError, RuntimeError) as error:
                print(error)
    """)
    assert printed.count("memory of the CPU") >= 4


def test_calls_inside_a_fake_mode_are_refused(native: str) -> None:
    printed = in_a_process("""
        from torch._subclasses.fake_tensor import FakeTensorMode
        with FakeTensorMode(allow_non_fake_inputs=True):
            try:
                CpuBackend().forward(spec, PairProblem(x, labels, None, None), True, False)
            except TypeError as error:
                print(error)
    """)
    assert "memory of the CPU" in printed


def negated(t: Tensor) -> Tensor:
    """Equal to t, with the sign owed."""
    found = torch._neg_view(-t)
    assert found.is_neg()
    return found


@pytest.mark.parametrize("loss", LOSSES)
def test_lazily_negated_tensors(loss: str, backend: str) -> None:
    problem = make_problem(usual(loss, rows=26, features=9, refs="more"))
    if not LOSSES[loss].proxies:
        itself = torch.arange(26)
        itself[::3] = -1
        problem.keywords = problem.keywords | {"self_index": itself, "reduction": "none"}
    upstream = torch.linspace(-1, 1, 26) if "self_index" in problem.keywords else None
    value, gradients = run(LOSSES[loss].fused, problem, upstream, backend=backend)
    owed = replace(problem, labels=negated(problem.labels), keywords=dict(problem.keywords))
    for name, given in owed.keywords.items():
        if isinstance(given, Tensor):
            owed.keywords[name] = negated(given)
    if upstream is not None:
        upstream = negated(upstream)
    if problem.ref_labels is not None:
        owed.ref_labels = negated(problem.ref_labels)
    x, y = (negated(t).requires_grad_() for t in (problem.x, problem.y))
    found = LOSSES[loss].fused(x, owed.labels, y, owed.ref_labels, backend=backend, **owed.keywords)
    assert torch.equal(found, value)
    for mine, true in zip(torch.autograd.grad(found, (x, y), upstream), gradients, strict=False):
        assert torch.equal(mine, true)


@EVERY_CALL
def test_the_gradient_of_a_complex_head(call: Call, backend: str) -> None:
    """The imaginary part of a conjugate: autograd hands down a gradient with its sign owed."""
    x, *others = call.draw(True)
    leaf = x.requires_grad_()
    value = call(leaf, *others, backend=backend)
    torch.complex(value, value).conj().imag.backward()
    other = x.detach().clone().requires_grad_()
    (-call(other, *others, backend=backend)).backward()
    torch.testing.assert_close(leaf.grad, other.grad)


def test_searches_of_lazily_negated_rows(backend: str) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 5, generator=g), torch.randn(31, 5, generator=g)
    labels = torch.arange(20) // 2
    pairs = (
        (
            dmlap_kernels.nearest(x, y, k=4, backend=backend),
            dmlap_kernels.nearest(negated(x), negated(y), k=4, backend=backend),
        ),
        *(
            (
                dmlap_kernels.hard_classes(x, names, 3, backend=backend),
                dmlap_kernels.hard_classes(negated(x), negated(names), 3, backend=backend),
            )
            for names in (labels, torch.arange(20))
        ),
    )
    for plain, owed in pairs:
        assert all(torch.equal(a, b) for a, b in zip(plain, owed, strict=True))


def test_class_scores_of_lazily_negated_tensors(native: str) -> None:
    problem = make_problem(usual("contrastive", rows=26, features=9, refs="more"))
    spec = PairSpec("contrastive", (0.1, 1.0, 0.0))
    tensors = problem.x, problem.labels, problem.y, problem.ref_labels
    plain = CpuBackend().forward(spec, PairProblem(*tensors), True, True)
    owed = CpuBackend().forward(spec, PairProblem(*map(negated, tensors)), True, True)
    assert torch.equal(plain.stats.class_scores.min_distance, owed.stats.class_scores.min_distance)
    assert torch.equal(plain.stats.hardest_negative, owed.stats.hardest_negative)
