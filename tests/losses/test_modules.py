"""The nn.Module twins: one for each function, with its keywords, and parameters where it learns."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dmlap_kernels
from dmlap_kernels import fused_margin_loss
from dmlap_kernels.losses import LOSSES, PROXY_LOSSES, MarginLoss, SoftTripleLoss
from tests.losses.calls import CALLS, EVERY_CALL, Call

PAIR_CALLS = [call for call in CALLS if not call.proxies]
PROXY_CALLS = [call for call in CALLS if call.proxies]
PAIRS = pytest.mark.parametrize("call", PAIR_CALLS, ids=lambda call: call.id)
PROXIES = pytest.mark.parametrize("call", PROXY_CALLS, ids=lambda call: call.id)
BETAS = {
    "scalar": ({}, ()),
    "classes": ({"num_classes": 7}, (7,)),
    "tensor": ({"beta": torch.linspace(3, 5, 7)}, (7,)),
}


def make(call: Call, **extra: Any) -> nn.Module:
    sizes = (7, 12) if call.proxies else ()
    return call.module(*sizes, **call.keywords, **extra)


def test_every_function_has_one_module() -> None:
    functions = {name for name in dmlap_kernels.__all__ if name.startswith("fused_")}
    modules = LOSSES | PROXY_LOSSES
    assert {f"fused_{loss}_loss" for loss in modules} == functions
    assert {module.function.__name__ for module in modules.values()} == functions
    for loss, module in modules.items():
        assert module.function is getattr(dmlap_kernels, f"fused_{loss}_loss")
        assert module.__name__.removesuffix("Loss").lower() == loss.replace("_", "")
    assert {call.loss for call in CALLS} == set(modules)


@PAIRS
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_pair_modules_equal_functions(call: Call, refs: bool, backend: str) -> None:
    tensors = call.draw(refs)
    module = make(call, backend=backend)
    truth = call(*tensors, backend=backend)
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(*tensors), truth)
        assert not list(twin.parameters()) and not twin.state_dict()
    for name, value in call.keywords.items():
        assert f"{name}={value!r}" in repr(module)
    value, stats = make(call, return_stats=True, backend=backend)(*tensors)
    assert torch.equal(value, truth) and stats.constraints > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_modules_without_arguments_have_the_defaults_of_functions(loss: str) -> None:
    x, labels, *_ = CALLS[0].draw(False)
    truth = LOSSES[loss].function(x, labels)
    assert truth > 0
    assert torch.equal(LOSSES[loss]()(x, labels), truth)


@PROXIES
def test_proxy_modules_equal_functions(call: Call, backend: str) -> None:
    x, labels, *_ = call.draw(False)
    module = make(call, backend=backend)
    truth = call(x, labels, module.proxies, module.proxy_labels, backend=backend)
    assert list(dict(module.named_parameters())) == list(module.state_dict()) == ["proxies"]
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x, labels), truth)
    other = make(call, backend=backend)
    assert not torch.equal(other(x, labels), truth)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x, labels), truth)
    module(x, labels).backward()
    assert module.proxies.grad.any() and other.proxies.grad is None
    assert f"proxies={tuple(module.proxies.shape)}" in repr(module)


def test_soft_triple_lists_its_centres_class_by_class() -> None:
    module = SoftTripleLoss(3, 5, centers_per_class=2)
    assert module.proxies.shape == (6, 5)
    assert module.proxy_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert SoftTripleLoss(3, 5).proxies.shape == (30, 5)


@pytest.mark.parametrize("loss", PROXY_LOSSES)
def test_proxies_start_as_those_of_the_peer(loss: str) -> None:
    peers = pytest.importorskip("pytorch_metric_learning.losses")
    torch.manual_seed(3)
    peer = getattr(peers, PROXY_LOSSES[loss].__name__)(7, 12)
    torch.manual_seed(3)
    module = PROXY_LOSSES[loss](7, 12)
    (weights,) = peer.parameters()
    weights = weights if hasattr(peer, "proxies") else weights.t()
    assert torch.equal(module.proxies, weights)


@PROXIES
def test_proxies_keep_their_precision_under_autocast(call: Call, backend: str) -> None:
    """Half embeddings meet float32 proxies: nothing is rounded that was not."""
    x, labels, *_ = call.draw(False)
    half = x.bfloat16().requires_grad_()
    module = make(call, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = module(half, labels)
    truth = module(half.detach().float(), labels)
    assert value.dtype == torch.float32 and torch.equal(value, truth)
    value.backward()
    truth_grad = torch.autograd.grad(truth, module.proxies)[0]
    assert half.grad.dtype == torch.bfloat16 and half.grad.any()
    assert torch.equal(module.proxies.grad, truth_grad)


@pytest.mark.parametrize("options", BETAS.values(), ids=BETAS.keys())
def test_learnable_boundaries(
    options: tuple[dict[str, Any], tuple[int, ...]], backend: str
) -> None:
    keywords, shape = options
    x, labels, *_ = CALLS[0].draw(False)
    module = MarginLoss(**({"beta": 4.0} | keywords), learn_beta=True, backend=backend)
    assert isinstance(module.beta, nn.Parameter) and module.beta.shape == shape
    assert list(module.state_dict()) == ["beta"]
    start = module.beta.detach().clone()
    value = module(x, labels)
    assert torch.equal(value, fused_margin_loss(x, labels, beta=start, backend=backend))
    value.backward()
    assert module.beta.grad.shape == shape and module.beta.grad.any()
    step = 1e-3 * module.beta.grad
    with torch.no_grad():
        module.beta -= step
    assert module(x, labels) < value
    twin = MarginLoss(**({"beta": 4.0} | keywords), learn_beta=True, backend=backend)
    assert not torch.equal(twin(x, labels), module(x, labels))
    twin.load_state_dict(module.state_dict())
    for copied in (twin, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(x, labels), module(x, labels))


def test_the_gradient_of_a_boundary_is_that_of_its_rows(backend: str) -> None:
    """One for all gets the sum of what the classes get; a class that is absent gets nothing."""
    x, labels, *_ = CALLS[0].draw(False)
    one = torch.tensor(4.0, requires_grad=True)
    each = torch.full((9,), 4.0, requires_grad=True)
    for beta in (one, each):
        fused_margin_loss(x, labels, beta=beta, backend=backend).backward()
    torch.testing.assert_close(one.grad, each.grad.sum())
    assert not each.grad[7:].any()
    half = torch.tensor([4.0], dtype=torch.bfloat16, requires_grad=True)
    fused_margin_loss(x, labels, beta=half, backend=backend).backward()
    assert half.grad.dtype == torch.bfloat16 and half.grad.shape == (1,)


def test_a_boundary_that_is_not_learned_is_a_buffer() -> None:
    x, labels, *_ = CALLS[0].draw(False)
    beta = torch.linspace(3, 5, 7)
    module = MarginLoss(beta=beta)
    assert not list(module.parameters()) and list(module.state_dict()) == ["beta"]
    assert torch.equal(module(x, labels), fused_margin_loss(x, labels, beta=beta))
    assert "beta=2.5" in repr(MarginLoss(beta=2.5)) and not MarginLoss(beta=2.5).state_dict()


BAD_OPTIONS: dict[str, tuple[str, dict[str, Any], type[Exception]]] = {
    **{f"{call.id}-unknown": (call.loss, {"margins": 1.0}, TypeError) for call in CALLS},
    **{f"{loss}-backend": (loss, {"backend": "tpu"}, ValueError) for loss in LOSSES},
    "triplet-margin": ("triplet", {"margin": "big"}, TypeError),
    "triplet-distance": ("triplet", {"distance": "l7"}, ValueError),
    "nt_xent-temperature": ("nt_xent", {"temperature": 0}, ValueError),
    "margin-beta": ("margin", {"beta": "big"}, TypeError),
    "margin-beta-shape": ("margin", {"beta": torch.ones(2, 2)}, ValueError),
    "margin-learn_beta": ("margin", {"learn_beta": 1}, TypeError),
    "margin-num_classes": ("margin", {"num_classes": 3}, ValueError),
    "margin-num_classes-zero": ("margin", {"num_classes": 0, "learn_beta": True}, ValueError),
    "proxy_nca-num_classes": ("proxy_nca", {"num_classes": 0}, ValueError),
    "proxy_nca-embedding_size": ("proxy_nca", {"embedding_size": 1.5}, TypeError),
    "proxy_anchor-alpha": ("proxy_anchor", {"alpha": -1}, ValueError),
    "proxy_anchor-distance": ("proxy_anchor", {"distance": "euclidean"}, ValueError),
    "soft_triple-centers_per_class": ("soft_triple", {"centers_per_class": 0}, ValueError),
    "proxy_nca-centers_per_class": ("proxy_nca", {"centers_per_class": 2}, TypeError),
}


@pytest.mark.parametrize(("loss", "options", "error"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_modules_refuse_bad_options_when_made(
    loss: str, options: dict[str, Any], error: type[Exception]
) -> None:
    sizes = {"num_classes": 3, "embedding_size": 4} if loss in PROXY_LOSSES else {}
    with pytest.raises(error, match=next(iter(options))):
        (LOSSES | PROXY_LOSSES)[loss](**(sizes | options))


@EVERY_CALL
def test_modules_accept_every_keyword_of_their_function(call: Call) -> None:
    parameters = inspect.signature(call.module.function).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    own.pop("self_index", None)  # of a batch
    assert own
    sizes = {"num_classes": 3, "embedding_size": 4} if call.proxies else {}
    module = call.module(**sizes, **own)
    x, labels, *_ = call.draw(False)
    assert module(x[:, :4], labels % 3).isfinite()


def test_modules_move_with_their_parameters() -> None:
    module = make(PROXY_CALLS[0]).double()
    assert module.proxies.dtype == torch.float64
    x, labels, *_ = CALLS[0].draw(False)
    value: Tensor = module(x, labels)
    assert value.dtype == torch.float64
