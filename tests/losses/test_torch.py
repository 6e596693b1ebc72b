"""How the losses behave inside PyTorch: compile, autocast, second derivatives, modules."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import Any

import pytest
import torch

import dmlap_kernels.functional
from dmlap_kernels import PairStats
from dmlap_kernels.losses import LOSSES
from tests.losses.compare import FUSED
from tests.losses.test_properties import draw

both = pytest.mark.parametrize("loss", FUSED)
PUBLIC = {
    "triplet": {"margin": 0.3, "swap": True, "normalize": True, "distance": "cosine"},
    "contrastive": {"pos_margin": 0.1, "neg_margin": 3.5, "squared": True},
}


@pytest.fixture(autouse=True)
def forget_compiled_code() -> None:
    """The functions of one test differ in what they close over; dynamo counts them as one."""
    torch.compiler.reset()


def why_no_inductor() -> str | None:
    """Why torch.compile cannot make code on this machine; None if it can."""
    try:
        torch.compile(lambda x: x + 1, fullgraph=True)(torch.zeros(3))
    except Exception as error:
        return f"torch.compile does not work here: {error}"
    return None


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """Compilations of other tests do not count against the recompilation limit of this one."""
    torch._dynamo.reset()


@both
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_second_derivative_is_refused_with_a_sentence(loss: str, refs: bool, backend: str) -> None:
    problem = draw(refs=refs, **PUBLIC[loss])
    problem.keywords = PUBLIC[loss]
    x = problem.x.requires_grad_()
    value = FUSED[loss](
        x, problem.labels, problem.y, problem.ref_labels, backend=backend, **problem.keywords
    )
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiated once|double backward|second deriv"):
        grad.square().sum().backward()


@both
def test_create_graph_alone_is_allowed(loss: str, backend: str) -> None:
    """Trainers that always pass create_graph get the usual gradient."""
    problem = draw()
    x = problem.x.requires_grad_()
    value = FUSED[loss](x, problem.labels, backend=backend)
    (plain,) = torch.autograd.grad(value, x, retain_graph=True)
    (kept,) = torch.autograd.grad(value, x, create_graph=True)
    assert torch.equal(plain, kept)


@both
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile_full_graph(loss: str, refs: bool, reduction: str, backend: str) -> None:
    """Tracing and autograd are ours to get right; code generation has its own test."""
    assert_compiles(loss, refs, reduction, "aot_eager", backend)


def test_compile_with_inductor() -> None:
    """One case is enough: the loss is one opaque operator to code generation."""
    if reason := why_no_inductor():
        pytest.skip(reason)
    assert_compiles("triplet", True, "mean", "inductor", "auto")


def assert_compiles(loss: str, refs: bool, reduction: str, compiler: str, backend: str) -> None:
    problem = draw(refs=refs, reduction=reduction, **PUBLIC[loss])
    keywords = problem.keywords | PUBLIC[loss] | {"backend": backend}

    def step(x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        value = FUSED[loss](2 * x, problem.labels, y, problem.ref_labels, **keywords)
        return value * 3

    compiled = torch.compile(step, fullgraph=True, backend=compiler)
    results = []
    for function in (step, compiled):
        x = problem.x.clone().requires_grad_()
        y = None if problem.y is None else problem.y.clone().requires_grad_()
        value = function(x, y)
        value.sum().backward()
        results.append([value.detach(), x.grad, *(() if y is None else (y.grad,))])
    for eager, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)


@both
def test_compile_with_statistics(loss: str, backend: str) -> None:
    problem = draw()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        value, stats = FUSED[loss](x, problem.labels, backend=backend, return_stats=True)
        return value, stats.violated, stats.hardest_negative

    x = problem.x.clone().requires_grad_()
    value, violated, negatives = step(x)
    truth, stats = FUSED[loss](problem.x, problem.labels, backend=backend, return_stats=True)
    assert torch.equal(value.detach(), truth)
    assert torch.equal(violated, stats.violated)
    assert torch.equal(negatives, stats.hardest_negative)
    value.backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@both
def test_operator_registration(loss: str, dtype: torch.dtype, backend: str) -> None:
    """Shapes and dtypes promised to the compiler are those that come out."""
    problem = draw(rows=12, features=3, refs=True)
    x, y = problem.x.to(dtype).requires_grad_(), problem.y.to(dtype).requires_grad_()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def step(x: torch.Tensor, labels: torch.Tensor, y: torch.Tensor, ref_labels: torch.Tensor):
        value = FUSED[loss](x, labels, y, ref_labels, backend=backend, reduction="none")
        return value, value.new_zeros(value.shape)

    for rows in (12, 7):
        value, like = step(x[:rows], problem.labels[:rows], y, problem.ref_labels)
        assert value.dtype == like.dtype
        assert value.shape == (rows,)
        truth = FUSED[loss](
            x[:rows],
            problem.labels[:rows],
            y,
            problem.ref_labels,
            backend=backend,
            reduction="none",
        )
        assert torch.equal(value, truth)
        grads = torch.autograd.grad(value.sum(), (x, y))
        true_grads = torch.autograd.grad(truth.sum(), (x, y))
        for a, b in zip(grads, true_grads, strict=True):
            torch.testing.assert_close(a, b)


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing_for_given_embeddings(
    loss: str, dtype: torch.dtype, backend: str
) -> None:
    problem = draw()
    layer = torch.nn.Linear(12, 12, bias=False)
    for rows in (problem.x, problem.x.to(dtype)):
        x = rows.clone().requires_grad_()
        truth = FUSED[loss](x, problem.labels, backend=backend)
        (true_grad,) = torch.autograd.grad(truth, x)
        with torch.autocast("cpu", dtype=dtype):
            value = FUSED[loss](x, problem.labels, backend=backend)
        (grad,) = torch.autograd.grad(value, x)
        assert value.dtype == torch.float32
        assert torch.equal(value, truth)
        assert torch.equal(grad, true_grad)
    with torch.autocast("cpu", dtype=dtype):
        embeddings = layer(problem.x)
        assert embeddings.dtype == dtype
        FUSED[loss](embeddings, problem.labels, backend=backend).backward()
    assert torch.isfinite(layer.weight.grad).all() and layer.weight.grad.any()


@both
def test_no_grad_and_inference_mode(loss: str, backend: str) -> None:
    problem = draw(refs=True)
    x = problem.x.requires_grad_()
    truth = FUSED[loss](*problem.args(), backend=backend)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            value, stats = FUSED[loss](
                x,
                problem.labels,
                problem.y,
                problem.ref_labels,
                backend=backend,
                return_stats="class_scores",
            )
        assert not value.requires_grad
        assert torch.equal(value, truth.detach())
        assert not stats.class_scores.mean_violation.requires_grad


@both
def test_statistics_are_detached(loss: str, backend: str) -> None:
    problem = draw()
    x = problem.x.requires_grad_()
    value, stats = FUSED[loss](x, problem.labels, backend=backend, return_stats=True)
    assert isinstance(stats, PairStats) and stats.class_scores is None
    assert value.requires_grad
    for field in dataclasses.fields(stats):
        assert field.name == "class_scores" or not getattr(stats, field.name).requires_grad
    with pytest.raises(AttributeError):
        stats.violated = stats.constraints


@both
def test_backward_twice_with_retain_graph_adds_up(loss: str, backend: str) -> None:
    problem = draw(refs=True)
    x = problem.x.requires_grad_()
    value = FUSED[loss](x, problem.labels, problem.y, problem.ref_labels, backend=backend)
    value.backward(retain_graph=True)
    once = x.grad.clone()
    value.backward()
    torch.testing.assert_close(x.grad, 2 * once)


@both
def test_embeddings_changed_before_backward_are_noticed(loss: str, backend: str) -> None:
    problem = draw()
    leaf = problem.x.requires_grad_()
    x = leaf * 1.0
    value = FUSED[loss](x, problem.labels, backend=backend)
    with torch.no_grad():
        x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@both
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_modules_equal_functions(loss: str, refs: bool, backend: str) -> None:
    problem = draw(refs=refs)
    module = LOSSES[loss](backend=backend, **PUBLIC[loss])
    truth = FUSED[loss](*problem.args(), backend=backend, **PUBLIC[loss])
    twins = [module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    for twin in twins:
        assert torch.equal(twin(*problem.args()), truth)
        assert not list(twin.parameters()) and not twin.state_dict()
    assert "margin=" in repr(module)
    value, stats = LOSSES[loss](return_stats=True, backend=backend)(*problem.args())
    assert value.ndim == 0 and stats.constraints > 0


def test_modules_have_the_defaults_of_functions(backend: str) -> None:
    problem = draw()
    for loss in FUSED:
        assert torch.equal(
            LOSSES[loss](backend=backend)(problem.x, problem.labels),
            FUSED[loss](problem.x, problem.labels, backend=backend),
        )


@pytest.mark.parametrize("options", [{"margins": 1.0}, {"margin": "big"}, {"distance": "l7"}])
@both
def test_modules_refuse_bad_options_when_made(loss: str, options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        LOSSES[loss](**options)


OWN_KEYWORDS: dict[str, dict[str, Any]] = {
    "triplet": {
        **{"margin": 0.2, "mining": "hard", "smooth": False, "swap": False},
        **{"cutoff": 0.5, "nonzero_loss_cutoff": 1.4, "seed": None, "distance": "euclidean"},
    },
    "contrastive": {
        **{"pos_margin": 0.0, "neg_margin": 1.0, "squared": False, "distance": "euclidean"},
    },
    "margin": {"margin": 0.2, "beta": 1.2, "distance": "euclidean"},
    "multi_similarity": {
        **{"alpha": 2.0, "beta": 50.0, "base": 0.5, "epsilon": None, "distance": "cosine"},
    },
    "lifted_structure": {
        **{"pos_margin": 0.0, "neg_margin": 1.0, "form": "generalized", "distance": "euclidean"},
    },
    "n_pairs": {"distance": "dot"},
    "nt_xent": {"temperature": 0.07, "distance": "cosine"},
    "sup_con": {"temperature": 0.1, "distance": "cosine"},
    "angular": {"alpha": 40.0},
    "circle": {"m": 0.4, "gamma": 80.0},
    "proxy_nca": {"softmax_scale": 1.0, "distance": "sqeuclidean", "normalize": True},
    "proxy_anchor": {"margin": 0.1, "alpha": 32.0, "distance": "cosine"},
    "soft_triple": {"la": 20.0, "gamma": 0.1, "margin": 0.01, "distance": "cosine"},
}


@pytest.mark.parametrize("loss", OWN_KEYWORDS)
def test_signatures(loss: str) -> None:
    """The public surface: names, order and defaults."""
    own = OWN_KEYWORDS[loss]
    normalize = {} if "distance" not in own else {"normalize": own.get("normalize", False)}
    shared = {"reduction": "mean", "backend": "auto", "precision": None, "return_stats": False}
    expected = own | normalize | shared
    function = getattr(dmlap_kernels, f"fused_{loss}_loss")
    assert function is getattr(dmlap_kernels.functional, f"fused_{loss}_loss")
    parameters = inspect.signature(function).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert list(keywords.items()) == list(expected.items())
    references = ["ref_embeddings", "ref_labels"]
    if loss in ("proxy_nca", "proxy_anchor", "soft_triple"):
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
