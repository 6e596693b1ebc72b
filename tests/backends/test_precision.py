"""The precision of products, by the old and the new setting of PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmlap_kernels.backends.precision import matmul_precision, products_in

HAS_NEW = hasattr(torch.backends.cuda.matmul, "fp32_precision")
OLD = "torch.set_float32_matmul_precision({!r})"
CUDA = "torch.backends.cuda.matmul.fp32_precision = {!r}"
EVERY = "torch.backends.fp32_precision = {!r}"
CPU = "torch.backends.mkldnn.matmul.fp32_precision = {!r}"

# Statements, one after the other, and what holds then.
SETTINGS: list[tuple[tuple[str, ...], str]] = [
    ((), "highest"),
    *(((OLD.format(name),), name) for name in ("highest", "high", "medium")),
    (("torch.backends.cuda.matmul.allow_tf32 = True",), "high"),
    *(
        ((new.format(name),), expected)
        for new in (CUDA, EVERY)
        for name, expected in (("tf32", "high"), ("ieee", "highest"), ("none", "highest"))
    ),
    ((CPU.format("bf16"),), "highest"),
    ((CPU.format("bf16"), CUDA.format("tf32")), "high"),
    ((OLD.format("high"), CUDA.format("ieee")), "highest"),
    ((OLD.format("medium"), CPU.format("ieee")), "medium"),
    ((CUDA.format("tf32"), OLD.format("highest")), "highest"),
    ((CUDA.format("tf32"), OLD.format("medium")), "medium"),
    ((EVERY.format("tf32"), CUDA.format("ieee")), "highest"),
]
# All in one process, each setting in a fork of it: a setting cannot always be taken back.
ASK = """
import os, sys, torch
from dmlap_kernels.backends.precision import matmul_precision, products_in
for line in sys.stdin.read().splitlines():
    sys.stdout.flush()
    if os.fork() == 0:
        exec(line)
        print(matmul_precision(), flush=True)
        os._exit(0)
    os.wait()
"""


def uses_new(statements: tuple[str, ...]) -> bool:
    return any("fp32_precision" in one for one in statements)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process a setting")
def test_either_setting_is_read(tmp_path: Path) -> None:
    table = [row for row in SETTINGS if HAS_NEW or not uses_new(row[0])]
    lines = "\n".join("; ".join(statements) or "pass" for statements, _ in table)
    done = subprocess.run(
        [sys.executable, "-c", ASK], input=lines, text=True, capture_output=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = dict(zip(lines.splitlines(), done.stdout.split(), strict=True))
    assert found == dict(zip(lines.splitlines(), [want for _, want in table], strict=True))


def test_a_torch_without_the_new_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        allow_tf32 = False

    monkeypatch.setattr(torch.backends.cuda, "matmul", Old())
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert matmul_precision() == "medium"


def test_products_in_another_precision() -> None:
    before = matmul_precision()
    for name in ("highest", "high"):
        with products_in(name):
            assert matmul_precision() == name
        assert matmul_precision() == before
    torch.set_float32_matmul_precision("high")
    try:
        with products_in("highest"):
            assert matmul_precision() == "highest"
        assert matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
