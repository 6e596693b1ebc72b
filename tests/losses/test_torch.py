"""How the losses behave inside PyTorch: compile, autocast, second derivatives, signatures."""

from __future__ import annotations

import dataclasses
import inspect
import weakref

import pytest
import torch
from torch import Tensor

import dmlap_kernels.functional
from dmlap_kernels import PairStats
from tests.losses.calls import CALLS, EVERY_CALL, Call
from tests.losses.losses_table import FUNCTIONS

REFS = pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """The functions of one test differ in what they close over, which dynamo counts as one; and
    compilations of other tests do not count against the recompilation limit of this one."""
    torch.compiler.reset()


def why_no_inductor() -> str | None:
    """Why torch.compile cannot make code on this machine; None if it can."""
    try:
        torch.compile(lambda x: x + 1, fullgraph=True)(torch.zeros(3))
    except Exception as error:
        return f"torch.compile does not work here: {error}"
    return None


@EVERY_CALL
@REFS
def test_second_derivative_is_refused_with_a_sentence(call: Call, refs: bool, backend: str) -> None:
    x, labels, y, ref_labels = call.draw(refs)
    leaves = [t.requires_grad_() for t in (x, y) if t is not None]
    value = call(x, labels, y, ref_labels, backend=backend)
    for grad in torch.autograd.grad(value, leaves, create_graph=True):
        with pytest.raises(RuntimeError, match="fused losses can be differentiated once"):
            grad.square().sum().backward(retain_graph=True)


def test_second_derivative_of_a_learnable_boundary_is_refused(backend: str) -> None:
    x, labels, *_ = CALLS[0].draw(False)
    beta = torch.full((7,), 4.0, requires_grad=True)
    value = dmlap_kernels.fused_margin_loss(x, labels, beta=beta, backend=backend)
    (grad,) = torch.autograd.grad(value, beta, create_graph=True)
    assert grad.any()
    with pytest.raises(RuntimeError, match="fused losses can be differentiated once"):
        grad.square().sum().backward()


@EVERY_CALL
def test_create_graph_alone_is_allowed(call: Call, backend: str) -> None:
    """Trainers that always pass create_graph get the usual gradient."""
    x, *others = call.draw(False)
    value = call(x.requires_grad_(), *others, backend=backend)
    (plain,) = torch.autograd.grad(value, x, retain_graph=True)
    (kept,) = torch.autograd.grad(value, x, create_graph=True)
    assert plain.any()
    assert torch.equal(plain, kept)


@EVERY_CALL
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile_full_graph(call: Call, reduction: str, backend: str) -> None:
    """Tracing and autograd are ours to get right; code generation has its own test.

    In the self case with the mean, with references with one value an anchor.
    """
    assert_compiles(call, reduction == "none", reduction, "aot_eager", backend)


def test_compile_with_inductor() -> None:
    """One case is enough: the loss is one opaque operator to code generation."""
    if reason := why_no_inductor():
        pytest.skip(reason)
    assert_compiles(CALLS[0], True, "mean", "inductor", "auto")


def assert_compiles(call: Call, refs: bool, reduction: str, compiler: str, backend: str) -> None:
    """Value, statistics and gradients of the compiled call are those of the eager one."""
    x, labels, y, ref_labels = call.draw(refs)

    def step(x: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
        options = {"backend": backend, "reduction": reduction, "return_stats": True}
        value, stats = call(2 * x, labels, y, ref_labels, **options)
        return value * 3, stats.violated, stats.violation, stats.hardest_negative

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=compiler)):
        leaves = [None if t is None else t.clone().requires_grad_() for t in (x, y)]
        value, *rest = function(*leaves)
        value.sum().backward()
        assert not any(t.requires_grad for t in rest)
        results.append([value.detach(), *rest, *(t.grad for t in leaves if t is not None)])
    for eager, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("loss", ["triplet", "contrastive", "margin", "proxy_anchor"])
def test_compiled_shapes_may_change(loss: str, dtype: torch.dtype, backend: str) -> None:
    """Shapes and dtypes promised to the compiler are those that come out."""
    call = next(call for call in CALLS if call.loss == loss)
    x, labels, y, ref_labels = call.draw(True, rows=12, features=3)
    x, y = (t.to(dtype).requires_grad_() for t in (x, y))
    beta = {"beta": torch.full((7,), 1.5, requires_grad=True)} if loss == "margin" else {}
    options = beta | {"backend": backend, "reduction": "none"}

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def step(x: Tensor, labels: Tensor, y: Tensor, ref_labels: Tensor) -> tuple[Tensor, Tensor]:
        value = call(x, labels, y, ref_labels, **options)
        return value, value.new_zeros(value.shape)

    leaves = (x, y, *beta.values())
    for rows in (12, 7):
        value, like = step(x[:rows], labels[:rows], y, ref_labels)
        truth = call(x[:rows], labels[:rows], y, ref_labels, **options)
        assert value.dtype == like.dtype
        assert value.shape == truth.shape
        assert torch.equal(value, truth)
        grads = torch.autograd.grad(value.sum(), leaves)
        true_grads = torch.autograd.grad(truth.sum(), leaves)
        for a, b in zip(grads, true_grads, strict=True):
            torch.testing.assert_close(a, b)


def test_a_compiled_loss_without_a_seed_draws_anew(backend: str) -> None:
    x, labels, *_ = CALLS[0].draw(False)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x: Tensor) -> Tensor:
        return dmlap_kernels.fused_triplet_loss(
            x, labels, mining="distance_weighted", backend=backend
        )

    assert len({step(x).item() for _ in range(5)}) > 1


@EVERY_CALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing_for_given_embeddings(
    call: Call, dtype: torch.dtype, backend: str
) -> None:
    rows, *others = call.draw(False)
    layer = torch.nn.Linear(12, 12, bias=False)
    for x in (rows, rows.to(dtype)):
        x = x.clone().requires_grad_()
        truth = call(x, *others, backend=backend)
        (true_grad,) = torch.autograd.grad(truth, x)
        with torch.autocast("cpu", dtype=dtype):
            value = call(x, *others, backend=backend)
        (grad,) = torch.autograd.grad(value, x)
        assert value.dtype == torch.float32
        assert grad.dtype == x.dtype
        assert torch.equal(value, truth)
        assert torch.equal(grad, true_grad)
    with torch.autocast("cpu", dtype=dtype):
        embeddings = layer(rows)
        assert embeddings.dtype == dtype
        call(embeddings, *others, backend=backend).backward()
    assert torch.isfinite(layer.weight.grad).all() and layer.weight.grad.any()


@EVERY_CALL
def test_no_grad_and_inference_mode(call: Call, backend: str) -> None:
    x, *others = call.draw(True)
    x.requires_grad_()
    truth = call(x, *others, backend=backend)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            value, stats = call(x, *others, backend=backend, return_stats="class_scores")
        assert not value.requires_grad
        assert torch.equal(value, truth.detach())
        assert not stats.class_scores.mean_violation.requires_grad


@EVERY_CALL
def test_statistics_are_detached(call: Call, backend: str) -> None:
    x, *others = call.draw(False)
    value, stats = call(x.requires_grad_(), *others, backend=backend, return_stats=True)
    assert isinstance(stats, PairStats) and stats.class_scores is None
    assert value.requires_grad
    for field in dataclasses.fields(stats):
        assert field.name == "class_scores" or not getattr(stats, field.name).requires_grad
    with pytest.raises(AttributeError):
        stats.violated = stats.constraints


@EVERY_CALL
def test_backward_twice_with_retain_graph_adds_up(call: Call, backend: str) -> None:
    x, *others = call.draw(True)
    value = call(x.requires_grad_(), *others, backend=backend)
    value.backward(retain_graph=True)
    once = x.grad.clone()
    value.backward()
    torch.testing.assert_close(x.grad, 2 * once)


@EVERY_CALL
def test_embeddings_changed_before_backward_are_noticed(call: Call, backend: str) -> None:
    leaf, *others = call.draw(False)
    x = leaf.requires_grad_() * 1.0
    value = call(x, *others, backend=backend)
    with torch.no_grad():
        x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_draws_follow_the_default_generator(backend: str) -> None:
    """Without a seed, `torch.manual_seed` decides; with one, nothing else does."""
    call = next(call for call in CALLS if call.variant == "drawn")
    x, labels, *_ = call.draw(False)

    def value(seed: int | None, manual: int) -> Tensor:
        torch.manual_seed(manual)
        return call(x, labels, seed=seed, backend=backend)

    assert torch.equal(value(None, 0), value(None, 0))
    assert len({value(None, manual).item() for manual in range(5)}) > 1
    assert len({value(3, manual).item() for manual in range(5)}) == 1
    assert len({value(seed, 0).item() for seed in range(5)}) > 1


@pytest.mark.parametrize("loss", FUNCTIONS)
def test_signatures(loss: str) -> None:
    """What all losses share: names, order and defaults. `tests/test_documents.py` holds what a loss
    has of its own against its page."""
    row = FUNCTIONS[loss]
    function = getattr(dmlap_kernels, row.function)
    assert function is getattr(dmlap_kernels.functional, row.function)
    assert function.__name__ in dmlap_kernels.__all__
    parameters = inspect.signature(function).parameters.values()
    empty = inspect.Parameter.empty
    references = {"ref_embeddings": None, "ref_labels": None}
    if row.proxies:
        references = {"proxies": empty, "proxy_labels": None}
    positional = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    expected = {"embeddings": empty, "labels": empty} | references
    assert list(positional.items()) == list(expected.items())
    keywords = list(row.keywords)
    if not row.proxies:
        assert keywords.pop(0) == "self_index" and row.keywords["self_index"].default is None
    shared = {"reduction": None, "backend": "auto", "precision": None, "return_stats": False}
    last = [*(["distance", "normalize"] if row.distances else []), *shared]
    assert keywords[-len(last) :] == last
    assert row.keywords["reduction"].default in ("mean", "mean_nonzero")
    for name in ("backend", "precision", "return_stats"):
        assert row.keywords[name].default == shared[name]
    assert row.default_distance in (row.distances or ("cosine",))
    assert "distance" in keywords or not row.distances


def test_every_function_has_a_row() -> None:
    public = [name for name in dmlap_kernels.__all__ if name.startswith("fused_")]
    assert sorted(public) == sorted(row.function for row in FUNCTIONS.values())


def test_a_loss_lets_go_of_its_batch_after_backward(backend: str) -> None:
    leaf = torch.randn(20, 5, requires_grad=True)
    x = 1 * leaf
    held = weakref.ref(x)
    loss = dmlap_kernels.fused_contrastive_loss(x, torch.arange(20) // 4, backend=backend)
    loss.backward()
    del x
    assert held() is None, "the loss still holds its embeddings"


def test_a_second_backward_equals_the_first(backend: str) -> None:
    x = torch.randn(20, 5, requires_grad=True)
    loss = dmlap_kernels.fused_nt_xent_loss(x, torch.arange(20) // 4, backend=backend)
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
