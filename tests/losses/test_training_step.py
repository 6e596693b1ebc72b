"""Losses in a training step as others write it: gradient scaling, accumulation, threads, graphs of
changing batches and numbers, operators, export."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from dmlap_kernels.problem import PairSpec
from tests.losses.calls import CALLS, EVERY_CALL, Call

SEEDED = Call("triplet", {"mining": "distance_weighted", "seed": 7}, "seed")
# Those that only pick pairs are compiled in.
SCHEDULED = [*(call for call in CALLS if call.variant != "drawn"), SEEDED]
CONSTANT = ("epsilon", "cutoff", "nonzero_loss_cutoff")


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


class Whole(nn.Module):
    """An encoder and a loss, as one module that returns the loss."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.encoder, self.loss = nn.Linear(8, 6), loss

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self.encoder(inputs), labels)


def whole(call: Call, backend: str) -> Whole:
    torch.manual_seed(0)
    sizes = (7, 6) if call.proxies else ()
    return Whole(call.module(*sizes, **call.keywords, backend=backend))


def batch(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 8, generator=g), torch.arange(rows) % 7


@EVERY_CALL
def test_scaled_gradients(call: Call, backend: str) -> None:
    """float16 under autocast: a scale of a power of two changes nothing, one that overflows skips
    the step."""
    inputs, labels = batch(21)
    steps: dict[float, Whole] = {}
    for scale in (1.0, 2.0**8, 2.0**60):
        model = steps[scale] = whole(call, backend)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        with torch.autocast("cpu", dtype=torch.float16):
            loss = model(inputs, labels)
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == (scale / 2 if scale > 2**20 else scale)
    start = whole(call, backend).encoder.weight
    plain, scaled, skipped = (model.encoder.weight for model in steps.values())
    assert not torch.equal(plain, start) and torch.equal(skipped, start)
    # But for gradients of float16 that are too small for it without the scale.
    torch.testing.assert_close(scaled - start, plain - start, rtol=1e-2, atol=1e-6)


@EVERY_CALL
def test_gradients_accumulate(call: Call, backend: str) -> None:
    """Three batches one after the other, each divided by their number, then one step."""
    model = whole(call, backend)
    batches = [batch(21, seed) for seed in range(3)]
    for inputs, labels in batches:
        (model(inputs, labels) / 3).backward()
    together = copy.deepcopy(model)
    together.zero_grad()
    values = []
    for inputs, labels in batches:
        values.append(together(inputs, labels))
    torch.stack(values).mean().backward()
    for one, other in zip(model.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@EVERY_CALL
def test_replicas_in_threads(call: Call, backend: str) -> None:
    """As in `nn.DataParallel`: replicas of a module run in threads of one process."""
    model = whole(call, backend)

    def step(seed: int) -> list[Tensor]:
        mine = copy.deepcopy(model)
        mine(*batch(21, seed)).backward()
        return [p.grad for p in mine.parameters() if p.grad is not None]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(step, range(8)))
    for seed, grads in enumerate(found):
        for one, other in zip(grads, step(seed), strict=True):
            assert torch.equal(one, other)


def scheduled(call: Call, backend: str) -> tuple[list[float], Callable[..., Tensor]]:
    """The numbers of a call that may change from step to step, and the loss as a function of them,
    embeddings, labels and, where the loss has them, proxies."""
    names = [n for n, v in call.keywords.items() if type(v) in (int, float) and n not in CONSTANT]

    def loss(rows: Tensor, labels: Tensor, proxies: Tensor, values: list[Any]) -> Tensor:
        numbers = dict(zip(names, values, strict=True))
        return call(rows, labels, *((proxies,) if call.proxies else ()), backend=backend, **numbers)

    return [call.keywords[name] for name in names], loss


@pytest.mark.parametrize("call", SCHEDULED, ids=lambda call: call.id)
def test_batches_and_schedules_are_two_graphs(call: Call) -> None:
    """Sizes and numbers change together at each step, a seed too. One graph for the first call,
    whose values look like constants, and one for all others. Backends look alike to the
    compiler."""
    values, loss = scheduled(call, "torch")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    proxies = torch.randn(7, 8, generator=torch.Generator().manual_seed(1))
    for step, rows in enumerate((21, 30, 24, 57, 40)):
        now = [v + step if isinstance(v, int) else v * (0.9 + step / 100) for v in values]
        inputs, labels = batch(rows, step)
        leaves = [inputs.clone().requires_grad_() for _ in range(2)]
        mine = compiled(leaves[0], labels, proxies, now)
        truth = loss(leaves[1], labels, proxies, now)
        torch.testing.assert_close(mine, truth)
        mine.backward()
        truth.backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("loss", ["sup_con", "contrastive", "arcface"])
def test_operators_keep_their_promises(loss: str, backend: str) -> None:
    """`torch.library.opcheck` of both. What forward leaves for backward on the CPU has bytes that
    nobody writes or reads, so that its outputs are not compared to the bit there."""
    numbers = {"sup_con": (0.2,), "contrastive": (0.1, 1.2, 0.0), "arcface": (8.0, 0.8, 0.6, 0.3)}
    distance = "euclidean" if loss == "contrastive" else "cosine"
    x = torch.randn(9, 4, requires_grad=True)
    refs = (torch.randn(5, 4, requires_grad=True), torch.arange(5)) if loss == "arcface" else ()
    tensors = x, torch.arange(9) % 5, *(refs or (None, None)), None, None
    flags = 1 if loss == "contrastive" else 0
    given = numbers[loss][: len(numbers[loss]) - flags]
    learned = torch.tensor(given, dtype=torch.float64, requires_grad=True)
    params = (*[None] * len(given), *numbers[loss][len(given) :])
    spec = PairSpec(loss, params, distance).encode()
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    tests += ["test_aot_dispatch_dynamic"] if backend == "torch" else []
    forward = (*tensors, learned, spec, backend, False)
    torch.library.opcheck(torch.ops.dmlap.pair_loss, forward, test_utils=tests)
    _, saved, *_ = torch.ops.dmlap.pair_loss(*forward)
    backward = (*tensors, learned, spec, backend, saved.detach(), torch.ones(()), True)
    backward = [t.detach() if isinstance(t, Tensor) else t for t in backward]
    torch.library.opcheck(torch.ops.dmlap.pair_loss_backward, tuple(backward), test_utils=tests)


@EVERY_CALL
def test_export(call: Call, backend: str) -> None:
    """A model that ends in a loss is exported with any batch size; it trains as it did."""
    model = whole(call, backend)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(model, batch(21), dynamic_shapes=({0: rows}, {0: rows}))
    exported = program.module()
    for count in (21, 34):
        value, truth = exported(*batch(count)), model(*batch(count))
        torch.testing.assert_close(value, truth)
        model.zero_grad()
        value.backward()
        truth.backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        for name, parameter in exported.named_parameters():
            torch.testing.assert_close(parameter.grad, grads[name])
            parameter.grad = None
