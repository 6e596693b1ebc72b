"""The kernels under ThreadSanitizer, to which `races.h` tells what orders the emulated threads."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cuda import emulated

HERE = Path(__file__).parent
FLAGS = ["-O1", "-g", "-fsanitize=thread"]
# Mistakes that are races: what threads do before and after a barrier, copies that come too soon and
# too late, and two blocks at one place.
RACES = ["barrier", "warp", "shuffle", "overwrite", "wait", "blocks"]


def build(folder: Path, name: str, *sources: Path) -> Path:
    try:
        target = folder / f"{name}-races"
        return emulated.build(target, [*sources, HERE / f"{name}.cpp"], FLAGS, FLAGS[-1:])
    except subprocess.CalledProcessError:
        if has_sanitizer(folder):
            raise
        pytest.skip("the C++ compiler has no ThreadSanitizer")


def has_sanitizer(folder: Path) -> bool:
    source = folder / "empty.cpp"
    source.write_text("#include <sanitizer/tsan_interface.h>\nint main() {}\n")
    command = [emulated.compiler() or "g++", FLAGS[-1], str(source), "-o", str(folder / "empty")]
    return subprocess.run(command, capture_output=True).returncode == 0


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Without address space randomisation where it leaves ThreadSanitizer no room."""
    ways = [[]]
    if setarch := shutil.which("setarch"):
        ways.append([setarch, platform.machine(), "-R"])
    for way in ways:
        command = [*way, str(program), *arguments]
        environment = os.environ | {"TSAN_OPTIONS": "exitcode=66"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if "FATAL: ThreadSanitizer" not in done.stderr and "setarch:" not in done.stderr:
            return done
    pytest.skip(f"ThreadSanitizer does not run here: {done.stderr.strip()}")


@pytest.mark.parametrize("what", RACES)
def test_planted_races(folder: Path, what: str) -> None:
    program = build(folder, "planted")
    right, wrong = run(program, what, "right"), run(program, what, "wrong")
    assert (right.returncode, right.stderr) == (0, "")
    assert wrong.returncode == 66
    assert "ThreadSanitizer: data race" in wrong.stderr


def test_no_races(folder: Path) -> None:
    """Every launcher, on sizes that fill no tile."""
    done = run(build(folder, "sanitized", *emulated.kernels()))
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr[:20000]
