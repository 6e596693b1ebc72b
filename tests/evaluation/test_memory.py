"""The memory of `retrieval_metrics` does not grow with the sizes of the classes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROWS = 3072
# The matrix of distances is 36 MiB, and their ranks took twice that; a bound of less is noise.
BOUND = 50 * 2**20

SCRIPT = """
import torch
from dmlap_kernels.evaluation import METRICS, retrieval, retrieval_metrics

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

torch.set_num_threads(1)
x = torch.randn({rows}, 8, generator=torch.Generator().manual_seed(0))
labels = torch.arange({rows}) % 2
retrieval._NEIGHBORS_AT_ONCE = 2**18
options = {{"backend": "{backend}", "metrics": METRICS[:6], "ks": (1, 10)}}
for rows in (256, {rows}):
    before = peak()
    for references in ((), (x[:rows].flip(0), labels[:rows].flip(0))):
        retrieval_metrics(x[:rows], labels[:rows], *references, **options)
growth = peak() - before
assert growth < {bound}, f"{{growth / 2**20:.0f}} MiB"
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_peak_memory(backend: str, tmp_path: Path) -> None:
    script = SCRIPT.format(rows=ROWS, backend=backend, bound=BOUND)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
