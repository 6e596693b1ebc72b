"""``auto`` proves a backend before it trusts it: planted faults, and what is remembered of them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dmlap_kernels import FallbackWarning, fused_nt_xent_loss, info, nearest
from dmlap_kernels.backends import cache, chips, fallback, orders, planted, registry, selfcheck
from dmlap_kernels.backends.device.families import FAMILIES
from dmlap_kernels.match import Match
from dmlap_kernels.problem import PairProblem, PairSpec
from tests.backends import faults
from tests.reference.pairs import make_pairs
from tests.reference.triplets import triplet_distance_weighted

CPU = torch.device("cpu")
NT_XENT = PairSpec("nt_xent", (0.1,), "cosine")
LABELS = torch.arange(6) // 2
Place = Callable[..., None]


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DMLAP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("DMLAP_SELFCHECK", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """As in a new process."""

    def forget() -> None:
        monkeypatch.setattr(registry, "_chosen", {})
        monkeypatch.setattr(selfcheck, "_known", {})
        monkeypatch.setattr(fallback, "_told", set())

    forget()
    return forget


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, anew: Callable[[], None]) -> Place:
    """Puts backends before plain PyTorch in the order of the CPU."""

    def put(*some: faults.Good) -> None:
        for one in some:
            monkeypatch.setitem(registry.backends(), one.name, one)
        content = copy.deepcopy(orders.shipped())
        content["cpu"] = {"rule": [*(one.name for one in some), "torch"], "measured": {}}
        monkeypatch.setattr(orders, "shipped", lambda: content)
        monkeypatch.setitem(fallback.KERNELS, "cpu", tuple(one.name for one in some))

    return put


def taken(rows: int = 6, **options: Any) -> str:
    return registry.choose("auto", NT_XENT, torch.randn(rows, 3, **options)).name


def checks_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/check-*.json"))]


FAULTS = {
    faults.Wrong: "the gradient at the embeddings (a batch) is off by ",
    faults.WrongLoss: "the loss (a batch) is off by ",
    faults.Nan: "the gradient at the embeddings (a batch) is not finite",
    faults.Restless: "the gradient at the embeddings (a batch) differed from run to run",
    faults.Raising: "RuntimeError: no kernel image is available",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_said_once_and_remembered(
    fault: type[faults.Good], place: Place, anew: Callable[[], None], cached: Path
) -> None:
    bad = fault("bad")
    place(bad, faults.Good())
    x = torch.randn(6, 3, requires_grad=True)
    with pytest.warns(FallbackWarning) as caught:
        for _ in range(3):
            fused_nt_xent_loss(x, LABELS).backward()
    (one,) = caught
    assert "nt_xent (cosine, float32) on cpu is served by the backend 'good'" in str(one.message)
    assert f"'bad' failed: {FAULTS[fault]}" in str(one.message)
    assert one.filename == __file__
    states = {content["subject"][0]: content["state"] for content in checks_of(cached)}
    assert states == {"bad": "failed", "good": "passed"}
    anew()
    calls = bad.calls
    with pytest.warns(FallbackWarning, match=f"'bad' failed: {FAULTS[fault].split(' (')[0]}"):
        assert taken() == "good"
    assert bad.calls == calls


def test_what_passes_is_taken_without_a_word(
    place: Place, anew: Callable[[], None], cached: Path
) -> None:
    good = faults.Good()
    place(good)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert taken() == "good"
        calls = good.calls
        anew()
        assert taken() == taken(9) == "good"
    assert good.calls == calls > 0
    (content,) = checks_of(cached)
    assert content["chip"] == chips.chip_at(CPU)._asdict()  # type: ignore[union-attr]
    assert content["subject"] == ["good", "nt_xent", "cosine", False, "float32"]
    assert not list(cached.rglob(".*"))


def test_kinds_of_calls_are_checked_apart(place: Place, cached: Path) -> None:
    place(faults.Good())
    taken()
    taken(dtype=torch.float16)
    x = torch.randn(6, 3)
    registry.choose("auto", NT_XENT._replace(distance="dot", normalize=True), x)
    matched = NT_XENT._replace(match=Match(None))
    assert registry.choose("auto", matched, x) is registry.choose("auto", matched, x[:3])
    nearest(x, k=1)
    names = {path.name for path in cached.glob("*/*")}
    assert names == {
        "check-good-nt_xent-cosine-float32.json",
        "check-good-nt_xent-cosine-float16.json",
        "check-good-nt_xent-unit-dot-float32.json",
        "check-good-nt_xent-match-cosine-float32.json",
        "check-good-search-float32.json",
    }


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", '{"chip": 3}', "null", '{"state": "passed"}', "\udcff", "[" * 100_000],
)
def test_damaged_files_are_ignored(
    damage: str, place: Place, anew: Callable[[], None], cached: Path
) -> None:
    good = faults.Good()
    place(good)
    taken()
    for path in cached.glob("*/*"):
        path.write_bytes(damage.encode(errors="surrogateescape"))
    anew()
    calls = good.calls
    assert taken() == "good"
    assert good.calls > calls
    assert checks_of(cached)[0]["state"] == "passed"


@pytest.mark.parametrize(
    "change",
    [
        {"state": "perhaps"},
        {"seconds": None},
        {"subject": ["good"]},
        {"chip": {"name": "another"}},
        {"state": "begun"},
    ],
    ids=str,
)
def test_so_are_files_that_say_something_else(
    change: dict[str, Any], place: Place, anew: Callable[[], None], cached: Path
) -> None:
    good = faults.Good()
    place(good)
    taken()
    (path,) = cached.glob("*/*")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    anew()
    calls = good.calls
    assert taken() == "good"
    assert good.calls > calls


def test_another_version_checks_again(
    place: Place, anew: Callable[[], None], monkeypatch: pytest.MonkeyPatch, cached: Path
) -> None:
    good = faults.Good()
    place(good)
    taken()
    for field in ("name", "capability", "driver", "torch", "triton", "package"):
        anew()
        calls = good.calls
        other = chips.chip_at(CPU)._replace(**{field: "0.other"})  # type: ignore[union-attr]
        monkeypatch.setattr(selfcheck, "chip_at", lambda device, other=other: other)
        assert taken() == "good"
        assert good.calls > calls
    assert len(checks_of(cached)) == 7


def test_a_folder_that_cannot_be_written(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DMLAP_CACHE_DIR", str(tmp_path / "file" / "cache"))
    good = faults.Good()
    place(good, faults.Wrong("wrong"))
    assert taken() == "good"
    calls = good.calls
    registry.forget()
    assert taken() == "good"
    assert good.calls == calls  # remembered by the process
    known = selfcheck.verdict(good, good, NT_XENT, torch.float32, CPU, run=False)
    assert known is not None and known.kept == ""


def test_no_home_at_all(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DMLAP_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setattr(Path, "home", no_home)
    place(faults.Good())
    assert cache.root() is None
    assert taken() == "good"


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DMLAP_CACHE_DIR", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.root() == tmp_path / "mine"
    monkeypatch.delenv("DMLAP_CACHE_DIR")
    assert cache.root() == tmp_path / "xdg" / "dmlap_kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache.root() == tmp_path / ".cache" / "dmlap_kernels"


def test_switched_off(place: Place, monkeypatch: pytest.MonkeyPatch, cached: Path) -> None:
    place(faults.Wrong("wrong"))
    monkeypatch.setenv("DMLAP_SELFCHECK", "0")
    assert taken() == "wrong"
    assert not cached.exists()


def test_asked_for_by_name_it_runs_unchecked(place: Place, cached: Path) -> None:
    place(faults.Wrong("wrong"))
    assert registry.choose("wrong", NT_XENT, torch.randn(6, 3)).name == "wrong"
    assert not cached.exists()


def test_memory_that_runs_out_proves_nothing(place: Place, cached: Path) -> None:
    place(faults.OutOfMemory("full"))
    with pytest.warns(FallbackWarning, match="'full' failed: no memory was left for it"):
        assert taken() == "torch"
    assert not checks_of(cached)


def test_an_interrupted_check_leaves_nothing(place: Place, cached: Path) -> None:
    bad = faults.Good()
    bad.forward = lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore
    place(bad)
    with pytest.raises(KeyboardInterrupt):
        taken()
    assert not checks_of(cached)


def test_traced_calls_check_nothing_and_expect_it_to_pass(place: Place, cached: Path) -> None:
    good = faults.Good()
    place(good)
    with FakeTensorMode():
        assert taken() == "good"
    assert registry.choose("auto", NT_XENT, torch.randn(6, 3, device="meta")).name == "torch"
    assert not good.calls and not cached.exists()
    assert taken() == "good"
    assert good.calls


def test_a_compiled_call_is_checked_when_it_runs(place: Place) -> None:
    good = faults.Good()
    place(good)
    torch._dynamo.reset()
    x = torch.randn(6, 3, requires_grad=True)
    loss = torch.compile(fused_nt_xent_loss, backend="aot_eager", fullgraph=True)
    loss(x, LABELS).backward()
    assert good.calls > 1 and taken() == "good"


def test_inside_a_transform_it_is_gone_past_until_the_next_call(place: Place, cached: Path) -> None:
    good = faults.Good()
    place(good)
    torch.func.grad(fused_nt_xent_loss)(torch.randn(6, 3), LABELS)
    assert not good.calls and not cached.exists()
    assert taken() == "good"


def test_so_it_is_while_a_graph_is_captured(
    place: Place, monkeypatch: pytest.MonkeyPatch, cached: Path
) -> None:
    good = faults.Good()
    place(good)
    with monkeypatch.context() as capture:
        capture.setattr(registry, "_unproved", lambda x: "past")
        assert taken() == "torch" and not good.calls
    assert taken() == "good"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)

    class OnTheGpu(torch.Tensor):
        is_cuda = True

    x = torch.randn(2)
    assert registry._unproved(x) == "check"
    assert registry._unproved(x.as_subclass(OnTheGpu)) == "assume"  # of another class
    monkeypatch.setattr(torch, "Tensor", OnTheGpu)
    monkeypatch.setattr(registry, "Tensor", OnTheGpu)
    assert registry._unproved(x.as_subclass(OnTheGpu)) == "past"


def test_cards_that_differ_are_checked_apart(
    place: Place, monkeypatch: pytest.MonkeyPatch, cached: Path
) -> None:
    """The second of two cards fails; nothing of a GPU is asked."""
    place(faults.Good())
    table = {"cuda": {"rule": ["good", "torch"], "measured": {}}, "other": {"rule": ["torch"]}}
    first = chips.chip_at(CPU)
    assert first is not None
    cards = [first._replace(type="cuda", name=f"card {n}") for n in range(2)]
    monkeypatch.setattr(orders, "load", lambda device: table)
    monkeypatch.setattr(selfcheck, "chip_at", lambda device: cards[device.index])
    answers = {0: None, 1: "the loss is off"}
    asked: list[int] = []

    def check(*arguments: Any) -> str | None:
        asked.append(arguments[-1].index)
        return answers[arguments[-1].index]

    monkeypatch.setattr(planted, "check", check)
    for _ in range(2):
        for index, name in ((0, "good"), (1, "torch")):
            device = torch.device("cuda", index)
            found = registry._Look(NT_XENT, device, torch.float32, "check").found()
            assert isinstance(found, faults.TorchBackend) and found.name == name
    assert asked == [0, 1]
    assert {content["chip"]["name"] for content in checks_of(cached)} == {"card 0", "card 1"}


WORKER = """
import sys, torch
sys.path.append(sys.argv[1])
from dmlap_kernels.backends import orders, registry
from dmlap_kernels.problem import PairSpec
from tests.backends import faults
backend = getattr(faults, sys.argv[2])("planted")
registry.backends()["planted"] = backend
orders.shipped()["cpu"]["rule"][:] = ["planted", "torch"]
print(registry.choose("auto", PairSpec("nt_xent", (0.1,), "cosine"), torch.randn(6, 3)).name)
"""


def start(fault: str) -> subprocess.Popen:
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-W", "ignore", "-c", WORKER, root, fault]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_start_at_once(cached: Path) -> None:
    several = [start("Good") for _ in range(3)] + [start("Wrong")]
    found = [one.communicate() for one in several]
    assert [one.returncode for one in several] == [0] * 4, found
    # Whoever is last says what is remembered; all of them have a file that is whole.
    assert {out.strip() for out, _ in found} <= {"planted", "torch"}
    assert [content["state"] in ("passed", "failed") for content in checks_of(cached)] == [True]
    assert not list(cached.rglob(".*"))


def test_a_check_that_ends_its_process_is_not_tried_for_ever(cached: Path) -> None:
    for _ in range(2):
        one = start("Dying")
        one.communicate()
        assert one.returncode == 66
    one = start("Dying")
    out, errors = one.communicate()
    assert one.returncode == 0 and out.strip() == "torch", errors
    assert "twice" in selfcheck.remembered(chips.chip_at(CPU))[0][1].why  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["cpu", "torch"])
@pytest.mark.parametrize("loss", [*FAMILIES, None])
def test_what_is_right_passes(loss: str | None, name: str) -> None:
    """In every dtype, by a loss that is not 0 and whose gradient reaches most rows."""
    known = registry.backends()
    if reason := known[name].unavailable():
        pytest.skip(reason)
    spec = None if loss is None else PairSpec(loss, (), "cosine")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert planted.check(known[name], known["torch"], spec, dtype, "cpu") is None
    if spec is None:
        return
    for case in planted.cases(spec, torch.float32):
        found = planted._run(known["torch"], case, torch.float32, "cpu")
        assert found["the loss"].abs().max() > 0
        reached = found["the gradient at the embeddings"].any(1).double().mean()
        assert reached > 0.2, (case.name, reached)


def test_euclidean_distances_pass_too() -> None:
    known = registry.backends()
    for loss in ("triplet_hard", "contrastive", "lifted_structure_original", "sup_con"):
        for distance in ("euclidean", "sqeuclidean"):
            for normalize in (False, True):
                spec = PairSpec(loss, (), distance, normalize)
                for name in ("cpu", "torch"):
                    if known[name].unavailable() is None:
                        call = (known["torch"], spec, torch.float32, "cpu")
                        assert planted.check(known[name], *call) is None


def test_everything_is_planted() -> None:
    x, labels, y, ref_labels, itself = planted._drawn()
    d = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    other = ~torch.eye(len(x), dtype=torch.bool)
    alike = labels[:, None] == labels
    for near in ((d > 0) & (d < 1e-3), (d == 0) & other):
        assert (near & alike).any() and (near & ~alike).any()
    assert (torch.bincount(labels) == 1).any()
    assert set(ref_labels.tolist()) - set(labels.tolist())
    assert set(labels.tolist()) - set(ref_labels.tolist())
    mine = itself >= 0
    assert torch.equal(y[itself[mine]], x[mine]) and not mine.all()
    assert len(x) % 64 and len(y) % 64 and x.shape[1] % 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean", "cosine", "dot"])
@pytest.mark.parametrize("loss", planted.SEMIHARD)
def test_which_negatives_are_semihard_is_no_matter_of_rounding(
    loss: str, distance: str, dtype: torch.dtype
) -> None:
    """Products of a GPU round an anchor's distances to two equal rows apart."""
    for case in planted.cases(PairSpec(loss, (), distance), dtype):
        x, labels, y, ref_labels, _, itself, _ = case.problem
        x = x.double()
        y, ref_labels = (x, labels) if y is None else (y.double(), ref_labels)
        if distance == "cosine":
            x, y = (torch.nn.functional.normalize(rows) for rows in (x, y))
        d = -(x @ y.T)
        if distance.endswith("euclidean"):
            d = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        alike = labels[:, None] == ref_labels
        own = torch.arange(len(x)) if itself is None else itself
        positive = alike & (torch.arange(len(y)) != own[:, None])
        assert positive.any(1).sum() > 100
        for distances, mine, other in zip(d, positive, ~alike, strict=True):
            gaps = (distances[mine][:, None] - distances[other]).abs()
            assert not gaps.numel() or gaps.min() > 4e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("swap", [0.0, 1.0])
def test_which_negatives_are_drawn_is_no_matter_of_rounding(
    swap: float, dtype: torch.dtype
) -> None:
    """Sums of weights are far from the random shares, distances from that beyond which nothing is
    drawn."""
    loss = "triplet_distance_weighted"
    for case in planted.cases(PairSpec(loss, (0.2, 0.0, swap), "euclidean"), dtype):
        x, labels, y, ref_labels, _, itself, _ = case.problem
        *_, cutoff, beyond, seed = case.spec.params
        rows = x.double(), labels, None if y is None else y.double(), ref_labels
        pairs = make_pairs(*rows, distance="euclidean", normalize=True, self_index=itself)
        how = {"cutoff": cutoff, "nonzero_loss_cutoff": beyond}
        doubts, edges, *_ = triplet_distance_weighted(pairs, seed=int(seed), **how).kinks
        # Doubts are in units of a distance, whose error counts 4 D + 10 times.
        assert len(doubts) > 200 and doubts.min() * (4 * x.shape[1] + 10) > 1e-5
        assert edges.abs().min() > 3e-6


SWAP = (0.2, 0.0, 1.0)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize(
    "loss",
    [
        *("triplet_hard", "triplet_easy_positive", "triplet_semihard", "triplet_all"),
        "triplet_distance_weighted",
    ],
)
def test_which_end_a_swapped_negative_is_near_is_no_matter_of_rounding(
    loss: str, distance: str
) -> None:
    known = registry.backends()
    for dtype in (torch.float32, torch.bfloat16):
        spec = PairSpec(loss, SWAP, distance)
        for case in planted.cases(spec, dtype):
            assert case.spec.params[2]
            x, y = case.problem.x, case.problem.y
            for rows in (x, x if y is None else torch.cat((x, y))):
                assert len(torch.unique(rows.float(), dim=0)) == len(rows)
        if known["cpu"].unavailable() is None:
            assert planted.check(known["cpu"], known["torch"], spec, dtype, "cpu") is None


def test_triplets_with_other_flags_are_checked_apart(place: Place, cached: Path) -> None:
    """As other kernels run."""

    class WrongWithSwap(faults.Good):
        def forward(self, spec: PairSpec, *rest: Any) -> Any:
            found = super().forward(spec, *rest)
            return found._replace(loss=found.loss * (1.01 if spec.params[2] else 1.0))

    place(WrongWithSwap("sometimes"), faults.Good())
    x = torch.randn(6, 3)

    def name(*flags: float) -> str:
        return registry.choose("auto", PairSpec("triplet_hard", (0.2, *flags), "euclidean"), x).name

    assert name(0.0, 0.0) == name(1.0, 0.0) == "sometimes"
    with pytest.warns(FallbackWarning, match=r"triplet_hard-swap .*the loss \(a batch\) is off"):
        assert name(0.0, 1.0) == "good"
    with pytest.warns(FallbackWarning, match="triplet_hard-smooth-swap"):
        assert name(1.0, 1.0) == "good"
    assert name(0.0, 0.0) == "sometimes"
    subjects = {content["subject"][1] for content in checks_of(cached)}
    flags = ("", "-smooth", "-swap", "-smooth-swap")
    assert subjects == {f"triplet_hard{flag}" for flag in flags}


@pytest.mark.parametrize(("part", "case"), [(0, 0), (2, 0), (0, 1), (1, 1), (2, 1)])
def test_a_fault_in_any_part_of_any_call_is_found(part: int, case: int) -> None:
    """One row of a gradient, one entry of a loss."""
    torch_backend = registry.backends()["torch"]

    class Faulty(faults.Good):
        def backward(self, spec: PairSpec, problem: PairProblem, *rest: Any) -> Any:
            found = list(super().backward(spec, problem, *rest))
            if part < 2 and case == (problem.y is not None) and found[part] is not None:
                found[part] = found[part].clone()
                found[part][17] = 0
            if part == 2 and case == (problem.y is not None):
                found[2] = found[2].clone()
                found[2][5] += 1e-2
            return faults.Gradients(*found)

    spec = PairSpec("margin", (0.2,), "euclidean")
    why = planted.check(Faulty(), torch_backend, spec, torch.float32, "cpu")
    assert why is not None and ("references" if case else "a batch") in why
    names = ("at the embeddings", "at the references", "at the anchors' parameters")
    assert names[part] in why


def test_kernels_of_gpus_leave_what_a_traced_call_announces() -> None:
    """A traced call cannot know which of them will have proved itself when it runs."""
    known = registry.backends()
    x, y = torch.empty(20, 4), torch.empty(33, 4)
    labels, ref_labels = torch.zeros(20, dtype=torch.int64), torch.zeros(33, dtype=torch.int64)
    for loss in FAMILIES:
        for problem in (
            PairProblem(x, labels, None, None),
            PairProblem(x, labels, y, ref_labels),
        ):
            spec = PairSpec(loss, planted.PARAMS[loss])
            shapes = {known[n].saved_like(spec, problem).shape for n in ("torch", "triton", "cuda")}
            assert len(shapes) == 1


def test_explanations_say_what_was_proved(place: Place) -> None:
    place(faults.Wrong("wrong"), faults.Good())
    x = torch.randn(6, 3)
    lines = info.explain("nt_xent", x).splitlines()
    assert lines[1].split(None, 1) == ["wrong", "taken; its self-check comes with the first call"]
    spec = PairSpec("nt_xent", ())
    with pytest.warns(FallbackWarning):
        registry.choose("auto", spec, x)
    lines = info.explain("nt_xent", x).splitlines()
    assert "auto takes good" in lines[0]
    assert "self-check failed on" in lines[1] and "is off by" in lines[1]
    assert "taken; self-check passed on" in lines[2] and "check-good-nt_xent" in lines[2]
