"""The GPU benchmark without a GPU: its plan, its file, its plot, and all candidates on the CPU."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dmlap_kernels
from benchmarks import candidates, devices, gpu, order
from benchmarks.batch import Batch
from dmlap_kernels.backends import orders, precision, registry
from dmlap_kernels.backends.cuda import WITHOUT
from dmlap_kernels.backends.device.families import FAMILIES


class Pretended(devices.Cpu):
    """Stands in for a GPU: runs each step once on the CPU and calls it a millisecond."""

    ours = devices.Gpu.ours

    def about(self) -> dict[str, Any]:
        return {"device": "no chip", "cuda": "0", "triton": "0"}

    def seconds(self, prepare: Callable[[], devices.Step]) -> devices.Seconds:
        prepare()()
        return devices.Seconds(1e-3, 5e-4)

    def peak(self, step: devices.Step) -> dict[str, int]:
        return {"peak_bytes": 7}


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs the benchmark on a device; its results."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the steps are many and small
    monkeypatch.setattr(devices, "CALLS", (1, 1))
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)

    def run(device: type[devices.Cpu], *arguments: str) -> dict[str, Any]:
        monkeypatch.setitem(devices.DEVICES, "cuda", device)
        gpu.main(["--out", str(tmp_path), "--without-kernels", *arguments])
        return json.loads((tmp_path / "gpu.json").read_text())

    yield run
    torch.set_num_threads(threads)


def test_shapes_and_candidates() -> None:
    rows, features = zip(*gpu.SHAPES, strict=True)
    assert (min(rows), max(rows)) == (128, 131072)
    assert (min(features), max(features)) == (64, 1024)
    assert gpu.SHAPES[:3] == [(128, 128), (1024, 512), (4096, 128)]
    work = [rows * rows * features for rows, features in gpu.SHAPES]
    assert work[3:] == sorted(work[3:]) and min(work[3:]) > max(work[:3])
    assert (*devices.Gpu.ours, *gpu.PLAIN) == (
        "triton", "cuda", "eager", "compile", "library", "torch"
    )  # fmt: skip
    assert set(gpu.OPS) == {*candidates.OPS, *candidates.PAIRED}


def test_every_op(measured: Any, tmp_path: Path) -> None:
    """Each has a time for each way to go, or a reason why it has none."""
    content = measured(Pretended, "--shapes", "24x16", "16x32", "--compile-all")
    assert (content["type"], content["device"]) == ("cpu", "no chip")
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for one in content["results"]:
        if one["op"] != "product":
            found.setdefault((one["op"], one["candidate"], one["rows"]), []).append(one)
    assert len(found) == len(gpu.OPS) * 6 * 2
    for (op, candidate, _), entries in found.items():
        ways = ["forward"] if op in candidates.SEARCHES else ["both", "forward", "backward"]
        if "absent" in entries[0]:
            assert len(entries) == 1
            assert candidate in ("cuda", "triton", "library", "compile"), entries
            continue
        assert [one["way"] for one in entries] == ways
        for one in entries:
            assert (one["seconds"], one["host_seconds"], one["device_seconds"]) == (
                1e-3,
                1e-3,
                5e-4,
            )
            assert one["peak_bytes"] == 7
            assert 0 < one["roofline"]
    products = [one for one in content["results"] if one["op"] == "product"]
    assert {(one["rows"], one["precision"]) for one in products} == {
        (rows, precision) for rows in (24, 16) for precision in ("highest", "high")
    }
    # Forward of a loss without proxies takes one product, both ways three.
    hard = found["triplet-hard", "torch", 24]
    assert hard[1]["products"] == products[0]["flops"]
    assert hard[0]["roofline"] == pytest.approx(3 * hard[1]["roofline"])
    assert (tmp_path / "gpu.png").stat().st_size > 10000


def test_without_time_left(
    measured: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = measured(Pretended, "--seconds", "0", "--shapes", "24x16")
    reasons = {one["candidate"]: set() for one in content["results"]}
    for one in content["results"]:
        reasons[one["candidate"]].add(one["absent"])
    assert len(content["results"]) == len(gpu.OPS) * 6
    # What is not here has not run out of time.
    assert gpu.NO_TIME not in reasons["triton"] | reasons["cuda"]
    assert reasons["torch"] == reasons["eager"] == {gpu.NO_TIME}
    assert "were not measured: no time was left" in capsys.readouterr().out


def test_a_matrix_that_has_no_room(measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pretended, "free", lambda self: 8000)
    content = measured(Pretended, "--shapes", "24x16", "--ops", "sup-con", "--compile-all")
    reasons = {one["candidate"]: one.get("absent") for one in content["results"]}
    for candidate in ("eager", "compile", "library"):
        assert reasons[candidate] == "8 matrices of 24 x 24 have no room"
    assert reasons["torch"] is None


def test_one_that_fails_leaves_the_others(measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("no such kernel image")

    monkeypatch.setattr(registry.backends()["torch"], "backward", fail)
    content = measured(Pretended, "--shapes", "24x16", "--ops", "sup-con", "--compile-all")
    of_torch = [one for one in content["results"] if one["candidate"] == "torch"]
    assert [one.get("way") for one in of_torch] == [None]
    assert of_torch[0]["absent"] == "failed: no such kernel image"
    assert sum(one["candidate"] == "eager" for one in content["results"]) == 3


class Simulated(devices.Cpu):
    """A GPU with a clock that only steps move on: each has seconds of the host, of the device, and
    those that its first call compiles for."""

    type = devices.Gpu.type
    ours = devices.Gpu.ours
    now = 0.0
    ahead = False

    def compile_ahead(self, work: Any, tasks: Any) -> int:
        """Eight at a time, seven seconds an op, and ten until all of them have begun."""
        Simulated.now += 10 + 7 * len(tasks) / 8
        Simulated.ahead = True
        return len(tasks)

    def clock(self) -> float:
        return Simulated.now

    def free(self) -> int:
        return 80 * 2**30

    def warm(self, step: Any) -> None:
        wait = min(0.3, step.compiling) if self.ahead and step.reads_cache else step.compiling
        Simulated.now += wait + max(step.costs)
        step.compiling = 0.0

    def seconds(self, prepare: Callable[[], Any]) -> devices.Seconds:
        Simulated.now += 2 * max(prepare().costs)  # once for each of the two
        return devices.Seconds(*prepare().costs)


# Operations of a step at 128 rows and how they grow with the rows; microseconds of the host for
# each, about those of a slow host, an H200's; products that are as long; seconds that each op
# compiles for: at every shape, and once.
SIMULATED = {
    "triton": (12, 0.0, 60.0, 3, 0.6, 0.0),
    "cuda": (60, 0.0, 28.0, 4, 0.0, 0.0),
    "eager": (76, 0.0, 20.0, 30, 0.0, 0.0),
    "compile": (12, 0.0, 30.0, 12, 5.0, 25.0),
    "torch": (90, 1.1, 25.0, 60, 0.0, 0.0),
}


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """No op runs: `losing` and `searching` hand out steps of known cost."""
    first: set[tuple[str, str]] = set()

    def ways(op: str, candidate: str, batch: Batch) -> dict[str, Any]:
        if candidate == "library":
            raise gpu.Absent("no library is here")
        operations, growth, each, products, compiling, once = SIMULATED[candidate]
        rows, features = batch.x.shape
        count = operations * max(1.0, (rows / 1024)) ** (2 * growth)
        flops = 2.0 * rows * len(batch.leaves[-1]) * features
        costs = count * each * 1e-6, 2e-6 * count + products * flops / 50e12
        wait = compiling + (once if (op, candidate) not in first else 0)
        first.add((op, candidate))
        step = types.SimpleNamespace(costs=costs, compiling=wait, reads_cache=candidate == "triton")
        names = ("forward",) if op in candidates.SEARCHES else ("both", "forward", "backward")
        return {name: lambda: step for name in names}

    def batch_of(op: str, rows: int, features: int, device_type: str) -> Batch:
        Simulated.now += 4e-9 * rows * features  # drawn on the host, and copied
        x = torch.empty(rows, features, device="meta")
        row = gpu.ROWS.get(op)
        proxies = torch.empty(rows // 4 * row.proxies, features, device="meta") if row else None
        has = row is not None and row.proxies
        return Batch(x, x, rows, proxies if has else None, x if has else None)

    def product(device: Any, rows: int, features: int, precision: str) -> dict[str, Any]:
        Simulated.now += 0.1
        about = {"op": "product", "candidate": "G", "way": "both", "precision": precision}
        return about | {"seconds": 1e-3, "flops": 1.0}

    def unproved(device_type: str, op: str, candidate: str) -> str | None:
        if (op, candidate, "checked") not in first:
            first.add((op, candidate, "checked"))  # type: ignore[arg-type]
            Simulated.now += 4.0 if candidate == "triton" and not Simulated.ahead else 0.1
        return None

    monkeypatch.setattr(Simulated, "now", 0.0)
    monkeypatch.setattr(Simulated, "ahead", False)
    for name in ("triton", "cuda"):
        monkeypatch.setattr(registry.backends()[name], "unavailable", lambda: None)
    for place in (ways, batch_of, product, unproved):
        monkeypatch.setattr(gpu, place.__name__, place, raising=False)
    monkeypatch.setattr(gpu, "losing", ways)
    monkeypatch.setattr(gpu, "searching", ways)


def test_eight_minutes_end_with_an_order(simulated: None) -> None:
    """The build takes all that it may, 165 s with `dmlap info`; 230 s are left to measure in."""
    seconds = 455 - 165 - 60
    device = Simulated()
    device.compile_ahead(gpu.compile_op, gpu.OPS)
    found = list(gpu.measurements(device, gpu.OPS, gpu.SHAPES, seconds))
    assert Simulated.now < seconds + 60
    content = {"type": "cuda", "device": "a chip", "results": found}
    table = order.proposed(content, orders.shipped())["cuda"]["measured"]["a chip"]
    assert set(table) == {*FAMILIES, orders.SEARCH}
    finished = {
        (one["op"], one["rows"]) for one in found if "seconds" in one and one["candidate"] == "cuda"
    }
    served = [op for op in gpu.OPS if gpu.loss_of(op) not in WITHOUT]
    assert len(served) == len(gpu.OPS) - 2
    assert all((op, rows) in finished for op in served for rows in (128, 1024, 4096))
    # Nobody waits for what is far behind, and what is not here has not run out of time.
    stopped = [one for one in found if one.get("stopped")]
    assert stopped and {one["candidate"] for one in stopped} == {"torch"}
    absent = {one["absent"] for one in found if one["candidate"] == "library" and "absent" in one}
    assert absent <= {"no library is here", gpu.NO_TIME}
    # Small steps wait for the host, and who asks for less is first; then products decide.
    assert table["nt_xent"][0]["order"] == ["triton", "cuda", "torch"]
    assert table["nt_xent"][-1]["order"][-1] == "torch"


def test_what_fails_its_self_check_is_not_measured(
    simulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "unproved", lambda *call: "failed its self-check: off")
    found = list(gpu.measurements(Simulated(), ["nt-xent"], [(128, 128)], 99))
    for one in found[2:]:
        if one["candidate"] in ("triton", "cuda"):
            assert one["absent"] == "failed its self-check: off"


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_nothing_is_measured_without_kernels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(devices.DEVICES, "cuda", Pretended)
    for backend in registry.backends().values():
        monkeypatch.setattr(backend, "unavailable", lambda: "the reason")
    with pytest.raises(SystemExit) as refusal:
        gpu.main(["--out", str(tmp_path / "out"), "--device", name])
    ours = devices.DEVICES[name].ours
    assert str(refusal.value).startswith(f"error: nothing is measured: {ours[0]} ")
    assert "the reason" in str(refusal.value) and "--without-kernels" in str(refusal.value)
    assert not (tmp_path / "out").exists()
    assert f"from {dmlap_kernels.__file__}" in capsys.readouterr().out


def test_cpu_results_become_an_order(
    measured: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason := registry.backends()["cpu"].unavailable():
        pytest.skip(reason)
    measured(devices.Cpu, "--device", "cpu", "--shapes", "24x16", "--ops", "sup-con", "nearest")
    capsys.readouterr()
    order.main([str(tmp_path / "gpu.json")])
    found = json.loads(capsys.readouterr().out)["cpu"]["measured"]["cpu"]
    assert set(found) == {"sup_con", "search"}
    assert set(found["sup_con"][0]["order"]) == {"cpu", "torch"}


@pytest.mark.parametrize("place", ["cuda.matmul", "mkldnn.matmul", ""])
def test_the_new_setting_of_the_precision_is_read_and_put_back(place: str) -> None:
    backend: Any = torch.backends
    for name in filter(None, place.split(".")):
        backend = getattr(backend, name, None)
    if not hasattr(backend, "fp32_precision"):
        pytest.skip("this PyTorch has the old setting alone")
    value = "bf16" if place == "mkldnn.matmul" else "tf32"
    try:
        backend.fp32_precision = value
        with gpu.matmul_precision("medium"):
            assert precision.matmul_precision() == "medium"
            assert torch.get_float32_matmul_precision() == "medium"
        assert backend.fp32_precision == value
        assert precision.matmul_precision() == ("highest" if value == "bf16" else "high")
    finally:
        torch.set_float32_matmul_precision("highest")
        for every in (torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
            every.fp32_precision = "none"


def test_inf_cl_has_our_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what Inf-CL documents: -scale q.k of the label, plus the log-sum over all k."""

    def cal_flash_loss(q: Tensor, k: Tensor, labels: Tensor, scale: float, head_dim: int) -> Tensor:
        assert q.shape[1] % head_dim == 0 and head_dim in (16, 32, 64, 128, 256)
        return F.cross_entropy(scale * q @ k.T, labels, reduction="none")

    package = types.ModuleType("inf_cl")
    package.cal_flash_loss = cal_flash_loss  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "inf_cl", package)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    row = candidates.PAIRED["info-nce"]

    def gradients(loss: Callable[..., Tensor], batch: Batch, **settings: Any) -> list[Tensor]:
        value = loss(*batch.tensors, **settings)
        return [value, *torch.autograd.grad(value, batch.leaves)]

    for features in (16, 48, 512):
        batch = row.batch(20, features)
        assert batch.proxies is not None and len(batch.proxies) == 20
        assert sorted(batch.labels.tolist()) == list(range(20))
        settings = row.settings(batch.x)
        theirs = gradients(row.peer(batch, **settings), batch)
        for loss in (row.eager, dmlap_kernels.fused_nt_xent_loss):
            for mine, peer in zip(gradients(loss, batch, **settings), theirs, strict=True):
                torch.testing.assert_close(mine, peer, rtol=1e-4, atol=1e-6)


def test_the_pairs_of_siglip_are_those_of_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what siglip-kernel documents: rows of unit length, row i of both, ln(scale), bias."""

    def fused_siglip_loss(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        logits = log_scale.exp() * x @ y.T + bias
        signs = 2 * torch.eye(len(x)) - 1
        return -F.logsigmoid(signs * logits).sum() / len(x)

    package = types.ModuleType("siglip_kernel")
    package.fused_siglip_loss = fused_siglip_loss  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "siglip_kernel", package)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    row = candidates.PAIRED["siglip-pairs"]
    batch = row.batch(20, 16)
    settings = row.settings(batch.x)
    found = []
    for loss in (row.peer(batch, **settings), row.eager, dmlap_kernels.fused_siglip_loss):
        options = {} if not found else settings
        value = loss(*batch.tensors, **options)
        found.append([value, *torch.autograd.grad(value, batch.leaves)])
    for mine in found[1:]:
        for one, peer in zip(mine, found[0], strict=True):
            torch.testing.assert_close(one, peer, rtol=1e-4, atol=1e-6)
