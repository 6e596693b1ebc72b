"""Bit-identical from run to run and for any number of threads; every instruction set is right."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dmlap_kernels import hard_classes, nearest
from tests.losses.cases import Case, draw_problem, keywords_of_some, usual, variants
from tests.losses.compare import run
from tests.losses.losses_table import LOSSES

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    (257, 40, "self", torch.float32, "mean"),
    (130, 17, "more", torch.float32, "none"),
    (130, 64, "self", torch.float64, "sum"),
    (257, 33, "fewer", torch.bfloat16, "mean_nonzero"),
)


def cases(loss: str) -> list[Case]:
    """Options and distances take turns."""
    row = LOSSES[loss]
    distances = row.distances or (row.default_distance,)
    found = []
    for index, (rows, features, refs, dtype, reduction) in enumerate(SETTINGS):
        changes = {"refs": "classes" if row.proxies and refs == "self" else refs}
        changes |= {"rows": rows, "features": features, "dtype": dtype, "reduction": reduction}
        changes |= {"distance": distances[index % len(distances)]}
        options = variants(loss)
        found.append(usual(loss, options=options[index % len(options)], **changes))
    return found


CASES = [case for loss in LOSSES for case in cases(loss)]


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def everything(case: Case, backend: str) -> list[Tensor]:
    """Value, gradients and statistics of a case."""
    problem = draw_problem(case)
    problem.keywords = keywords_of_some(case, problem)
    fused = LOSSES[case.loss].fused
    value, grads = run(fused, problem, backend=backend)
    _, stats = fused(
        *problem.args(), backend=backend, return_stats="class_scores", **problem.keywords
    )
    scores = stats.class_scores
    return [
        value,
        *grads,
        stats.violation,
        stats.mean_positive_distance,
        stats.mean_negative_distance,
        stats.hardest_positive,
        stats.hardest_negative,
        scores.mean_violation,
        scores.min_distance,
    ]


def assert_identical(first: list[Tensor], second: list[Tensor], what: str) -> None:
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(a.nan_to_num(1e9), b.nan_to_num(1e9)), f"output {index} differs {what}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_run_to_run(case: Case, backend: str) -> None:
    first = everything(case, backend)
    for _ in range(3):
        assert_identical(first, everything(case, backend), "from run to run")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_thread_counts(case: Case, native: str, restore_threads: None) -> None:
    torch.set_num_threads(1)
    first = everything(case, native)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        assert_identical(first, everything(case, native), f"with {threads} threads")


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_thread_counts_of_mining(native: str, distance: str, restore_threads: None) -> None:
    x = torch.randn(301, 20, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(301) % 75
    outputs = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        found = nearest(x, k=17, distance=distance, backend=native)
        hard = hard_classes(x, labels, 9, distance=distance, backend=native)
        outputs.append([*found, *hard])
    for other in outputs[1:]:
        assert_identical(outputs[0], other, "between thread counts")


def simd_levels() -> list[str]:
    try:
        from dmlap_kernels import _native
    except ImportError:
        return ["native extension missing"]
    return list(_native.simd_levels())


@pytest.mark.any_torch
@pytest.mark.parametrize("level", simd_levels())
def test_every_instruction_set(level: str, native: str, tmp_path: Path) -> None:
    """The tables in a process of their own that DMLAP_SIMD forces to one level."""
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(ROOT), level],
        cwd=tmp_path,
        env=os.environ | {"DMLAP_SIMD": level, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert f"{level}: " in done.stdout


def test_an_unknown_instruction_set_is_refused(native: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SMALL_CALL],
        cwd=tmp_path,
        env=os.environ | {"DMLAP_SIMD": "sse9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "sse9" in done.stderr and "baseline" in done.stderr


# The checkout comes last on the path: an installed package goes before its sources.
WORKER = """
import sys
sys.path.append(sys.argv[1])
from tests.losses.simd_worker import main
main(sys.argv[2])
"""
SMALL_CALL = """
import torch
from dmlap_kernels import fused_triplet_loss
fused_triplet_loss(torch.randn(4, 2), torch.tensor([0, 0, 1, 1]), backend="cpu")
"""
