"""Searches and metrics take O(N k) memory: no matrix of floats over all pairs fits the bound."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Fewer for the slower backend.
ROWS = {"cpu": 8_192, "torch": 4_608}
BOUND = 80 * 2**20

# The peak of a process never falls: the first call to pass the bound is the one at fault.
SCRIPT = """
import torch
from dmlap_kernels import hard_classes, nearest
from dmlap_kernels.evaluation import retrieval_metrics

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

x = torch.randn({rows}, 16, generator=torch.Generator().manual_seed(0))
labels = torch.arange({rows}) // 4
calls = {{
    "nearest": lambda x, labels: nearest(x, k=100, backend="{backend}"),
    "metrics": lambda x, labels: retrieval_metrics(
        x, labels, x.flip(0), labels.flip(0), ks=(100,), backend="{backend}"
    ),
    # A class for every row.
    "classes": lambda x, labels: hard_classes(x, torch.arange(len(x)), 9, backend="{backend}"),
}}

def step(name, rows):
    calls[name](x[:rows], labels[:rows])

for name in calls:
    step(name, 512)
before = peak()
for name in calls:
    step(name, {rows})
    growth = peak() - before
    assert growth < {bound}, f"{{name}}: {{growth / 2**20:.0f}} MiB"
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_peak_memory(backend: str, tmp_path: Path) -> None:
    rows = ROWS[backend]
    assert BOUND < 4 * rows * rows
    script = SCRIPT.format(rows=rows, backend=backend, bound=BOUND)
    # Not from the checkout, where the sources would go before an installed package.
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
