"""Memory stays O(B * D): not a single B x B matrix fits into the bound; plain PyTorch holds six."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# A matrix of distances takes 1 GiB at 16,384 rows, 256 MiB at 8,192 (for the slower backend).
ROWS = {"cpu": 16_384, "torch": 8_192}
FEATURES = {"cpu": 64, "torch": 16}
BOUND = 256 * 2**20

SCRIPT = """
import sys
import torch
from dmlap_kernels import {function}

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

g = torch.Generator().manual_seed(0)
x = torch.randn({rows}, {features}, generator=g).requires_grad_()
labels = torch.arange({rows}) // 4
small = torch.randn(256, {features}, requires_grad=True)
{function}(small, labels[:256], backend="{backend}", **{options}).backward()
before = peak()
value = {function}(x, labels, backend="{backend}", **{options})
value.backward()
assert torch.isfinite(value) and x.grad.any()
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize(
    ("function", "options"),
    [
        ("fused_triplet_loss", {"margin": 0.5}),
        ("fused_contrastive_loss", {"neg_margin": 9.0}),
    ],
)
def test_peak_memory(
    function: str, options: dict[str, float], backend: str, tmp_path: Path
) -> None:
    rows = ROWS[backend]
    script = SCRIPT.format(
        function=function, rows=rows, features=FEATURES[backend], backend=backend, options=options
    )
    # Not from the checkout, where the sources would go before an installed package.
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    growth = int(done.stdout)
    assert growth < BOUND <= 4 * rows * rows, f"peak grew by {growth / 2**20:.0f} MiB"
