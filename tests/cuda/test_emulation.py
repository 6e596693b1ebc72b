"""The harness itself: it must find what it is for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cuda import emulated

SANITIZED = ["-O1", "-g", "-fsanitize=address", "-fno-omit-frame-pointer"]
# Of 256 threads that hand on their numbers 0, 1, ...; that write or copy a 1; that write nothing.
RIGHT = {
    "barrier": "0 32640",
    "warp": "0 32640",
    "shuffle": "0 32640",
    "overwrite": "0 256",
    "blocks": "0 256",
    "wait": "0 256",
    "divergence": "0 -256",
    "global": "0 256",
    "shared": "0 256",
}


@pytest.fixture(scope="session")
def planted(folder: Path) -> Path:
    here = Path(__file__).parent
    target = folder / "planted"
    return emulated.build(target, [here / "planted.cpp"], SANITIZED, ["-fsanitize=address"])


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("what", RIGHT)
@pytest.mark.parametrize("order", [(), ("descending",)], ids=["ascending", "descending"])
def test_right_kernels_pass(planted: Path, what: str, order: tuple[str, ...]) -> None:
    done = run(planted, what, "right", *order)
    assert (done.stdout.strip(), done.returncode) == (RIGHT[what], 0), done.stderr


@pytest.mark.parametrize("what", ["barrier", "warp"])
def test_a_missing_barrier_shows(planted: Path, what: str) -> None:
    wrong = {run(planted, what, "wrong", *order).stdout for order in ((), ("descending",))}
    assert f"{RIGHT[what]}\n" not in wrong or len(wrong) > 1


def test_a_missing_wait_for_a_copy_shows(planted: Path) -> None:
    assert "nan" in run(planted, "wait", "wrong").stdout


def test_a_barrier_that_not_all_threads_reach_is_an_error(planted: Path) -> None:
    assert run(planted, "divergence", "wrong").stdout.startswith("1 ")


@pytest.mark.parametrize("what", ["global", "shared"])
def test_accesses_past_the_end_stop_the_program(planted: Path, what: str) -> None:
    done = run(planted, what, "wrong")
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr


def test_the_kernels_stay_within_their_arrays(folder: Path) -> None:
    """Every launcher, on sizes that fill no tile, under AddressSanitizer."""
    here = Path(__file__).parent
    sources = [*emulated.kernels(), here / "sanitized.cpp"]
    program = emulated.build(folder / "sanitized", sources, SANITIZED, ["-fsanitize=address"])
    done = run(program)
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr
