"""Every op, forward and backward, against naive PyTorch, its compilation and libraries.

G is ``torch.mm(x, x.T, out=buf)``, the yardstick: one product that materialises every pair.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.candidates import CANDIDATES, OPS
from benchmarks.conftest import Comparisons
from benchmarks.measure import play, ratio, recorded_clock

SIZES = [(128, 128), (128, 512), (1024, 128), (1024, 512), (4096, 128), (4096, 512)]


@pytest.mark.benchmark(timer=recorded_clock)
@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize(("rows", "features"), SIZES, ids=lambda value: str(value))
@pytest.mark.parametrize("op", OPS)
def test_op(
    op: str, rows: int, features: int, candidate: str, comparisons: Comparisons, benchmark: Any
) -> None:
    if benchmark.disabled:
        comparisons.check(op, rows, features)
        return
    times = comparisons.measure(op, rows, features)
    if candidate not in times:
        pytest.skip(comparisons.why_absent(op, rows, features, candidate))
    mine = times[candidate]
    benchmark.group = f"{op} {rows} x {features}"
    benchmark.extra_info.update(
        op=op,
        rows=rows,
        features=features,
        candidate=candidate,
        times_g=ratio(mine, times["G"]),
        peak_mib=comparisons.peak(op, candidate, rows, features),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    play(mine)
    benchmark.pedantic(lambda: None, rounds=len(mine))
