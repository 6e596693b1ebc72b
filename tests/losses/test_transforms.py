"""`torch.func`, batched gradients, fake and meta tensors: right, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import dmlap_kernels
from tests.losses.calls import EVERY_CALL, Call


def problem(call: Call, refs: bool = True) -> tuple[list[Tensor], Callable[..., Tensor], Any]:
    """Rows that a gradient flows to, the loss as a function of them, and each anchor's loss."""
    x, labels, y, ref_labels = call.draw(refs, rows=18, features=6)
    rows = [t.double() for t in (x, y) if t is not None]

    def loss(x: Tensor, y: Tensor | None = None, **options: Any) -> Tensor:
        return call(x, labels, y, ref_labels, **options)

    return rows, loss, labels


def gradients(loss: Callable[..., Tensor], rows: list[Tensor], **options: Any) -> Any:
    leaves = [t.clone().requires_grad_() for t in rows]
    return torch.autograd.grad(loss(*leaves, **options), leaves)


@EVERY_CALL
def test_grad_and_vjp(call: Call, backend: str) -> None:
    rows, loss, _ = problem(call)

    def function(*rows: Tensor) -> Tensor:
        return loss(*rows, backend=backend)

    truth = gradients(loss, rows, backend=backend)
    by_grad = torch.func.grad(function, argnums=tuple(range(len(rows))))(*rows)
    value, pull_back = torch.func.vjp(function, *rows)
    for found in (by_grad, pull_back(torch.ones_like(value))):
        for mine, true in zip(found, truth, strict=True):
            torch.testing.assert_close(mine, true)


@EVERY_CALL
def test_batched_gradients(call: Call, backend: str) -> None:
    """Jacobians of one value an anchor, by each of the ways that hand over a batch of gradients."""
    rows, loss, _ = problem(call, refs=False)

    def function(x: Tensor) -> Tensor:
        return loss(x, *rows[1:], reduction="none", backend=backend)

    truth = torch.autograd.functional.jacobian(function, rows[0])
    assert truth.any()
    at_once = torch.autograd.functional.jacobian(function, rows[0], vectorize=True)
    torch.testing.assert_close(at_once, truth)
    torch.testing.assert_close(torch.func.jacrev(function)(rows[0]), truth)
    leaf = rows[0].clone().requires_grad_()
    value = function(leaf)
    every = torch.eye(len(value), dtype=value.dtype)
    (batched,) = torch.autograd.grad(value, leaf, every, is_grads_batched=True)
    torch.testing.assert_close(batched, truth)


@EVERY_CALL
def test_functional_call(call: Call, backend: str) -> None:
    """Parameters handed to a module as a dictionary; here a number that every loss of one has."""
    names = {"temperature", "margin", "alpha", "m", "neg_margin", "softmax_scale", "la"}
    name = next((n for n in sorted(names) if n in call.keywords), None)
    if name is None:
        pytest.skip("no number to learn")
    parameter = torch.nn.Parameter(torch.tensor(float(call.keywords[name])))
    sizes = (7, 12) if call.proxies else ()
    module = call.module(*sizes, **(call.keywords | {name: parameter}), backend=backend)
    x, labels, *_ = call.draw(False)

    def function(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, parameters, (x, labels))

    found = torch.func.grad(function)(dict(module.named_parameters()))
    module(x, labels).backward()
    for key, value in module.named_parameters():
        torch.testing.assert_close(found[key], value.grad)


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "vmap": (lambda f, x: torch.func.vmap(f)(x[None]), "one batch at a time"),
    "vmap-of-grad": (lambda f, x: torch.func.vmap(torch.func.grad(f))(x[None]), "one batch"),
    "jvp": (lambda f, x: torch.func.jvp(f, (x,), (x,)), "no forward-mode derivative"),
    "hessian": (lambda f, x: torch.func.hessian(f)(x), "no forward-mode derivative"),
    "grad-of-grad": (
        lambda f, x: torch.func.grad(lambda x: torch.func.grad(f)(x).sum())(x),
        "differentiated once",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_work_is_refused_in_a_sentence(what: str, backend: str) -> None:
    rows, loss, _ = problem(Call("nt_xent"), refs=False)
    transform, sentence = REFUSED[what]
    with pytest.raises(RuntimeError, match=sentence):
        transform(lambda x: loss(x, backend=backend), rows[0])


@EVERY_CALL
@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_tensors_without_data(call: Call, kind: str, backend: str) -> None:
    """Shapes and dtypes, as PyTorch's own functions give; nothing is computed."""
    backend = backend if kind == "fake" else "auto"  # "cpu" serves its own device alone
    x, labels, y, ref_labels = call.draw(True)
    mode = FakeTensorMode()

    def emptied(tensor: Tensor) -> Tensor:
        return mode.from_tensor(tensor) if kind == "fake" else tensor.to("meta")

    leaves = [emptied(t).requires_grad_() for t in (x, y) if t is not None]
    tensors = leaves[0], emptied(labels), leaves[1], emptied(ref_labels)
    value, stats = call(*tensors, reduction="none", return_stats=True, backend=backend)
    assert value.shape == ((len(y) if call.loss == "proxy_anchor" else len(x)),)
    assert value.device.type == ("cpu" if kind == "fake" else "meta")
    assert stats.hardest_negative.dtype == torch.int64
    value.sum().backward()
    assert all(leaf.grad.shape == leaf.shape for leaf in leaves)
    with pytest.raises(RuntimeError, match="class_scores"):
        call(*tensors, return_stats="class_scores", backend=backend)


def test_a_gradient_that_is_lazily_negated_keeps_its_sign(backend: str) -> None:
    for call in (Call("nt_xent"), Call("margin"), Call("triplet")):
        rows, loss, _ = problem(call, refs=False)
        x = rows[0].requires_grad_()
        value = loss(x, reduction="none", backend=backend)
        up = torch.linspace(-1, 1, len(value), dtype=value.dtype)
        for lazy in (torch._neg_view(up), torch.complex(0 * up, up).conj().imag):
            assert lazy.is_neg()
            (mine,) = torch.autograd.grad(value, x, lazy, retain_graph=True)
            (true,) = torch.autograd.grad(value, x, -up, retain_graph=True)
            assert torch.equal(mine, true)


def test_labels_and_memory_of_inference_mode(backend: str) -> None:
    x, labels, y, ref_labels = Call("nt_xent").draw(True)
    with torch.inference_mode():
        made = labels.clone(), y.clone(), ref_labels.clone()
    for loss in ("nt_xent", "triplet", "margin", "soft_triple"):
        call = Call(loss)
        plain, leaf = (x.clone().requires_grad_() for _ in range(2))
        call(leaf, *made, backend=backend).backward()
        call(plain, labels, y, ref_labels, backend=backend).backward()
        assert torch.equal(leaf.grad, plain.grad)
    with torch.inference_mode():
        assert torch.equal(
            dmlap_kernels.nearest(made[1], k=2, backend=backend).indices,
            dmlap_kernels.nearest(y, k=2, backend=backend).indices,
        )
