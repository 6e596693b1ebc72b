"""Peak memory of one step, each in a process of its own.

Run as ``python -m benchmarks.peak MEASUREMENT OP:CANDIDATE,... NUMBER ...``; prints one JSON object
by "OP CANDIDATE". The interpreter forks for every step before any thread pool exists, which spares
the imports. The figure is VmHWM after the step less the resident size before it, with inputs in
place and one small step done.

Measurements: ``growth ROWS FEATURES`` is that figure. ``scaling FEATURES CLASSES ROWS ...`` is that
figure at the last number of rows and the time of a step at each; or, where a step with that many
rows takes too long, what it would take.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.candidates import LOSSES, make
from benchmarks.measure import call_time, round_robin

ROOT = Path(__file__).resolve().parents[1]
# The checkout comes last on the path: an installed package goes before its sources.
WORKER = f"import sys; sys.path.append({str(ROOT)!r}); from benchmarks.peak import main"

LONGEST_STEP = 300.0  # seconds


def can_measure() -> bool:
    """Whether /proc is Linux's."""
    return Path("/proc/self/clear_refs").exists()


def measure(
    measurement: str, pairs: list[tuple[str, str]], numbers: list[int]
) -> dict[str, dict[str, Any]]:
    """What is found by "OP CANDIDATE"; empty where /proc is not Linux's."""
    if not can_measure():
        return {}
    words = [measurement, ",".join(":".join(pair) for pair in pairs), *map(str, numbers)]
    done = subprocess.run(
        [sys.executable, "-c", f"{WORKER}; main(sys.argv[1:])", *words],
        cwd=ROOT.root,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def growth(op: str, candidate: str, rows: int, features: int) -> dict[str, Any]:
    make(op, candidate, 128, features)()
    return step_growth(make(op, candidate, rows, features))


def scaling(op: str, candidate: str, features: int, classes: int, *rows: int) -> dict[str, Any]:
    """Seconds by rows; in losses with proxies there are ``classes`` classes at any size."""
    fixed = classes if op in LOSSES and LOSSES[op].proxies else None
    *small, large = rows
    steps = {str(n): make(op, candidate, n, features, fixed) for n in small}
    first = steps[str(small[0])]
    first()
    expected = call_time(first) * (large / small[0]) ** (1 if fixed else 2)
    if expected > LONGEST_STEP:
        return {"expected": expected}
    before = round_robin(steps, 0.5)
    step = make(op, candidate, large, features, fixed)
    found = step_growth(step)
    after = round_robin(steps, 0.5)
    seconds = {n: before[n] + after[n] for n in steps} | {str(large): [found["seconds"]]}
    return {"peak_mib": found["peak_mib"], "seconds": seconds}


def step_growth(step: Callable[[], Any]) -> dict[str, Any]:
    """MiB by which a step grows this process beyond what it had, and the seconds it takes."""
    ctypes.CDLL(None).malloc_trim(0)  # free lists would lend memory without showing it
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _status("VmRSS")
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    return {"peak_mib": _status("VmHWM") - before, "seconds": seconds}


def _status(key: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024


MEASUREMENTS = {"growth": growth, "scaling": scaling}


def _in_a_fork(measurement: str, op: str, candidate: str, numbers: list[int]) -> dict[str, Any]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            found = MEASUREMENTS[measurement](op, candidate, *numbers)
            os.write(write, json.dumps(found).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit(f"{measurement} of {op} {candidate} failed")
    return json.loads(text)


def main(arguments: list[str]) -> None:
    measurement, pairs, *numbers = arguments
    found = {}
    for pair in pairs.split(","):
        op, candidate = pair.split(":")
        found[f"{op} {candidate}"] = _in_a_fork(measurement, op, candidate, [*map(int, numbers)])
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
