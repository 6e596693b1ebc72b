"""The study of photographs: equal effort for every method, and what is chosen by what."""

from __future__ import annotations

import argparse
import math
import multiprocessing.dummy
import zlib
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.evidence import runs
from benchmarks.evidence.settings import Run
from benchmarks.photographs import __main__ as photographs
from benchmarks.photographs import activations, settings
from benchmarks.photographs.choice import chosen
from benchmarks.photographs.table import write_table
from dmlap_kernels.data import Dataset, Split

pytestmark = pytest.mark.any_torch


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Runs that would have been trained; what comes of one depends on its name alone."""
    found: list[Run] = []

    def train(task: tuple[Run, str]) -> dict[str, Any]:
        run, _ = task
        found.append(run)
        score = zlib.crc32(run.name.encode()) / 2**32
        return {**run._asdict(), "recall@1": 1 - score, "map@r": score, "violated": 0.5}

    monkeypatch.setattr(photographs, "train", train)
    threads = SimpleNamespace(get_context=lambda method: multiprocessing.dummy)
    monkeypatch.setattr(runs, "multiprocessing", threads)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which runs set, and this resets
    return found


def arguments(folder: Path) -> argparse.Namespace:
    return argparse.Namespace(
        out=folder,
        workers=1,
        device="cpu",
        activations="x.pt",
        losses=["contrastive", "proxy_anchor"],
        batches=["8 x 4"],
        trials=6,
        seconds=math.inf,
    )


def make(stage: str, folder: Path, **changed: Any) -> None:
    args = argparse.Namespace(**{**vars(arguments(folder)), **changed})
    with runs.Workers(1) as workers:
        photographs.make(stage, args, workers)


def search_with_folds(folder: Path) -> None:
    make("search", folder)
    make("folds", folder)


def test_every_method_gets_the_same_effort(trained: list[Run], tmp_path: Path) -> None:
    search_with_folds(tmp_path)
    search, folds = (runs.read(tmp_path / f"{name}.jsonl") for name in ("search", "folds"))
    for loss in ("contrastive 8 x 4", "proxy_anchor 8 x 4"):
        for method in settings.METHODS:
            mine = [e for e in search if (e["loss"], e["method"]) == (loss, method)]
            assert len({str(entry["config"]) for entry in mine}) == 6
            best = sorted(mine, key=lambda entry: -entry["map@r"])[: settings.KEPT_TRIALS]
            others = [e for e in folds if (e["loss"], e["method"]) == (loss, method)]
            assert sorted(settings.parts(e)[3] for e in others) == sorted(
                settings.parts(e)[3] for e in best for _ in settings.FOLDS[1:]
            )
            assert {e["config"]["validation_fold"] for e in others} == set(settings.FOLDS[1:])
    trained.clear()
    search_with_folds(tmp_path)
    assert not trained


def test_a_search_that_is_cut_short_gives_equal_effort(trained: list[Run], tmp_path: Path) -> None:
    make("search", tmp_path, seconds=-1.0)
    assert not trained
    make("search", tmp_path, trials=3)
    path = tmp_path / "search.jsonl"
    numbers = [settings.parts(entry)[3] for entry in runs.read(path)]
    assert numbers == sorted(numbers)
    # The last trial of two methods is missing.
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    trained.clear()
    make("folds", tmp_path)
    assert {settings.parts(run._asdict())[3] for run in trained} == {0, 1}


def test_the_best_mean_of_all_folds_is_chosen(trained: list[Run], tmp_path: Path) -> None:
    search_with_folds(tmp_path)
    search, folds = (runs.read(tmp_path / f"{name}.jsonl") for name in ("search", "folds"))
    for key, entry in chosen(search, folds).items():
        trials: dict[int, list[float]] = {}
        for line in (*search, *folds):
            if (line["loss"], line["method"]) == key:
                trials.setdefault(settings.parts(line)[3], []).append(line["map@r"])
        means = {number: fmean(found) for number, found in trials.items() if len(found) == 4}
        assert settings.parts(entry)[3] == max(means, key=lambda number: means[number])
        assert entry["map@r"] == max(means.values())


def test_final_runs_hold_nothing_out(trained: list[Run], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="needs the search"):
        make("final", tmp_path)
    search_with_folds(tmp_path)
    trained.clear()
    make("final", tmp_path)
    assert len(trained) == 2 * len(settings.METHODS) * len(settings.SEEDS)
    assert all("validation_fold" not in run.config for run in trained)
    assert {run.config["seed"] for run in trained} == set(settings.SEEDS)
    trained.clear()
    make("lambda", tmp_path)
    assert {run.method for run in trained} == {"dmlap"}
    assert {run.config["proximal_weight"] for run in trained} == set(settings.LAMBDAS)
    page = write_table(tmp_path).read_text()
    for title in ("## Test classes", "## Against plain", "## Lambda", "## What was chosen"):
        assert title in page
    assert "means of 4 folds" in page
    # One run of the last fold is missing, which then says nothing.
    path = tmp_path / "lambda.jsonl"
    kept = path.read_text().splitlines(keepends=True)[:-1]
    path.write_text("".join(kept))
    assert "means of 3 folds" in write_table(tmp_path).read_text()


def test_more_trials_begin_with_the_same() -> None:
    first = list(settings.trials("triplet", "32 x 4", "dmlap", 3))
    assert list(settings.trials("triplet", "32 x 4", "dmlap", 5))[:3] == first
    for run in settings.trials("triplet", "32 x 4", "dmlap", 50):
        assert run.config["projection_steps"] <= run.config["steps"]


def test_mirrored_swaps_the_halves_of_some() -> None:
    images = torch.randn(64, 2 * activations.CHANNELS, 2, 2)
    found = activations.mirrored(images, torch.Generator().manual_seed(0))
    swapped = (found != images).flatten(1).any(1)
    assert 16 < swapped.sum() < 48
    first, second = images.split(activations.CHANNELS, 1)
    assert torch.equal(found[swapped], torch.cat((second, first), 1)[swapped])


def test_a_run_learns_from_prepared_activations(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is absent", exc_type=ImportError)
    from benchmarks.photographs.training import train

    weights, data, path = tmp_path / "weights.pth", photographs_of_noise(), tmp_path / "kept.pt"
    torch.manual_seed(0)
    import timm

    model = timm.create_model(activations.NETWORK, num_classes=0)
    # Under other names, as in other files.
    torch.save({f"other.{i}": v for i, v in enumerate(model.state_dict().values())}, weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "load_data", lambda source, image_size: data)
        activations.prepare("folder:nowhere", weights, path)
    read, tail = activations.read(path)
    # The whole network and its two halves agree.
    encoder = activations.Tail(tail).eval()
    images = (data.test.batch(torch.arange(4)) - 0.5) / 0.5
    with torch.no_grad():
        whole = model.eval()(images)
        halves = encoder.features(read.test.batch(torch.arange(4)))
    torch.testing.assert_close(halves, whole, rtol=2e-2, atol=2e-3)
    activations.begin_as_principal_components(encoder, read.train)
    with torch.no_grad():
        spread = encoder.head(encoder.features(read.train.batch(torch.arange(16))))
    assert spread.mean(0).abs().max() < 1e-3 * spread.abs().max().clamp_min(1)
    config = {
        "loss": "contrastive",
        "loss_options": {},
        "method": "plain",
        "optimizer": "adamw",
        "weight_decay": 0.1,
        "average": 0.9,
        "head": "random",
        "freeze_batch_norm": False,
        "steps": 2,
        "classes_per_batch": 4,
        "samples_per_class": 2,
        "seed": 1,
        "validation_fold": 0,
    }
    entry = train((Run("one", "contrastive 4 x 2", "plain+control", config), str(path)))
    assert entry["config"] == config and 0 <= entry["recall@1"] <= 1
    changed = {**config, "average": 0.0}
    other = train((Run("two", "contrastive 4 x 2", "plain+control", changed), str(path)))
    assert other["name"] == "two"


def photographs_of_noise() -> Dataset:
    chance = torch.Generator().manual_seed(0)

    def split(classes: int) -> Split:
        images = torch.randint(0, 256, (2 * classes, 3, 64, 64), generator=chance)
        labels = torch.arange(classes).repeat_interleave(2)
        return Split(images.byte(), labels, tuple(f"class {c}" for c in range(classes)))

    return Dataset("noise", split(8), split(4))
