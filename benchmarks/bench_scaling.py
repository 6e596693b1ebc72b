"""Time per pair and peak memory of ours from 2,048 to 65,536 rows, each op in a process of its own.

Memory is what a forward and backward step takes beyond its inputs. Losses with proxies have those
of `CLASSES` classes at any size.
"""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from benchmarks import peak
from benchmarks.candidates import LOSSES
from benchmarks.measure import record, recorded_clock

FEATURES, CLASSES = 128, 1024
ROWS = (2048, 8192, 65536)


@pytest.mark.benchmark(timer=recorded_clock)
@pytest.mark.parametrize("op", LOSSES)
def test_scaling(op: str, long: None, benchmark: Any) -> None:
    found = peak.measure("scaling", [(op, "ours")], [FEATURES, CLASSES, *ROWS])
    if not found:
        pytest.skip("peak memory needs Linux's /proc")
    ours = found[f"{op} ours"]
    if "expected" in ours:
        pytest.skip(f"a step with {ROWS[-1]:,} rows would take about {ours['expected']:.0f} s")
    times = ours["seconds"]
    proxies = LOSSES[op].proxies * CLASSES
    picoseconds = {
        rows: 1e12 * statistics.median(t) / (int(rows) * (proxies or int(rows)))
        for rows, t in times.items()
    }
    record(
        benchmark,
        "scaling",
        times[str(ROWS[-1])],
        op=op,
        size=f"{ROWS[-1]} x {FEATURES}",
        picoseconds_per_pair=picoseconds,
        peak_mib=ours["peak_mib"],
        input_mib=(ROWS[-1] + proxies) * FEATURES * 4 / 2**20,
    )
