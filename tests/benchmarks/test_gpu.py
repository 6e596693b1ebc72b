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
from dmlap_kernels.backends import precision, registry


class Pretended(devices.Cpu):
    """Stands in for a GPU: runs each step once on the CPU and calls it a millisecond."""

    ours = devices.Gpu.ours

    def about(self) -> dict[str, Any]:
        return {"device": "no chip", "cuda": "0", "triton": "0"}

    def seconds(self, step: devices.Step) -> float:
        step()
        return 1e-3

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
    stages = list(gpu.stages(Pretended(), gpu.SHAPES))
    for shape in gpu.SHAPES:
        names = [name for at, some in stages if at == shape for name in some]
        assert sorted(names) == ["compile", "cuda", "eager", "library", "torch", "triton"]
    assert {shape for shape, _ in stages[:6]} == set(gpu.SHAPES[:2])
    assert set(gpu.OPS) == {*candidates.OPS, *candidates.PAIRED}


def test_every_op(measured: Any, tmp_path: Path) -> None:
    """Each has a time for each way to go, or a reason why it has none."""
    content = measured(Pretended, "--shapes", "24x16", "16x32")
    assert (content["type"], content["device"]) == ("cpu", "no chip")
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for one in content["results"]:
        if one["op"] != "product":
            found.setdefault((one["op"], one["candidate"], one["rows"]), []).append(one)
    assert len(found) == len(gpu.OPS) * 6 * 2
    for (op, candidate, _), entries in found.items():
        ways = ["forward"] if op in candidates.SEARCHES else ["forward", "backward", "both"]
        if "absent" in entries[0]:
            assert len(entries) == 1
            assert candidate in ("cuda", "triton", "library"), entries
            continue
        assert [one["way"] for one in entries] == ways
        for one in entries:
            assert one["seconds"] == 1e-3
            assert one["peak_bytes"] == 7
            assert 0 < one["roofline"]
    products = [one for one in content["results"] if one["op"] == "product"]
    assert {(one["rows"], one["precision"]) for one in products} == {
        (rows, precision) for rows in (24, 16) for precision in ("highest", "high")
    }
    # Forward of a loss without proxies takes one product, both ways three.
    hard = found["triplet-hard", "torch", 24]
    assert hard[0]["products"] == products[0]["flops"]
    assert hard[2]["roofline"] == pytest.approx(3 * hard[0]["roofline"])
    assert (tmp_path / "gpu.png").stat().st_size > 10000


def test_without_time_left(
    measured: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = measured(Pretended, "--seconds", "0", "--shapes", "24x16")
    assert {one["absent"] for one in content["results"]} == {gpu.NO_TIME}
    assert len(content["results"]) == len(gpu.OPS) * 6
    assert "were not measured: no time was left" in capsys.readouterr().out


def test_a_matrix_that_has_no_room(measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pretended, "free", lambda self: 8000)
    content = measured(Pretended, "--shapes", "24x16", "--ops", "sup-con")
    reasons = {one["candidate"]: one.get("absent") for one in content["results"]}
    for candidate in ("eager", "compile", "library"):
        assert reasons[candidate] == "8 matrices of 24 x 24 have no room"
    assert reasons["torch"] is None


def test_one_that_fails_leaves_the_others(measured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("no such kernel image")

    monkeypatch.setattr(registry.backends()["torch"], "backward", fail)
    content = measured(Pretended, "--shapes", "24x16", "--ops", "sup-con")
    of_torch = [one for one in content["results"] if one["candidate"] == "torch"]
    assert [one.get("way") for one in of_torch] == ["forward", None]
    assert of_torch[1]["absent"] == "failed: no such kernel image"
    assert sum(one["candidate"] == "eager" for one in content["results"]) == 3


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
