"""The order of the evidence: what is run, what is kept, and what is run again."""

from __future__ import annotations

import argparse
import json
import multiprocessing.dummy
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.evidence import __main__ as evidence
from benchmarks.evidence import runs
from benchmarks.evidence.settings import (
    LOSS_OPTIONS,
    METHODS,
    PROXIMAL_WEIGHTS,
    RATES,
    ROUNDS,
    Run,
)
from benchmarks.evidence.table import write_table


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Runs that would have been trained; what comes of one depends on its name alone."""
    found: list[Run] = []

    def train(task: tuple[Run, str]) -> dict[str, Any]:
        run, _ = task
        found.append(run)
        score = zlib.crc32(run.name.encode()) / 2**32
        scores = {"recall@1": score, "map@r": score, "violated": 0.5, "seconds": 1.0}
        return {**run._asdict(), **scores}

    monkeypatch.setattr(runs, "_train", train)
    threads = SimpleNamespace(get_context=lambda method: multiprocessing.dummy)
    monkeypatch.setattr(runs, "multiprocessing", threads)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which runs set, and this resets
    return found


def search(folder: Path) -> list[dict[str, Any]]:
    with runs.Workers(1) as workers:
        evidence._search(argparse.Namespace(data="", out=folder), workers)
    return runs.read(folder / "search.jsonl")


def test_every_loss_and_method_gets_the_same_effort(trained: list[Run], tmp_path: Path) -> None:
    entries = search(tmp_path)
    assert len({entry["name"] for entry in entries}) == len(entries) == len(trained)
    for loss in LOSS_OPTIONS:
        for method in METHODS:
            mine = [e for e in entries if (e["loss"], e["method"]) == (loss, method)]
            assert len(mine) == 6 * ROUNDS


def test_the_last_round_tries_rates_with_the_best_so_far(
    trained: list[Run], tmp_path: Path
) -> None:
    entries = search(tmp_path)
    mine = [e for e in entries if (e["loss"], e["method"]) == ("contrastive", "dmlap+hard")]
    before, last = mine[:-6], mine[-6:]
    best = max(before, key=lambda entry: entry["map@r"])["config"]
    own = {"learning_rate", "loss_options"}
    for entry in last:
        assert {n: v for n, v in entry["config"].items() if n not in own} == {
            n: v for n, v in best.items() if n not in own
        }
    assert {entry["config"]["learning_rate"] for entry in last} == set(RATES[-1])


def test_a_finished_search_goes_no_further(trained: list[Run], tmp_path: Path) -> None:
    entries = search(tmp_path)
    trained.clear()
    assert search(tmp_path) == entries
    assert not trained


def test_runs_of_other_settings_are_made_again(trained: list[Run], tmp_path: Path) -> None:
    path = tmp_path / "final.jsonl"
    wanted = [Run(name, "contrastive", "plain", {"seed": 1}) for name in ("one", "other")]
    assert runs.execute(wanted, "", path, runs.Workers(1)) == {"one", "other"}
    path.write_text(
        path.read_text() + json.dumps({"name": "of another stage", "config": {}}) + "\n"
    )
    trained.clear()
    changed = [wanted[0], wanted[1]._replace(config={"seed": 2})]
    runs.execute(changed, "", path, runs.Workers(1))
    assert trained == changed[1:]
    kept = {entry["name"]: entry["config"] for entry in runs.read(path)}
    assert kept == {"one": {"seed": 1}, "other": {"seed": 2}, "of another stage": {}}


def test_either_form_of_the_proximal_term_is_tried_with_the_same_lambdas(
    trained: list[Run], tmp_path: Path
) -> None:
    search(tmp_path)
    trained.clear()
    with runs.Workers(1) as workers:
        evidence._judge("proximal", argparse.Namespace(data="", out=tmp_path), workers)
    for loss in LOSS_OPTIONS:
        tried = {"gradient": [], "decoupled": [0.0]}  # without a term there is one form
        for run in trained:
            if run.loss == loss:
                tried[run.config["proximal_form"]].append(run.config["proximal_weight"])
        assert all(weights == list(PROXIMAL_WEIGHTS) for weights in tried.values())
    assert all(run.config["validation"] == 0.2 for run in trained)
    assert "## The proximal term" in write_table(tmp_path).read_text()
