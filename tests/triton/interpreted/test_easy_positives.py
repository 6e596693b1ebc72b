"""Easiest positives by panels: every distance, ties, and what other mined triplets have not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmlap_kernels.backends.triton import configurations, kinds, steps
from dmlap_kernels.backends.triton.plans import plan_of
from dmlap_kernels.backends.triton.triton_backend import step_of
from dmlap_kernels.problem import PairProblem, PairSpec
from tests.losses import test_degenerate, test_ties
from tests.losses.cases import Case, make_problem, usual, variants
from tests.losses.compare import compare
from tests.losses.losses_table import LOSSES

EASY = ("triplet_easy_positive", "triplet_easy_positive_semihard")
EACH = pytest.mark.parametrize("loss", EASY)
REFS = pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])


@pytest.fixture(autouse=True)
def panels_of_each_step(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Panels of one block of 16 rows; how many of them each step had."""
    panels: list[int] = []
    init = steps.Step.__init__

    def noted(self: Any, plan: Any, spec: PairSpec, problem: PairProblem) -> None:
        init(self, plan, spec, problem)
        panels.append(len(self.kind.panels))

    monkeypatch.setattr(steps.Step, "__init__", noted)
    monkeypatch.setattr(configurations, "PANEL_FEATURES", 0)
    monkeypatch.setattr(configurations, "PANEL_BYTES", 4 * 16 * 60)
    return panels


def every_distance() -> list[Case]:
    """More than one panel, ragged in rows, columns and features, with all options in turn."""
    cases = []
    for loss in EASY:
        ends = variants(loss)
        for i, distance in enumerate(LOSSES[loss].distances):
            for k, refs in enumerate(("self", "fewer", "more")):
                case = usual(loss, rows=37, features=19, refs=refs, distance=distance)
                cases.append(replace(case, options=ends[(i + k) % len(ends)]))
    return cases


@pytest.mark.parametrize("case", every_distance(), ids=lambda case: case.id)
def test_every_distance(case: Case, backend: str, panels_of_each_step: list[int]) -> None:
    compare(case.loss, make_problem(case), backend)
    assert panels_of_each_step and (case.refs == "fewer" or min(panels_of_each_step) > 1)


@EACH
@REFS
@pytest.mark.parametrize("swap", [False, True], ids=["plain", "swap"])
@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean"])
def test_ties_as_in_plain_pytorch(
    loss: str, distance: str, swap: bool, refs: bool, backend: str, panels_of_each_step: list[int]
) -> None:
    """A negative as far as the positive is not beyond it."""
    options = {"margin": 1.0, "swap": swap}
    test_ties.test_ties_as_in_plain_pytorch(loss, options, torch.float32, distance, refs, backend)
    assert panels_of_each_step


@REFS
def test_pairs_a_ten_thousandth_apart(refs: bool, backend: str) -> None:
    """Not of the semi-hard ones: which of two near pairs is nearer is left to rounding."""
    loss, scale = "triplet_easy_positive", 30.0 if refs else 1.0
    options = variants(loss)[0]
    test_degenerate.test_pairs_a_ten_thousandth_apart(loss, options, refs, scale, backend)


def mined(loss: str, x: Tensor, labels: Tensor) -> list[list[int]]:
    """Columns of the positives and the negatives."""
    spec, problem = PairSpec(loss, (0.2, 0.0, 0.0)), PairProblem(x, labels, None, None)
    plan = plan_of(spec, True)
    assert plan is not None
    _, saved = step_of(plan, spec, problem).forward()
    table = saved[kinds.HEADER :].view(plan.rows, -1)
    # The semi-hard ones go by the distance of the positive before it.
    names = [name for stored in plan.stored for name in stored]
    columns = ("0.1", "0.3") if loss == "triplet_easy_positive" else ("0.1", "1.1")
    return table[[names.index(name) for name in columns]].long().tolist()


FAR = torch.tensor([2**40, 2**40, 2**40, 2**62, -(2**40), -(2**40), 2**40])


@pytest.mark.parametrize("labels", [torch.tensor([1, 1, 1, 3, 0, 0, 1]), FAR], ids=["near", "far"])
def test_ties_go_to_the_lower_label_then_the_lower_index(labels: Tensor) -> None:
    x = torch.tensor([[0.0], [1.0], [-1.0], [2.0], [-2.0], [2.0], [-1.0]])
    positives = [1, 0, 6, -1, 5, 4, 2]
    assert mined(EASY[0], x, labels) == [positives, [4, 5, 4, 5, 2, 3, 4]]
    # Beyond 1, 1, 0, none, 4, 4 and 0: negatives at the same distance are left out.
    assert mined(EASY[1], x, labels) == [positives, [4, 4, 4, -1, -1, -1, 4]]


@EACH
def test_ties_between_tiles_that_one_program_visits(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same place of its tile the lower label comes last; positives are in two tiles."""
    monkeypatch.setattr(configurations, "_RESIDENT", 0)  # one program for each block of rows
    x = torch.ones(128, 1)
    x[0], x[[40, 90]] = 0.0, 0.5
    labels = torch.arange(128).flip(0)
    labels[[40, 90]] = 127
    positives, negatives = mined(loss, x, labels)
    assert (positives[0], negatives[0]) == (40, 127)
    assert (positives[40], negatives[40]) == (90, 127)
    positives, negatives = mined(loss, x, -labels)
    assert (positives[0], negatives[0]) == (40, 1)


@EACH
@pytest.mark.parametrize("smooth", [False, True])
@REFS
def test_anchors_without_a_term(loss: str, smooth: bool, refs: bool, backend: str) -> None:
    """Without a positive, without a negative, and with none beyond the positive."""
    x = torch.tensor([[0.0], [8.0], [1.0], [20.0], [21.0], [22.5]])
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    for one_class in (False, True):
        case = replace(usual(loss), options=())
        problem = make_problem(case)
        problem.x, problem.labels = x, torch.zeros(6, dtype=torch.int64) if one_class else labels
        problem.y = problem.ref_labels = None
        if refs:
            problem.y, problem.ref_labels = x.flip(0) + 0.25, problem.labels.flip(0)
        problem.keywords |= {"smooth": smooth, "reduction": "mean", "distance": "euclidean"}
        compare(loss, problem, backend)
