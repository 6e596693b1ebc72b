"""Steps ask Triton once what their arguments are like, and then launch what it compiled."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from dmlap_kernels.backends.triton import configurations, kinds
from dmlap_kernels.backends.triton.draws import mixed
from dmlap_kernels.backends.triton.panel_policies import POLICIES
from dmlap_kernels.backends.triton.plans import plan_of
from dmlap_kernels.backends.triton.soft_triple_steps import SoftTripleStep
from dmlap_kernels.backends.triton.statistics_steps import forward_with_statistics
from dmlap_kernels.backends.triton.steps import Step
from dmlap_kernels.backends.triton.triplet_steps import TripletStep
from dmlap_kernels.backends.triton.triton_backend import step_of
from dmlap_kernels.problem import PairProblem, PairSpec

if configurations.INTERPRETED:
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)


@dataclass
class Launches:
    """Arguments of what was launched, and names of the kernels that Triton was asked for."""

    done: list[tuple[Any, ...]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def taken(self) -> tuple[list[tuple[Any, ...]], list[str]]:
        found = self.done[:], self.asked[:]
        self.done.clear(), self.asked.clear()
        return found


class Launcher:
    """Of a kernel, which outlives the test that compiled it."""

    done: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, src: Any, metadata: Any) -> None:
        self.name = metadata.name

    def __call__(self, *arguments: Any) -> None:
        grid, stream, rest = arguments[:3], arguments[3], arguments[9:]
        assert min(grid) > 0 and stream == 17
        self.done.append((self.name, grid, *rest))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """Of a GPU that does nothing: kernels are compiled for it, loaded and launched nowhere."""
    found = Launches()
    monkeypatch.setattr(Launcher, "done", found.done)
    utils = SimpleNamespace(
        load_binary=lambda *_: (1, 1, 32, 0, 1024),
        get_device_properties=lambda _: {"max_shared_mem": 232448},
        unload_module=lambda _: None,
    )
    gpu = SimpleNamespace(
        utils=utils,
        launcher_cls=Launcher,
        get_current_device=lambda: 0,
        get_current_stream=lambda _: 17,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_active_torch_device=lambda: torch.device("cpu"),
    )
    run = JITFunction.run

    def asked(self: Any, *args: Any, **keywords: Any) -> Any:
        found.asked.append(self.__name__)
        return run(self, *args, **keywords)

    monkeypatch.setattr(JITFunction, "run", asked)
    monkeypatch.setattr(kinds, "_kinds", {})
    monkeypatch.setattr(kinds, "_tables", {})
    monkeypatch.setattr(driver, "_active" if hasattr(driver, "_active") else "active", gpu)
    yield found


def step(
    x: Tensor, temperature: float = 0.1, grad: Tensor | None = None, refs: bool = False
) -> None:
    """Forward and backward of SupCon."""
    labels = torch.arange(len(x)) // 4
    problem = PairProblem(x, labels, x + 1 if refs else None, labels if refs else None)
    spec = PairSpec("sup_con", (temperature,), "euclidean")
    plan = plan_of(spec, not refs)
    assert plan is not None
    made = Step(plan, spec, problem)
    _, saved = made.forward()
    made.backward(saved, torch.ones(()) if grad is None else grad)


def test_the_second_step_launches_the_same(launches: Launches) -> None:
    x = torch.randn(40, 32)
    step(x)
    first, asked = launches.taken()
    assert len(asked) == len(first) == 7
    step(x)
    second, asked = launches.taken()
    assert not asked
    for one, other in zip(first, second, strict=True):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            if isinstance(mine, Tensor):  # in memory of its own, but for the caller's
                assert type(theirs) is int and theirs % 16 == 0
                assert (mine.data_ptr() == x.data_ptr()) == (theirs == x.data_ptr())
            else:
                assert theirs is mine or theirs == mine


def test_what_kernels_are_not_compiled_for_is_asked_once(launches: Launches) -> None:
    """Another number of rows, another temperature."""
    step(torch.randn(40, 32))
    launches.taken()
    for rows, temperature in ((56, 0.1), (41, 0.1), (40, 0.2), (3, 0.3)):
        step(torch.randn(rows, 32), temperature)
        done, asked = launches.taken()
        assert len(done) == 7 and not asked


def triplets(mining: str, smooth: float, swap: float, rows: int = 40, backwards: int = 1) -> None:
    """A step against references, some of which are the anchors."""
    x, labels = torch.randn(rows, 32), torch.arange(rows) // 4
    problem = PairProblem(x, labels, x + 1, labels, None, torch.arange(rows))
    params: tuple[float, ...] = (0.2, smooth, swap)
    # A seed of their own for batches of other sizes.
    params += (0.5, 1.4, 2.0**40 + rows) if mining == "distance_weighted" else ()
    spec = PairSpec(f"triplet_{mining}", params, "euclidean")
    plan = plan_of(spec, False)
    assert plan is not None
    made = step_of(plan, spec, problem)
    _, saved = made.forward()
    for _ in range(backwards):
        made.backward(saved, torch.ones(()))


MININGS = ("all", "semihard", "hard", "distance_weighted")
KINDS = list(itertools.product(MININGS, (0.0, 1.0), (0.0, 1.0)))


def test_a_step_of_another_seed_launches_the_same(launches: Launches) -> None:
    """But for the halves of the word that it makes."""
    x = torch.randn(40, 32)

    def seeded(seed: float) -> list[tuple[Any, ...]]:
        spec = PairSpec("triplet_distance_weighted", (0.2, 0.0, 0.0, 0.5, 1.4, seed))
        plan = plan_of(spec, True)
        assert plan is not None
        made = step_of(plan, spec, PairProblem(x, torch.arange(40) // 4, None, None))
        _, saved = made.forward()
        made.backward(saved, torch.ones(()))
        done, asked = launches.taken()
        assert bool(asked) == (seed == 0)
        return [arguments for name, _, *arguments in done if name.startswith("drawn_")]

    seeded(0.0)
    for seed in (1.0, 16.0, 2.0**53 - 1):
        terms, weights = seeded(seed)
        for high, low in (terms[8:10], weights[9:11]):
            assert (high << 32) + (low & 0xFFFFFFFF) == mixed(int(seed))
            assert -(2**31) <= min(high, low) and max(high, low) < 2**31
    assert len(kinds._kinds) == 1


def test_triplets_of_every_kind_have_kernels_of_their_own(launches: Launches) -> None:
    """And launch them again, whatever came in between."""
    counts = []
    for kind in KINDS:
        triplets(*kind)
        done, asked = launches.taken()
        assert len(asked) == len(done)
        counts.append(len(done))
    for kind, count in zip(KINDS, counts, strict=True):
        for rows in (40, 41):
            triplets(*kind, rows=rows)
            done, asked = launches.taken()
            assert not asked and len(done) == count


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_distances_are_made_again(kind: tuple[str, float, float], launches: Launches) -> None:
    """By a second backward half, and where there are several panels."""
    triplets(*kind)
    launches.taken()
    triplets(*kind, backwards=2)
    done, asked = launches.taken()
    assert ("distances_kernel" in asked) == (kind[0] != "hard")
    triplets(*kind, backwards=2)
    again, asked = launches.taken()
    assert not asked and len(again) == len(done)


@pytest.mark.parametrize("loss", ["contrastive", "sup_con", "triplet_all", "n_pairs"])
def test_statistics_are_asked_for_once(loss: str, launches: Launches) -> None:
    """Beside steps without them."""
    numbers = {"contrastive": (0.0, 1.0, 0.0), "sup_con": (0.1,), "triplet_all": (0.2, 0.0, 0.0)}
    counts = []
    for rows in (40, 41, 40):
        problem = PairProblem(torch.randn(rows, 32), torch.arange(rows) // 4, None, None)
        spec = PairSpec(loss, numbers.get(loss, ()), "euclidean")
        plan = plan_of(spec, True)
        assert plan is not None
        step_of(plan, spec, problem).forward()
        plain, asked = launches.taken()
        assert bool(asked) == (not counts)
        forward_with_statistics(step_of(plan, spec, problem), problem)
        told, asked = launches.taken()
        assert bool(asked) == (not counts)
        counts.append((len(plain), len(told)))
    assert len(set(counts)) == 1
    # One more where the batch is packed anew.
    assert counts[0][1] - counts[0][0] == 3 + (loss == "n_pairs")


@pytest.mark.parametrize("other", ["dtype", "alignment", "stride", "features", "grad", "refs"])
def test_what_they_are_compiled_for_is_asked_anew(other: str, launches: Launches) -> None:
    x, grad = torch.randn(40, 32), torch.ones(())
    step(x, grad=grad)
    launches.taken()
    if other == "dtype":
        x = x.bfloat16()
    elif other == "alignment":
        x = torch.randn(40 * 32 + 1)[1:].view(40, 32)
    elif other == "stride":
        x = torch.randn(32, 40).T
    elif other == "features":
        x = torch.randn(40, 33)
    elif other == "grad":
        grad = torch.ones(2)[1]
    step(x, grad=grad, refs=other == "refs")
    _, asked = launches.taken()
    assert set(asked) >= {"weights_of_panel_kernel", "unpack_kernel"}
    assert ("pack_kernel" in asked) == (other != "grad")


def test_a_profiler_hears_of_launches(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(40, 32)
    step(x)
    launches.taken()
    heard: list[Any] = []
    before = knobs.runtime.launch_enter_hook
    if hasattr(before, "add"):
        before.add(heard.append)
    else:
        monkeypatch.setattr(knobs.runtime, "launch_enter_hook", heard.append)
    try:
        step(x)
    finally:
        if hasattr(before, "remove"):
            before.remove(heard.append)
    assert len(launches.taken()[1]) == 7


def test_sums_of_anchors_cost_no_columns_of_a_product() -> None:
    """They come with the weights; those of references come from a column of ones."""
    x, y = torch.empty(256, 128, device="meta"), torch.empty(320, 128, device="meta")
    labels, ref_labels = (one.new_empty(len(one), dtype=torch.int64) for one in (x, y))
    spec = PairSpec("contrastive", (0.0, 1.0, 1.0), "euclidean")
    plan = plan_of(spec, False)
    assert plan is not None
    wanted = Step(plan, spec, PairProblem(x, labels, y, ref_labels)).kind.wanted((True, True))
    shapes = [wanted.layout.pieces[number].shape for number in wanted.products]
    assert shapes == [(256, 128), (320, 144)]


@pytest.mark.parametrize("loss", ["sup_con", "contrastive", "triplet_hard", "soft_triple"])
@pytest.mark.parametrize("rows", [1, 700, 4096, 9000, 20000])
@pytest.mark.parametrize("columns", [10240, 33000])
def test_what_every_panel_leaves_has_room(
    loss: str, rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last panel has fewer rows, and so more splits."""
    monkeypatch.setattr(configurations, "_multiprocessors", lambda _: 132)
    numbers = {
        "sup_con": (0.1,),
        "contrastive": (0.0, 1.0, 1.0),
        "triplet_hard": (0.2, 0.0, 0.0),
        "soft_triple": (20.0, 0.1, 0.01),
    }
    distance = "cosine" if loss == "soft_triple" else "euclidean"
    x, y = (torch.empty(count, 64, device="meta") for count in (rows, columns))
    labels, ref_labels = (one.new_empty(len(one), dtype=torch.int64) for one in (x, y))
    spec, problem = PairSpec(loss, numbers[loss], distance), PairProblem(x, labels, y, ref_labels)
    plan = plan_of(spec, False)
    assert plan is not None
    kind = (SoftTripleStep if loss == "soft_triple" else Step)(plan, spec, problem).kind
    wanted = kind.wanted((True, True))
    room, marks = kind.layout.pieces[kind.partials], wanted.layout.pieces[wanted.marks]
    assert sum(panel.rows for panel in kind.panels.values()) == rows
    for panel in kind.panels.values():
        for sweep, _ in panel.sweeps:
            # Grids are blocks of rows times splits.
            launch = "centres" if loss == "soft_triple" else "panel_sums"
            blocks = -(-panel.rows // configurations.panel_launch(launch).BM)
            size = 4 if loss == "soft_triple" else POLICIES[plan.sweeps[0].policy].size + 2
            assert size * sweep.grid[0] // blocks * panel.rows <= room.shape[0]
        if loss != "soft_triple":
            assert panel.weights.grid[0] <= marks.shape[0]
            blocks = -(-panel.rows // configurations.panel_launch("panel_weights").BM)
            assert panel.weights.grid[0] // blocks <= kind.parts


@pytest.mark.parametrize("rows", [1, 700, 9000, 20000])
@pytest.mark.parametrize("columns", [10240, 33000])
def test_what_panels_of_triplets_leave_has_room(
    rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marks of near pairs are one a row and a split."""
    monkeypatch.setattr(configurations, "_multiprocessors", lambda _: 132)
    x, y = (torch.empty(count, 64, device="meta") for count in (rows, columns))
    labels, ref_labels = (one.new_empty(len(one), dtype=torch.int64) for one in (x, y))
    spec = PairSpec("triplet_all", (0.2, 0.0, 0.0))
    plan = plan_of(spec, False)
    assert plan is not None
    kind = TripletStep(plan, spec, PairProblem(x, labels, y, ref_labels)).kind
    wanted = kind.wanted((True, True))
    ((_, marks),) = kind.pieces[True, True]
    for top, panel in kind.panels.items():
        pairs = kind.coefficients[top]
        blocks = -(-panel.rows // configurations.panel_launch("triplet_pairs").BM)
        assert pairs.grid[0] // blocks * panel.rows <= wanted.layout.pieces[marks].shape[0]
