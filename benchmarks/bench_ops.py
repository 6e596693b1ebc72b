"""Every op, forward and backward, against naive PyTorch, its compilation and libraries."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.candidates import CANDIDATES, OPS
from benchmarks.comparisons import Comparisons
from benchmarks.measure import ratio, record, recorded_clock

SIZES = [(128, 128), (4096, 128), (4096, 512)]
# With --benchmark-disable candidates are held against each other, but not timed.
CHECKED_ROWS = 256


@pytest.mark.benchmark(timer=recorded_clock)
@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize(("rows", "features"), SIZES, ids=lambda value: str(value))
@pytest.mark.parametrize("op", OPS)
def test_op(
    op: str, rows: int, features: int, candidate: str, comparisons: Comparisons, benchmark: Any
) -> None:
    key = (op, rows, features)
    if benchmark.disabled:
        comparisons.check(op, min(rows, CHECKED_ROWS), features, candidate)
        return
    times, absent = comparisons.measure(*key), comparisons.absent(*key)
    if candidate in absent:
        pytest.skip(absent[candidate])
    beside = {}
    if candidate == "ours" and "revision" in times:
        beside["times_revision"] = ratio(times["ours"], times["revision"])
    record(
        benchmark,
        "ops",
        times[candidate],
        op=op,
        size=f"{rows} x {features}",
        rows=rows,
        features=features,
        candidate=candidate,
        times_g=ratio(times[candidate], times["G"]),
        **beside,
        peak_mib=comparisons.peak(op, candidate, rows, features),
        absent=absent if candidate == "ours" else {},
    )
