"""Memory stays O(B * D): not a single B x B matrix fits into the bound; plain PyTorch holds six."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.losses.losses_table import LOSSES

# A matrix of distances takes 576 MiB at 12,288 rows, 256 MiB at 8,192 (for the slower backend).
ROWS = {"cpu": 12_288, "torch": 8_192}
FEATURES = {"cpu": 32, "torch": 16}
BOUND = 256 * 2**20

# The peak of a process never falls: the first loss to pass the bound is the one at fault.
SCRIPT = """
import sys
import torch
import dmlap_kernels

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

g = torch.Generator().manual_seed(0)
x = (0.3 * torch.randn({rows}, {features}, generator=g)).requires_grad_()
y = torch.randn({rows}, {features}, generator=g).requires_grad_()
labels = torch.arange({rows}) // 4

def step(name, options, proxies, rows):
    others = (y[: rows // 4],) if proxies else ()
    function = getattr(dmlap_kernels, name)
    value = function(x[:rows], labels[:rows], *others, backend="{backend}", **options)
    value.backward()
    assert torch.isfinite(value) and x.grad.any(), name

for name, options, proxies in {calls}:
    step(name, options, proxies, 256)
before = peak()
for name, options, proxies in {calls}:
    x.grad.zero_()
    step(name, options, proxies, {rows})
    growth = peak() - before
    assert growth < {bound}, f"{{name}} {{options}}: peak grew by {{growth / 2**20:.0f}} MiB"
print("every peak is below the bound")
"""
# The portable backend takes its time: one loss of each kind.
TORCH = ("triplet_hard", "contrastive", "nt_xent", "angular", "proxy_nca")
OPTIONS = {
    "triplet_distance_weighted": {"seed": 1},
    "triplet_all": {"swap": True},
    "contrastive": {"neg_margin": 9.0},
    "multi_similarity": {"epsilon": 0.1},
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_peak_memory(backend: str, tmp_path: Path) -> None:
    rows = ROWS[backend]
    assert BOUND <= 4 * rows * rows
    calls = [
        (row.function, row.fixed | OPTIONS.get(name, {}), row.proxies)
        for name, row in LOSSES.items()
        if backend == "cpu" or name in TORCH
    ]
    script = SCRIPT.format(
        rows=rows, features=FEATURES[backend], backend=backend, calls=calls, bound=BOUND
    )
    # Not from the checkout, where the sources would go before an installed package.
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
