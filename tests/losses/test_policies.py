"""The policies in C++: what duals derive is the slope of the values, also where sums are empty."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CXX = shlex.split(os.environ.get("CXX", "")) or ["g++"]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    if shutil.which(CXX[0]) is None:
        pytest.skip(f"no compiler ({CXX[0]})")
    program = tmp_path_factory.mktemp("policies") / "policies"
    include = HERE.parents[1] / "csrc/include"
    command = [*CXX, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-I", str(include)]
    subprocess.run([*command, str(HERE / "policies.cpp"), "-o", str(program)], check=True)
    output = subprocess.run([str(program)], check=True, text=True, capture_output=True).stdout
    return [line.split() for line in output.splitlines()]


def test_derivatives_are_the_slopes_of_the_values(lines: list[list[str]]) -> None:
    # Six for each group of terms of an anchor.
    counts = Counter(line[0] for line in lines)
    of_anchors = {line[0] for line in lines if line[1] == "alone"}
    assert len(of_anchors) > 5 and all(counts[name] in (6, 12) for name in of_anchors), counts
    assert {"contrastive", "nt_xent", "n_pairs", "angular", "triplet_hard"} <= set(counts)
    for name, what, value, of_dual, *slopes in lines:
        where = f"{name} {what}"
        assert float(of_dual) == float(value), where
        assert math.isfinite(float(value)), where
        for slope in slopes:
            by, differences = map(float, slope.split(":"))
            assert math.isfinite(by), where
            if math.isfinite(differences):  # else the number itself is infinite
                assert by == pytest.approx(differences, rel=1e-5, abs=1e-7), where
            else:
                assert by == 0, where


@pytest.mark.parametrize("loss", ["sup_con", "circle", "proxy_nca"])
def test_an_anchor_without_positives_has_no_term(lines: list[list[str]], loss: str) -> None:
    empty = [line for line in lines if line[0] == loss and line[1] in ("no-positives", "alone")]
    assert len(empty) == 2
    for _, _, value, _, *slopes in empty:
        assert float(value) == 0
        assert all(float(slope.split(":")[0]) == 0 for slope in slopes)


def test_equal_distances_share_the_negative(lines: list[list[str]]) -> None:
    ties = [line for line in lines if line[1] == "tie"]
    assert len(ties) == 2
    for *_, by_anchor, by_positive in ties:
        assert by_anchor.split(":")[0] == by_positive.split(":")[0]
