"""Numbers of losses (margins, temperatures, scales) that are tensors: they get their gradient, the
modules own them, and a compiled loss is one graph for all their values."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import dmlap_kernels
from dmlap_kernels import sweep
from dmlap_kernels.backends import registry
from dmlap_kernels.losses import LOSSES, PROXY_LOSSES, MarginLoss, NTXentLoss
from dmlap_kernels.problem import PairProblem, PairSpec
from tests import reference
from tests.losses.calls import Call
from tests.losses.losses_table import FUNCTIONS

# The name of the reference formula, and the loss with its numbers and what else it is called with.
# A loss that is not listed is called with numbers near its defaults.
NUMBERS: dict[str, tuple[str, Call]] = {
    "hard": ("triplet_hard", Call("triplet", {"margin": 0.9})),
    "hard-smooth-swap": (
        "triplet_hard",
        Call("triplet", {"margin": 0.3, "smooth": True, "swap": True}),
    ),
    "easy": (
        "triplet_easy_positive_semihard",
        Call("triplet", {"margin": 0.9, "mining": "easy_positive_semihard"}),
    ),
    "semihard": ("triplet_semihard", Call("triplet", {"margin": 0.9, "mining": "semihard"})),
    "all-smooth": (
        "triplet_all",
        Call("triplet", {"margin": 0.3, "mining": "all", "smooth": True}),
    ),
    "drawn": (
        "triplet_distance_weighted",
        Call("triplet", {"margin": 0.3, "mining": "distance_weighted", "seed": 11}),
    ),
    "contrastive": ("contrastive", Call("contrastive", {"pos_margin": 0.2, "neg_margin": 1.3})),
    "contrastive-squared": (
        "contrastive",
        Call("contrastive", {"pos_margin": 0.2, "neg_margin": 1.3, "squared": True}),
    ),
    "margin": ("margin", Call("margin", {"margin": 0.3, "beta": 1.3})),
    "multi_similarity": (
        "multi_similarity",
        Call("multi_similarity", {"alpha": 2.0, "beta": 9.0, "base": 0.4}),
    ),
    "multi_similarity-mined": (
        "multi_similarity",
        Call("multi_similarity", {"alpha": 2.0, "beta": 9.0, "base": 0.4, "epsilon": 0.1}),
    ),
    "lifted-original": (
        "lifted_structure_original",
        Call("lifted_structure", {"pos_margin": 0.1, "neg_margin": 2.0}),
    ),
    "lifted-generalized": (
        "lifted_structure",
        Call("lifted_structure", {"pos_margin": 0.1, "neg_margin": 2.0, "form": "generalized"}),
    ),
    "nt_xent": ("nt_xent", Call("nt_xent", {"temperature": 0.3})),
    "nt_xent-euclidean": (
        "nt_xent",
        Call("nt_xent", {"temperature": 0.7, "distance": "euclidean", "normalize": True}),
    ),
    "sup_con": ("sup_con", Call("sup_con", {"temperature": 0.3})),
    "sup_con-dot": ("sup_con", Call("sup_con", {"temperature": 3.0, "distance": "dot"})),
    "sup_con-sqeuclidean": (
        "sup_con",
        Call("sup_con", {"temperature": 3.0, "distance": "sqeuclidean"}),
    ),
    "nt_xent-hardness": (
        "nt_xent_hardness",
        Call("nt_xent", {"temperature": 0.3, "hardness": 0.7}),
    ),
    "sup_con-hardness": (
        "sup_con_hardness",
        Call("sup_con", {"temperature": 0.3, "hardness": 0.7, "distance": "dot"}),
    ),
    "circle": ("circle", Call("circle", {"m": 0.3, "gamma": 10.0})),
    "cosface": ("cosface", Call("cosface", {"scale": 8.0, "margin": 0.2})),
    "arcface": ("arcface", Call("arcface", {"scale": 8.0, "margin": 30.0})),
    "arcface-beyond": ("arcface", Call("arcface", {"scale": 8.0, "margin": 100.0})),
    "proxy_anchor": ("proxy_anchor", Call("proxy_anchor", {"margin": 0.2, "alpha": 8.0})),
    "soft_triple": ("soft_triple", Call("soft_triple", {"la": 9.0, "gamma": 0.2, "margin": 0.1})),
}
LISTED = {call.loss for _, call in NUMBERS.values()}
NUMBERS |= {
    loss: (row.name, Call(loss, row.other_numbers))
    for loss, row in FUNCTIONS.items()
    if row.numbers and loss not in LISTED
}
# These only pick pairs or draws.
WITHOUT_GRADIENT = ("seed", "epsilon", "cutoff", "nonzero_loss_cutoff")
ROWS = pytest.mark.parametrize("name", NUMBERS)


def learned(call: Call) -> dict[str, float]:
    return {
        name: value
        for name, value in call.keywords.items()
        if isinstance(value, float) and name not in WITHOUT_GRADIENT
    }


def leaves_of(call: Call, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {
        name: torch.tensor(value, dtype=dtype, requires_grad=True)
        for name, value in learned(call).items()
    }


def draw(call: Call, refs: bool) -> list[Tensor | None]:
    tensors = call.draw(refs, rows=26, features=6)
    return [t.double() if t is not None and t.is_floating_point() else t for t in tensors]


def truth_of(formula: str, call: Call, tensors: list[Tensor | None], **extra: Any) -> Any:
    """The reference with the distance and normalisation that the function has by default."""
    function = getattr(dmlap_kernels, f"fused_{call.loss}_loss")
    defaults = {p.name: p.default for p in inspect.signature(function).parameters.values()}
    options = {
        name: value
        for name, value in (call.keywords | extra).items()
        if name not in ("mining", "form")
    }
    for name in ("distance", "normalize", "reduction"):
        options.setdefault(name, defaults.get(name, "cosine" if name == "distance" else False))
    if options.get("epsilon", "") is None:
        del options["epsilon"]
    return reference.loss(formula, *tensors, **options)


@ROWS
@pytest.mark.parametrize("reduction", ["mean", "mean_nonzero", "sum", "none"])
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_gradient(name: str, reduction: str, refs: bool, backend: str) -> None:
    """At every number, and with it at the rows, that of the formula in float64."""
    formula, call = NUMBERS[name]
    if call.proxies and not refs:
        pytest.skip("proxies are references")
    x, labels, y, ref_labels = draw(call, refs)
    ours, truth = leaves_of(call), leaves_of(call)
    rows, true_rows = (x.clone().requires_grad_() for _ in range(2))
    value = call(rows, labels, y, ref_labels, **ours, reduction=reduction, backend=backend)
    tensors = [true_rows, labels, y, ref_labels]
    expected = truth_of(formula, call, tensors, **truth, reduction=reduction)
    torch.testing.assert_close(value, expected)
    upstream = torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator())
    mine = torch.autograd.grad(value, [rows, *ours.values()], upstream)
    for at, (found, true) in enumerate(
        zip(
            mine, torch.autograd.grad(expected, [true_rows, *truth.values()], upstream), strict=True
        )
    ):
        assert found.shape == true.shape and found.dtype == true.dtype
        torch.testing.assert_close(found, true, msg=lambda text, at=at: f"{at}: {text}")


@ROWS
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_each_alone_needs_a_gradient(name: str, refs: bool, backend: str) -> None:
    """It is the same whether or not the rows and the other numbers need one, too."""
    _, call = NUMBERS[name]
    tensors = draw(call, refs or call.proxies)
    rows = tensors[0].clone().requires_grad_()
    together = leaves_of(call)
    call(rows, *tensors[1:], **together, backend=backend).backward()
    for number, value in learned(call).items():
        alone = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        plain = learned(call) | {number: alone}
        call(*tensors, **plain, backend=backend).backward()
        torch.testing.assert_close(alone.grad, together[number].grad)


@ROWS
def test_statistics_are_those_of_a_plain_number(name: str, backend: str) -> None:
    call = NUMBERS[name][1]
    tensors = draw(call, False)
    scores: dict[str, Any] = {"return_stats": "class_scores", "backend": backend}
    value, stats = call(*tensors, **leaves_of(call), **scores)
    plain, expected = call(*tensors, **scores)
    torch.testing.assert_close(value, plain)
    for field in ("violation", "mean_positive_distance", "mean_negative_distance"):
        torch.testing.assert_close(getattr(stats, field), getattr(expected, field))
        assert not getattr(stats, field).requires_grad
    assert stats.violated == expected.violated
    assert torch.equal(stats.hardest_negative, expected.hardest_negative)
    for field in ("mean_violation", "min_distance"):
        mine, true = (getattr(s.class_scores, field) for s in (stats, expected))
        torch.testing.assert_close(mine, true)


@ROWS
def test_modules_own_their_numbers(name: str, backend: str) -> None:
    call = NUMBERS[name][1]
    x, labels, *_ = call.draw(False, rows=26, features=6)
    numbers = {key: nn.Parameter(torch.tensor(value)) for key, value in learned(call).items()}
    sizes = (7, 6) if call.proxies else ()
    module = call.module(*sizes, **(call.keywords | numbers), backend=backend)
    assert set(numbers) <= set(dict(module.named_parameters()))
    assert set(numbers) <= set(module.state_dict())
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    before = module(x, labels)
    before.backward()
    assert all(parameter.grad is not None for parameter in numbers.values())
    twin = copy.deepcopy(module)
    optimizer.step()
    after = module(x, labels)
    assert not torch.equal(before, after)
    assert not torch.equal(twin(x, labels), after)
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(x, labels), after)


def test_a_buffer_is_a_number_that_can_be_set() -> None:
    x, labels, *_ = Call("nt_xent").draw(False)
    module = NTXentLoss(temperature=torch.tensor(0.5))
    assert not list(module.parameters()) and list(module.state_dict()) == ["temperature"]
    assert torch.equal(module(x, labels), NTXentLoss(temperature=0.5)(x, labels))
    module.temperature.fill_(0.25)
    assert torch.equal(module(x, labels), NTXentLoss(temperature=0.25)(x, labels))


@pytest.mark.parametrize("loss", ["nt_xent", "contrastive", "margin"])
def test_modules_refuse_a_tensor_that_is_computed_anew(loss: str) -> None:
    name = {"nt_xent": "temperature", "contrastive": "neg_margin", "margin": "beta"}[loss]
    computed = torch.zeros((), requires_grad=True).exp()
    with pytest.raises(TypeError, match=rf"{name} must be .*nn\.Parameter.*fused_{loss}_loss"):
        LOSSES[loss](**{name: computed})


@pytest.mark.parametrize(
    ("loss", "name", "fixed"),
    [
        ("multi_similarity", "epsilon", {}),
        ("triplet", "cutoff", {"mining": "distance_weighted", "seed": 3}),
        ("triplet", "nonzero_loss_cutoff", {"mining": "distance_weighted", "seed": 3}),
    ],
)
def test_what_cannot_be_differentiated_is_refused(
    loss: str, name: str, fixed: dict[str, Any]
) -> None:
    x, labels, *_ = Call(loss).draw(False)
    function = getattr(dmlap_kernels, f"fused_{loss}_loss")
    with pytest.raises(TypeError, match=f"{name} only decides .*needs no gradient"):
        function(x, labels, **fixed, **{name: torch.tensor(0.9, requires_grad=True)})
    constant = function(x, labels, **fixed, **{name: torch.tensor(0.9, dtype=torch.float64)})
    assert torch.equal(constant, function(x, labels, **fixed, **{name: 0.9}))


@pytest.mark.parametrize("loss", ["nt_xent", "triplet"])
def test_bad_tensors_are_refused(loss: str) -> None:
    x, labels, *_ = Call(loss).draw(False)
    name = "temperature" if loss == "nt_xent" else "margin"
    function = getattr(dmlap_kernels, f"fused_{loss}_loss")
    with pytest.raises(TypeError, match=f"{name} must be a number or a tensor of one"):
        function(x, labels, **{name: torch.ones(2)})
    with pytest.raises(ValueError, match=f"{name} must be finite"):
        function(x, labels, **{name: torch.tensor(torch.nan, requires_grad=True)})


def test_half_embeddings_take_a_learned_temperature(backend: str) -> None:
    x, labels, *_ = Call("nt_xent").draw(False)
    rows = x.bfloat16().requires_grad_()
    temperature = torch.tensor(0.3, requires_grad=True)
    value = dmlap_kernels.fused_nt_xent_loss(rows, labels, temperature=temperature, backend=backend)
    value.backward()
    assert value.dtype == torch.float32
    assert rows.grad.dtype == torch.bfloat16 and temperature.grad.dtype == torch.float32
    plain = dmlap_kernels.fused_nt_xent_loss(rows, labels, temperature=0.3, backend=backend)
    torch.testing.assert_close(value, plain)


def test_kernels_of_a_device_refuse_numbers_that_lie_there() -> None:
    """They would have to wait for it; a temperature goes to the rows instead."""
    x = torch.zeros(2, 3, device="meta")
    labels = torch.zeros(2, dtype=torch.int64, device="meta")
    problem = PairProblem(x, labels, None, None, numbers=torch.ones(1, device="meta"))
    with pytest.raises(ValueError, match="'triton' takes the numbers .* CPU, got one on meta"):
        sweep._runner("triton", PairSpec("triplet_hard", (None, 0.0, 0.0)), problem)
    assert (
        sweep._runner("auto", PairSpec("triplet_hard", (None,)), problem)
        is (registry.backends()["torch"])
    )


@pytest.mark.parametrize("name", [*NUMBERS, "seed"])
def test_a_schedule_is_one_graph(name: str, backend: str) -> None:
    """Twelve values: the first is compiled as a constant, the second as an operand, and no more."""
    torch.compiler.reset()
    seeded = Call("triplet", {"mining": "distance_weighted", "seed": 7})
    call = seeded if name == "seed" else NUMBERS[name][1]
    names = ["seed"] if name == "seed" else list(learned(call))
    x, labels, *_ = Call("triplet").draw(False, rows=20, features=6)
    proxies = (x[:7], labels[:7]) if call.proxies else ()

    def function(x: Tensor, labels: Tensor, values: list[Any]) -> Tensor:
        numbers = dict(zip(names, values, strict=True))
        return call(x, labels, *proxies, backend=backend, **numbers)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for step in range(12):
        growth = 0.9 + step / 100
        values = [7 + step] if name == "seed" else [growth * v for v in learned(call).values()]
        rows, plain = (x.clone().requires_grad_() for _ in range(2))
        mine, truth = compiled(rows, labels, values), function(plain, labels, values)
        torch.testing.assert_close(mine, truth)
        mine.backward()
        truth.backward()
        torch.testing.assert_close(rows.grad, plain.grad)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("loss", ["nt_xent", "triplet", "margin"])
def test_a_learned_number_under_compile(loss: str, backend: str) -> None:
    torch.compiler.reset()
    name = "temperature" if loss == "nt_xent" else "margin"
    module = LOSSES[loss](**{name: nn.Parameter(torch.tensor(0.4))}, backend=backend)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, labels, *_ = Call(loss).draw(False)
    gradients = []
    for function in (module, compiled):
        module.zero_grad()
        function(x, labels).backward()
        gradients.append(getattr(module, name).grad.clone())
    torch.testing.assert_close(*gradients)
    assert gradients[0] != 0


@pytest.mark.parametrize("backend_sizes", ["torch", "cpu"])
def test_batch_sizes_are_one_graph(backend_sizes: str) -> None:
    if registry.backends()[backend_sizes].unavailable():
        pytest.skip(f"backend {backend_sizes!r} does not run here")
    for loss in (*LOSSES, *PROXY_LOSSES):
        torch.compiler.reset()
        counter = CompileCounterWithBackend("aot_eager")
        others = (torch.randn(6, 5),) if loss in PROXY_LOSSES else ()
        function = getattr(dmlap_kernels, f"fused_{loss}_loss")

        def step(x: Tensor, labels: Tensor, *, function=function, others=others) -> Tensor:
            return function(x, labels, *others, backend=backend_sizes)

        compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
        frames = 0
        for rows in (20, 33, 57, 128):
            x = torch.randn(rows, 5, requires_grad=True)
            labels = torch.arange(rows) % 6
            value = compiled(x, labels)
            torch.testing.assert_close(value, step(x, labels))
            value.backward()
            frames = frames or counter.frame_count
        assert counter.frame_count == frames, loss


def test_margin_takes_a_parameter_as_beta() -> None:
    beta = nn.Parameter(torch.full((7,), 1.2))
    module = MarginLoss(beta=beta)
    assert dict(module.named_parameters())["beta"] is beta


def test_a_graph_tells_one_installation_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch keeps compiled graphs on disk, by what stands in them: without the extension the same
    call leaves other tensors for its backward."""
    x, labels, *_ = Call("triplet").draw(False)
    seen: list[str] = []

    def note(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.append(graph.code)
        return graph

    def trace() -> None:
        torch.compiler.reset()
        step = torch.compile(dmlap_kernels.fused_triplet_loss, fullgraph=True, backend=note)
        step(x, labels)

    trace()
    trace()
    monkeypatch.setattr(type(registry.backends()["cpu"]), "unavailable", lambda _: "not built")
    trace()
    assert seen[0] == seen[1] != seen[2]
