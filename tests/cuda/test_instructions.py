"""What nvcc makes of the loop that multiplies rows.

With DMLAP_CHECK_REGISTERS=1 in the environment, as instructions are a matter of its version.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKED = os.environ.get("DMLAP_CHECK_REGISTERS") == "1"
# In the loop over 16 features at full precision: a tile of a sweep takes 48 products of a warp,
# one of a gradient 24. Each number is split by three instructions and feeds several products.
LOOPS = {"extremes": (48, 190), "pair_terms": (48, 190), "gradient": (24, 140)}


@pytest.mark.skipif(not CHECKED, reason="DMLAP_CHECK_REGISTERS=1 asks for it")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernels", LOOPS)
def test_products_take_most_of_the_loop(kernels: str, capability: int, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    triton = pytest.importorskip("triton")
    nvdisasm = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    built = tmp_path / "built.cubin"
    source = ROOT / "csrc/cuda" / f"{kernels}.cu"
    folders = [f"-I{ROOT / 'csrc' / folder}" for folder in ("include", "cuda")]
    options = [f"-arch=sm_{capability}", "-std=c++17", "-O3", *folders, "-cubin"]
    subprocess.run([nvcc, *options, source, "-o", built], check=True)
    text = subprocess.run([nvdisasm, "-c", built], check=True, capture_output=True, text=True)
    products, most = LOOPS[kernels]
    found = [block for block in blocks(text.stdout) if block.count("HMMA") == products]
    assert found
    for block in found:
        assert len(block) <= most
        assert "FSETP" not in block  # nothing is asked about each number


def blocks(sass: str) -> list[list[str]]:
    """Names of the instructions between labels and branches."""
    found: list[list[str]] = [[]]
    for line in sass.splitlines():
        if re.match(r"\.L_\S+:|\s*\.section", line):
            found.append([])
        elif match := re.search(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", line):
            found[-1].append(match[1])
            if match[1] == "BRA":
                found.append([])
    return found
