"""Peak memory of one step, each in a process of its own.

Run as ``python -m benchmarks.peak ROWS FEATURES OP CANDIDATE [OP CANDIDATE ...]``; prints one JSON
object of MiB by "OP CANDIDATE". The interpreter forks for every step before any thread pool
exists, which spares the imports. The figure is VmHWM after the step less the resident size before
it, with inputs in place and one small step done.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.candidates import make

ROOT = Path(__file__).resolve().parents[1]
# The checkout comes last on the path: an installed package goes before its sources.
WORKER = f"import sys; sys.path.append({str(ROOT)!r}); from benchmarks.peak import main"


def measure(rows: int, features: int, pairs: list[tuple[str, str]]) -> dict[str, float]:
    """MiB by "OP CANDIDATE"; empty where /proc is not Linux's."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    words = [word for pair in pairs for word in pair]
    done = subprocess.run(
        [sys.executable, "-c", f"{WORKER}; main(sys.argv[1:])", str(rows), str(features), *words],
        cwd=ROOT.root,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def status(key: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024


def growth(op: str, candidate: str, rows: int, features: int) -> float:
    make(op, candidate, 128, features)()
    step = make(op, candidate, rows, features)
    ctypes.CDLL(None).malloc_trim(0)  # free lists would lend memory without showing it
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = status("VmRSS")
    step()
    return status("VmHWM") - before


def in_a_fork(op: str, candidate: str, rows: int, features: int) -> float:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(write, str(growth(op, candidate, rows, features)).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit(f"{op} {candidate} failed")
    return float(text)


def main(arguments: list[str]) -> None:
    rows, features, *words = arguments
    found = {
        f"{op} {candidate}": in_a_fork(op, candidate, int(rows), int(features))
        for op, candidate in zip(words[::2], words[1::2], strict=True)
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
