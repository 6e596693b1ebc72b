"""Training runs side by side, one thread each, a line of JSON for each."""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.settings import Run
from dmlap_kernels.data import Dataset, load_data
from dmlap_kernels.trainer import TrainConfig, Trainer
from dmlap_kernels.trainer.embedding import evaluate

# From a run and its source to a line of results.
Train = Callable[[tuple[Run, str]], dict[str, Any]]

_data: dict[str, Dataset] = {}


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results; none if there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Workers:
    """Processes of one thread each, started when they are first needed, ended with the block."""

    def __init__(self, count: int) -> None:
        self.count = count

    @functools.cached_property
    def pool(self) -> Any:
        os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that are started now
        return multiprocessing.get_context("spawn").Pool(self.count)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if "pool" in vars(self):
            self.pool.terminate()


def execute(
    runs: Iterable[Run],
    source: str,
    path: Path,
    workers: Workers,
    train: Train | None = None,
    until: float = math.inf,
) -> set[str]:
    """Run what ``path`` does not hold yet, and append it; the names of all the runs.

    Lines of the same name with another configuration are of earlier settings, and go. What has not
    begun by ``until`` (`time.time`) is left out.
    """
    wanted = {run.name: run for run in runs}
    lines = read(path)
    kept = [e for e in lines if e["name"] not in wanted or e["config"] == wanted[e["name"]].config]
    if len(kept) < len(lines):
        path.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    done = {entry["name"] for entry in kept}
    missing = [(run, source) for name, run in wanted.items() if name not in done]
    if not missing:
        return set(wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = functools.partial(_in_time, train or _train, until)
    with open(path, "a") as file:
        for count, entry in enumerate(workers.pool.imap_unordered(work, missing), 1):
            if entry is None:
                continue
            file.write(json.dumps(entry) + "\n")
            file.flush()
            print(
                f"{count}/{len(missing)}  recall@1 {entry['recall@1']:.4f}  "
                f"map@r {entry['map@r']:.4f}  {entry['name']}",
                flush=True,
            )
    return set(wanted)


def _in_time(train: Train, until: float, task: tuple[Run, str]) -> dict[str, Any] | None:
    return train(task) if time.time() < until else None


def _train(task: tuple[Run, str]) -> dict[str, Any]:
    run, source = task
    torch.set_num_threads(1)
    if source not in _data:
        _data[source] = load_data(source)
    config = TrainConfig(data=source, **run.config)
    trainer = Trainer(config, _data[source])
    trainer.encoder.train()
    while trainer.step < config.steps:
        trainer.train_step()
    # The validation classes, or the test classes where none are held out.
    options = {"loss": config.loss, "loss_options": config.loss_options}
    metrics = evaluate(trainer.encoder, trainer.watched, **options)
    return {
        "name": run.name,
        "loss": run.loss,
        "method": run.method,
        "config": run.config,
        "recall@1": metrics["recall@1"],
        "map@r": metrics["map@r"],
        "violated": trainer.history["train"][-1]["violated"],
        "seconds": trainer.seconds,
    }


def best_of(entries: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """The entry with the highest MAP@R of each (loss, method)."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in entries:
        key = entry["loss"], entry["method"]
        if key not in best or entry["map@r"] > best[key]["map@r"]:
            best[key] = entry
    return best
