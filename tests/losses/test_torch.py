"""How the losses behave inside PyTorch: compile, autocast, second derivatives, signatures."""

from __future__ import annotations

import dataclasses
import inspect
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

import dmlap_kernels.functional
from dmlap_kernels import PairStats
from tests.losses.calls import CALLS, EVERY_CALL, Call

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


OWN_KEYWORDS: dict[str, dict[str, Any]] = {
    "triplet": {
        **{"margin": 0.2, "mining": "hard", "smooth": False, "swap": False},
        **{"cutoff": 0.5, "nonzero_loss_cutoff": 1.4, "seed": None, "distance": "euclidean"},
    },
    "contrastive": {
        **{"pos_margin": 0.0, "neg_margin": 1.0, "squared": False, "distance": "euclidean"},
        **{"normalize": True, "reduction": "mean_nonzero"},
    },
    "margin": {
        **{"margin": 0.2, "beta": 1.2, "distance": "euclidean"},
        **{"normalize": True, "reduction": "mean_nonzero"},
    },
    "multi_similarity": {
        **{"alpha": 2.0, "beta": 50.0, "base": 0.5, "epsilon": None, "distance": "cosine"},
    },
    "lifted_structure": {
        **{"pos_margin": 0.0, "neg_margin": 1.0, "form": "original", "distance": "euclidean"},
        **{"normalize": True},
    },
    "n_pairs": {"distance": "dot", "normalize": True},
    "nt_xent": {"temperature": 0.07, "distance": "cosine"},
    "sup_con": {"temperature": 0.1, "distance": "cosine", "reduction": "mean_nonzero"},
    "angular": {"alpha": 40.0},
    "circle": {"m": 0.4, "gamma": 80.0, "reduction": "mean_nonzero"},
    "proxy_nca": {"softmax_scale": 1.0, "distance": "sqeuclidean", "normalize": True},
    "proxy_anchor": {"margin": 0.1, "alpha": 32.0, "distance": "cosine"},
    "soft_triple": {"la": 20.0, "gamma": 0.1, "margin": 0.01, "distance": "cosine"},
}


@pytest.mark.parametrize("loss", OWN_KEYWORDS)
def test_signatures(loss: str) -> None:
    """The public surface: names, order and defaults."""
    own = dict(OWN_KEYWORDS[loss])
    proxies = loss in ("proxy_nca", "proxy_anchor", "soft_triple")
    normalize = {} if "distance" not in own else {"normalize": own.pop("normalize", False)}
    reduction = {"reduction": own.pop("reduction", "mean")}
    shared = {"backend": "auto", "precision": None, "return_stats": False}
    expected = ({} if proxies else {"self_index": None}) | own | normalize | reduction | shared
    function = getattr(dmlap_kernels, f"fused_{loss}_loss")
    assert function is getattr(dmlap_kernels.functional, f"fused_{loss}_loss")
    parameters = inspect.signature(function).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert list(keywords.items()) == list(expected.items())
    references = ["ref_embeddings", "ref_labels"]
    if proxies:
        references = ["proxies", "proxy_labels"]
    positional = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(positional) == ["embeddings", "labels", *references]
    empty = inspect.Parameter.empty
    first = empty if references[0] == "proxies" else None
    assert list(positional.values()) == [empty, empty, first, None]
    assert function.__name__ in dmlap_kernels.__all__


def test_every_function_is_in_the_table_of_signatures() -> None:
    public = [name for name in dmlap_kernels.__all__ if name.startswith("fused_")]
    assert sorted(public) == sorted(f"fused_{loss}_loss" for loss in OWN_KEYWORDS)
    assert sorted(public) == sorted(dmlap_kernels.functional.__all__)


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
