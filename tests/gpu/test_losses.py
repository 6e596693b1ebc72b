"""The table of losses on the backends for GPUs, on a GPU; skipped where there is none."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmlap_kernels.backends import planted
from dmlap_kernels.backends.cuda import WITHOUT
from dmlap_kernels.backends.registry import backends
from dmlap_kernels.backends.triton.triton_backend import MATCHED
from dmlap_kernels.match import Match
from dmlap_kernels.problem import PairSpec
from tests.losses.cases import Case, Problem, make_problem, table, usual
from tests.losses.compare import gradient_epsilon, value_epsilon, worst
from tests.losses.compare import run as run_loss
from tests.losses.losses_table import LOSSES
from tests.losses.test_self_index import containing_the_batch, few_cases

if not torch.cuda.is_available() and os.environ.get("DMLAP_REQUIRE_GPU") != "1":
    pytest.skip("no CUDA device is visible", allow_module_level=True)

NAMES = ("cuda", "triton")
# What is skipped counts as failed where a GPU is asked for.
LEFT_OUT = {("cuda", loss) for loss in WITHOUT}
CASES = [case for loss in LOSSES for case in table(loss) if case.dtype != torch.float64][::4]
# Triton compiles for most cases anew, about a second each.
CALLS = [
    *(("cuda", case) for case in CASES if ("cuda", case.loss) not in LEFT_OUT),
    *(("triton", case) for case in CASES[::3]),
]
SMALL = [(name, loss) for name in NAMES for loss in LOSSES if (name, loss) not in LEFT_OUT]
NAMED = [
    (name, case) for name in NAMES for case in few_cases() if (name, case.loss) not in LEFT_OUT
]


def served(name: str, case: Case) -> None:
    """Skips what the backend does not run here."""
    backend = backends()[name]
    reason = backend.unavailable() or backend.refuses(
        PairSpec(case.loss, ()), "cuda", torch.float32
    )
    if reason is not None:
        pytest.skip(reason)


def on_device(problem: Problem) -> Problem:
    def move(value: Any) -> Any:
        return value.cuda() if isinstance(value, Tensor) else value

    keywords = {name: move(value) for name, value in problem.keywords.items()}
    tensors = (problem.x, problem.labels, problem.y, problem.ref_labels)
    return replace(
        problem,
        **dict(zip(("x", "labels", "y", "ref_labels"), map(move, tensors), strict=True)),
        keywords=keywords,
    )


def check(name: str, case: Case, problem: Problem | None = None) -> None:
    """Against the `torch` backend in float64 on the same rounded numbers."""
    served(name, case)
    problem = problem or make_problem(case)
    fused = LOSSES[case.loss].fused
    truth, truth_grads = run_loss(fused, problem.cast(torch.float64), backend="torch")
    plain, plain_grads = run_loss(fused, problem, backend="torch")
    ours, our_grads = run_loss(fused, on_device(problem), backend=name)
    assert worst(ours.cpu(), truth) <= 2 * worst(plain, truth) + value_epsilon(case.loss, problem)
    for mine, eager, true in zip(our_grads, plain_grads, truth_grads, strict=True):
        allowed = 2 * worst(eager, true) + gradient_epsilon(case.loss, problem, true)
        assert worst(mine.cpu(), true) <= allowed


@pytest.mark.parametrize(("name", "case"), CALLS, ids=lambda one: getattr(one, "id", one))
def test_value_and_gradient(name: str, case: Case) -> None:
    check(name, case)


@pytest.mark.parametrize(("name", "loss"), SMALL)
def test_small(name: str, loss: str) -> None:
    """Several tiles each way, and few enough for compute-sanitizer."""
    check(name, usual(loss, rows=70, features=20))


@pytest.mark.parametrize("loss", LOSSES)
def test_several_panels(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the last has fewer rows than the others, and more splits."""
    from dmlap_kernels.backends.triton import configurations

    case = usual(loss, rows=700, features=40)
    monkeypatch.setattr(configurations, "PANEL_BYTES", 4 * 256 * 700)
    check("triton", case)


@pytest.mark.parametrize("labels_agree", [True, False], ids=["same-label", "other-label"])
@pytest.mark.parametrize(("name", "case"), NAMED, ids=lambda one: getattr(one, "id", one))
def test_small_self_index(name: str, case: Case, labels_agree: bool) -> None:
    check(name, case, containing_the_batch(case, labels_agree))


@pytest.mark.parametrize("height", [64, 4096])
@pytest.mark.parametrize("loss", MATCHED)
def test_small_match(loss: str, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the self-check holds, in one panel and in several."""
    from dmlap_kernels.backends.triton import configurations

    monkeypatch.setattr(configurations, "PANEL_BYTES", 4 * height * 170)
    served("triton", Case(loss))
    distance = LOSSES[loss].default_distance
    spec = PairSpec(loss, planted.PARAMS[loss], distance, True, match=Match(None))
    ours, judge = backends()["triton"], backends()["torch"]
    assert planted.check(ours, judge, spec, torch.float32, "cuda") is None


@pytest.mark.parametrize("name", NAMES)
def test_small_graph(name: str) -> None:
    """A step is captured in a CUDA graph, and replays on new numbers."""
    served(name, Case("nt_xent"))
    from dmlap_kernels import fused_nt_xent_loss

    x = torch.randn(300, 40, device="cuda", requires_grad=True)
    labels = torch.arange(300, device="cuda") // 3

    def step() -> tuple[Tensor, Tensor]:
        value = fused_nt_xent_loss(x, labels, backend=name)
        return value.detach(), torch.autograd.grad(value, x)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for replayed, eager in zip(captured, step(), strict=True):
        assert torch.equal(replayed, eager)
