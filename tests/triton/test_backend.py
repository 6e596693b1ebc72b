"""When the `triton` backend is taken, and what it says where it is not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types

import pytest
import torch

from dmlap_kernels import fused_triplet_loss
from dmlap_kernels.backends import registry
from dmlap_kernels.backends.triton import triton_backend as module
from dmlap_kernels.problem import PairSpec

BACKEND = registry.backends()["triton"]
TRIPLET = PairSpec("triplet_hard", (0.2, 0.0, 0.0))


@pytest.mark.parametrize(
    ("cuda", "visible", "capability", "reason"),
    [
        (None, False, None, "this PyTorch was built without CUDA"),
        ("13.0", False, None, "no CUDA device is visible"),
        ("13.0", True, (7, 5), "it needs a device of capability 8.0 or higher"),
        ("13.0", True, (9, 0), None),
    ],
)
def test_reasons(monkeypatch, cuda, visible, capability, reason):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(module, "_version", lambda: (3, 9, 0))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert BACKEND.unavailable() == reason


def test_without_triton(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert BACKEND.unavailable() == "Triton is not installed (pip install triton)"


@pytest.mark.parametrize(
    ("version", "old"),
    [("2.3.1", True), ("3.3.1", True), ("3.4.0", False), ("3.10.0+git1", False), ("4.0", False)],
)
@pytest.mark.parametrize("interpreted", [False, True])
def test_versions(monkeypatch, version, old, interpreted):
    """Those whose compiler does not take the kernels are refused before anything is launched."""
    fake = types.SimpleNamespace(__version__=version)
    monkeypatch.setitem(sys.modules, "triton", fake)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(module, "_interpreted", lambda: interpreted)
    reason = f"it needs Triton 3.4 or newer, got {version}"
    assert (BACKEND.unavailable() == reason) == old


def test_a_triton_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert "Triton cannot be imported: " in BACKEND.unavailable()


def test_asking_for_it_where_it_does_not_run(monkeypatch):
    monkeypatch.setattr(module.TritonBackend, "unavailable", lambda self: "the reason")
    with pytest.raises(RuntimeError, match="backend 'triton' is not available: the reason"):
        fused_triplet_loss(torch.randn(4, 2), torch.tensor([0, 0, 1, 1]), backend="triton")


def test_refusals():
    assert BACKEND.refuses(TRIPLET, "cuda", torch.bfloat16) is None
    assert "float64" in BACKEND.refuses(TRIPLET, "cuda", torch.float64)
    assert "cpu" in BACKEND.refuses(TRIPLET, "cpu", torch.float32)


def test_importing_the_package_leaves_triton_alone(tmp_path):
    code = "import sys, dmlap_kernels.backends.registry as r; r.backends(); "
    code += "sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0
