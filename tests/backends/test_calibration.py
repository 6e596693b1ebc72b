"""``dmlap calibrate``: what it measures, writes and leaves to `auto`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dmlap_kernels import calibration, cli, info, sweep
from dmlap_kernels.backends import cache, chips, orders, planted, registry, selfcheck
from dmlap_kernels.backends.device.families import FAMILIES
from dmlap_kernels.calibration import NO_TIME, Time, proposed
from dmlap_kernels.problem import PairSpec
from tests.backends import faults

CPU = torch.device("cpu")
OPS = ("nt_xent", "margin", "proxy_anchor", "search")


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own, few rows, and steps that take as long as a fake clock is told."""
    monkeypatch.setenv("DMLAP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "ROWS", (16, 64, 256))
    monkeypatch.setattr(registry, "_chosen", {})
    monkeypatch.setattr(selfcheck, "_known", {})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Clock:
    """Stands still but for steps, which cost what they are said to cost."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **costs: Any) -> None:
        self.now, self.costs = 0.0, costs
        self.calls: list[tuple[str, int, str]] = []
        monkeypatch.setattr(calibration, "step_of", self.step_of)

    def __call__(self) -> float:
        return self.now

    def step_of(self, op: str, rows: int, name: str, device: torch.device) -> Any:
        def step() -> None:
            self.calls.append((op, rows, name))
            self.now += self.costs[name](rows)

        return step


def entry_names(op: str, rows: int) -> tuple[str, ...]:
    table = orders.load(CPU)
    found = orders.entries(table, op, "cpu", "cpu")
    return next(one.names for one in found if rows <= one.rows)


def needs_cpu() -> None:
    if reason := registry.backends()["cpu"].unavailable():
        pytest.skip(reason)


def test_what_is_fastest_at_a_size_is_taken_there(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_cpu()
    clock = Clock(monkeypatch, cpu=lambda n: 1e-3 * n, torch=lambda n: 0.02 + 1e-4 * n)
    found = calibration.calibrate(CPU, 60, ops=["nt_xent"], clock=clock)
    assert found.path is not None and found.path.exists()
    assert entry_names("nt_xent", 16) == ("cpu", "torch")
    assert entry_names("nt_xent", 64) == ("torch", "cpu")
    assert entry_names("nt_xent", 10**6) == ("torch", "cpu")
    assert entry_names("sup_con", 64) == ("cpu", "torch")
    spec = PairSpec("nt_xent", (0.1,), "cosine")
    for rows, name in ((16, "cpu"), (64, "torch")):
        x = torch.randn(rows, 3)
        assert registry.choose("auto", spec, x).name == name
        why = info.explain("nt_xent", x)
        assert "measured on cpu by dmlap calibrate on " in why and str(found.path) in why
    assert clock.now <= 60


@pytest.mark.parametrize("op", [*FAMILIES, orders.SEARCH])
def test_plain_pytorch_competes_in_small_batches(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that take long to launch serve large batches, and no others, whatever the op."""
    for name in ("triton", "cuda"):
        monkeypatch.setitem(registry.backends(), name, faults.Good(name))
    monkeypatch.setenv("DMLAP_SELFCHECK", "0")
    costs = {
        "cpu": lambda n: 1.0,
        "cuda": lambda n: 3e-3,
        "torch": lambda n: 1e-4 * n,
        "triton": lambda n: 2e-3,
    }
    clock = Clock(monkeypatch, **costs)
    found = calibration.calibrate(CPU, 600, ops=[op], clock=clock)
    assert len(found.orders[op]) == 2
    spec = calibration.spec_of(op)
    for rows, name in ((5, "torch"), (4096, "triton")):
        assert registry.choose("auto", spec, torch.empty(rows, 3)).name == name
        assert registry.explain(spec, torch.empty(rows, 3)).taken == name


def test_it_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_cpu()
    clock = Clock(monkeypatch, cpu=lambda n: 1e-5 * n**2, torch=lambda n: 1e-4 * n**2)
    found = calibration.calibrate(CPU, 10, clock=clock)
    assert clock.now < 12
    unfinished = [one for one in found.times if one.why == NO_TIME]
    assert unfinished
    for one in unfinished:
        for entry in found.orders.get(one.op, []):
            assert entry["rows"] < one.rows


def test_one_that_is_far_behind_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_cpu()
    clock = Clock(monkeypatch, cpu=lambda n: 1e-3, torch=lambda n: 0.5)
    found = calibration.calibrate(CPU, 60, ops=["nt_xent"], clock=clock)
    assert clock.calls.count(("nt_xent", 16, "torch")) == 2  # one that may compile, and one
    assert ("nt_xent", 64, "torch") not in clock.calls
    assert found.orders == {"nt_xent": [{"order": ["cpu", "torch"]}]}
    assert "> " not in found.table() and ">500" in found.table()


def test_planted_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real times: what is wrong is not measured, what is slow comes last."""
    slow, wrong = faults.Slow("slow"), faults.Wrong("wrong")
    for one in (slow, wrong):
        monkeypatch.setitem(registry.backends(), one.name, one)
    monkeypatch.setattr(calibration, "ROWS", (16, 32))
    found = calibration.calibrate(CPU, 8, ops=["nt_xent"])
    assert {one.backend for one in found.times} >= {"torch", "slow"}
    assert "wrong" not in {one.backend for one in found.times}
    assert "is off by" in found.failed["wrong, nt_xent"]
    assert all(entry["order"][-1] == "slow" for entry in found.orders["nt_xent"])
    registry._chosen.clear()
    x = torch.randn(16, 3)
    assert registry.choose("auto", PairSpec("nt_xent", (0.1,), "cosine"), x).name != "slow"


@pytest.mark.parametrize("op", [*planted.PARAMS, orders.SEARCH])
def test_every_op_has_a_step(op: str) -> None:
    for name in ("torch", "cpu"):
        if registry.backends()[name].unavailable() is None:
            found = calibration.step_of(op, 24, name, CPU)()
            assert all(part.isfinite().all() for part in found)


def test_a_failure_is_the_failing_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMLAP_SELFCHECK", "0")
    monkeypatch.setitem(registry.backends(), "bad", faults.Raising("bad"))
    monkeypatch.setitem(registry.backends(), "full", faults.OutOfMemory("full"))
    found = calibration.calibrate(CPU, 6, ops=["nt_xent"])
    why = {one.backend: one.why for one in found.times if one.rows == 16}
    assert why["bad"] == "failed: no kernel image is available"
    assert why["full"] == "out of memory"
    assert why["torch"] == ""


def test_proxies_count_by_their_pairs() -> None:
    times = [
        Time("proxy_nca", rows, name, seconds)
        for rows, both in ((16, (1.0, 2.0)), (64, (2.0, 1.0)), (256, (2.0, 1.0)))
        for name, seconds in zip(("cpu", "torch"), both, strict=True)
    ]
    (first, last) = proposed(times, ["cpu", "torch"])["proxy_nca"]
    assert first == {"rows": 16, "order": ["cpu", "torch"]}  # between 8 and 32
    assert last == {"order": ["torch", "cpu"]}


@pytest.mark.parametrize(
    "damage",
    [
        {"orders": 3},
        {"orders": {"nt_xent": [{"rows": "many", "order": ["torch"]}]}},
        {"orders": {"nt_xent": [{"order": [7]}]}},
        {"orders": {"nt_xent": [{"order": None}]}},
        {"orders": {"nt_xent": 5}},
        {"when": None, "chip": {}},
    ],
    ids=str,
)
def test_a_damaged_file_is_ignored(damage: dict[str, Any]) -> None:
    chip = chips.chip_at(CPU)
    assert chip is not None
    content = {"when": "2026-01-01", "orders": {"nt_xent": [{"order": ["torch"]}]}}
    cache.write(chip, orders.CALIBRATED, content)
    assert entry_names("nt_xent", 5) == ("torch", "cpu")
    cache.write(chip, orders.CALIBRATED, content | damage)
    assert entry_names("nt_xent", 5) == ("cpu", "torch")
    info.collect()


def test_an_order_of_what_is_no_longer_there(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = chips.chip_at(CPU)
    assert chip is not None
    content = {"when": "2026-01-01", "orders": {"nt_xent": [{"order": ["gone", "torch"]}]}}
    cache.write(chip, orders.CALIBRATED, content)
    spec = PairSpec("nt_xent", (0.1,), "cosine")
    assert registry.choose("auto", spec, torch.randn(4, 3)).name == "torch"
    assert registry.explain(spec, torch.randn(4, 3)).order == ("torch", "cpu")


def test_graphs_on_disk_are_of_an_order() -> None:
    """What a compiled call keeps for backward depends on the backend that it was compiled for."""
    chip = chips.chip_at(CPU)
    assert chip is not None
    found = {sweep._installation()}
    for name in ("cpu", "torch"):
        content = {"when": "2026-01-01", "orders": {"nt_xent": [{"order": [name]}]}}
        cache.write(chip, orders.CALIBRATED, content)
        found.add(sweep._installation())
    assert len(found) == 3


def test_not_inside_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(RuntimeError, match="cannot be compiled"):
        calibration.calibrate(CPU)
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="while a CUDA graph is captured"):
        calibration.calibrate(torch.device("cuda"))


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    needs_cpu()
    clock = Clock(monkeypatch, cpu=lambda n: 1e-3, torch=lambda n: 2e-3)
    real = calibration.calibrate
    monkeypatch.setattr(
        calibration, "calibrate", lambda *a, **options: real(*a, **options, clock=clock)
    )
    assert cli.main(["calibrate", "--device", "cpu", "--seconds", "60"]) == 0
    out = capsys.readouterr().out
    assert "nt_xent" in out and "1*" in out and "written to " in out
    (path,) = (tmp_path / "cache").glob("*/orders.json")
    assert json.loads(path.read_text())["orders"]["search"] == [{"order": ["cpu", "torch"]}]
    page = info.render(info.collect())
    assert f"orders of {len(FAMILIES) + 1} ops, calibrated on " in page
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DMLAP_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert cli.main(["calibrate", "--device", "cpu"]) == 1
    assert "the cache directory cannot be written" in capsys.readouterr().err
    for device, words in (("cuda:7", "CUDA devices are visible"), ("xpu", "cpu or cuda")):
        assert cli.main(["calibrate", "--device", device]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["calibrate", "--seconds", "-1"])


def test_info_tells_what_was_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.backends(), "wrong", faults.Wrong("wrong"))
    calibration.calibrate(CPU, 1, ops=["nt_xent"])
    collected = json.loads(json.dumps(info.collect()))
    (check,) = collected["cache"]["devices"]["cpu"]["checks"]
    assert (check["backend"], check["call"]) == ("wrong", "nt_xent (cosine, float32)")
    assert not check["passed"] and "is off by" in check["why"]
    page = info.render(collected)
    assert "    wrong, nt_xent (cosine, float32), " in page
    monkeypatch.setenv("DMLAP_SELFCHECK", "0")
    assert "self-checks are switched off" in info.render(info.collect())
