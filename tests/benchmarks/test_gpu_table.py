"""The page of what was measured on GPUs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import gpu_table

RESULTS: list[dict[str, Any]] = [
    {"op": "product", "candidate": "G", "rows": 128, "features": 128, "seconds": 1.0},
    {"op": "circle", "candidate": "triton", "way": "both", "seconds": 1.0, "device_seconds": 0.5},
    {"op": "circle", "candidate": "triton", "way": "forward", "seconds": 9.0},
    {"op": "circle", "candidate": "torch", "way": "both", "seconds": 0.97},
    {"op": "circle", "candidate": "eager", "way": "both", "seconds": 3.0, "device_seconds": 2.0},
    {"op": "circle", "candidate": "cuda", "absent": "failed its self-check: off"},
    {"op": "nearest", "candidate": "cuda", "way": "forward", "seconds": 0.004},
    {"op": "nearest", "candidate": "torch", "way": "forward", "seconds": 0.002},
]


def content() -> dict[str, Any]:
    results = [{"rows": 128, "features": 128} | one for one in RESULTS]
    about = {"device": "Some GPU", "driver": "1.2", "torch": "2.11", "revision": "abc"}
    return about | {"results": results}


def test_a_page(tmp_path: Path) -> None:
    source, page = tmp_path / "gpu.json", tmp_path / "page.md"
    source.write_text(json.dumps(content()))
    gpu_table.main([str(source), "--page", str(page)])
    text = page.read_text()
    assert "## Some GPU\n\ndriver 1.2, PyTorch 2.11, dmlap_kernels abc." in text
    # A tie within 5 % goes by the rule.
    assert "| circle | **1e+03** | wrong | 970 | 3e+03 | - | - | 3 | 4 | - |" in text
    assert "| nearest | - | 4 | **2** | - | - | - | - | - | - |" in text
    assert "128 x 128: 3 to 3 times as fast as eager code, 3 in the middle." in text


def test_published_results_are_on_the_page() -> None:
    root = Path(gpu_table.__file__).parents[1]
    found = sorted((root / "benchmarks" / "results").glob("gpu-*.json"))
    page = root / "docs" / "measured-on-gpus.md"
    assert bool(found) == page.exists()
    if found:
        assert page.read_text() == gpu_table.page([json.loads(one.read_text()) for one in found])
