"""The violated constraints of classes, as the page shows them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dmlap_kernels.report import class_curves
from dmlap_kernels.report.class_curves import hardest_first, render_class_curves
from dmlap_kernels.report.runs import Run, read_runs
from tests.report.conftest import Page


def _run(run: Run, classes: int, windows: int = 8) -> Run:
    """Class c is violated in c of the last half's constraints; class 0 was never in a batch."""
    counts = torch.zeros(2, 48, classes, dtype=torch.int32)
    counts[1, :windows, 1:] = classes
    counts[0, : windows // 2, 1:] = classes
    counts[0, windows // 2 : windows] = torch.arange(classes, dtype=torch.int32)
    names = [f"name {c}" for c in range(classes)]
    results = {**run.results, "training_classes": names, "config": {**run.config, "steps": 64}}
    return replace(run, results=results, violations=counts, window=8)


def test_the_worst_classes_come_first_and_the_unseen_last() -> None:
    nan = math.nan
    share = torch.tensor([[1.0, 0.2, nan, 0.5], [0.1, 0.3, nan, nan]])
    # Class 3 was not in the last quarter: what is known of it counts.
    assert hardest_first(share).tolist() == [3, 1, 0, 2]


def test_every_class_is_in_the_map_and_the_worst_have_a_curve(runs: list[Path]) -> None:
    (run,) = read_runs(runs[2:])
    page = Page(render_class_curves(_run(run, 120)))
    (plot,) = page.classes("img", "plot")
    assert plot["alt"] == "violated constraints of 120 classes over 64 steps"
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 24
    assert "name 119: 100 % violated at first, 99 % at the end of 64 steps" in page.text
    assert "name 95:" not in page.text and "a class, the worst" in page.text
    assert "sample in the batch" in page.text


def test_many_classes_share_rows(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_curves, "MOST_ROWS", 50)
    (run,) = read_runs(runs[:1])
    text = Page(render_class_curves(_run(run, 120))).text
    assert "each row 3 classes" in text and "representative" in text
    grouped = class_curves._grouped(torch.arange(240.0).view(2, 120))
    assert grouped.shape == (2, 40) and grouped[0, :2].tolist() == [1.0, 4.0]


def test_runs_without_counts_say_so(runs: list[Path]) -> None:
    (run,) = read_runs(runs[2:])
    assert "did not count" in render_class_curves(replace(run, violations=None))
    empty = torch.zeros(2, 48, 5, dtype=torch.int32)
    assert "No batch had" in render_class_curves(replace(run, violations=empty))
    assert run.violations is not None and len(run.class_names) == run.violations.shape[2]
