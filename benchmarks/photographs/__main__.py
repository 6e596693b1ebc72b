"""The command line of the study."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.evidence.runs import Workers, execute, read
from benchmarks.evidence.settings import Run
from benchmarks.photographs import activations
from benchmarks.photographs.choice import best_trials, chosen, equal_effort
from benchmarks.photographs.settings import (
    BATCHES,
    LOSS_OPTIONS,
    METHODS,
    TRIALS,
    final_runs,
    lambda_runs,
    on_other_folds,
    parts,
    trials,
)
from benchmarks.photographs.table import write_table
from benchmarks.photographs.training import train
from dmlap_kernels import info

RESULTS = Path(__file__).parents[1] / "results" / "photographs"
STAGES = ("search", "folds", "final", "lambda", "table")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photographs")
    parser.add_argument("stage", choices=("prepare", *STAGES, "all"))
    parser.add_argument("--data", metavar="SOURCE", help="photographs, folder:PATH; for prepare")
    parser.add_argument("--weights", metavar="FILE", type=Path, help="of EfficientNet-Lite0, too")
    parser.add_argument("--activations", metavar="FILE", type=Path, default="activations.pt")
    parser.add_argument("--out", metavar="DIR", type=Path, default=RESULTS)
    parser.add_argument("--workers", metavar="N", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=math.inf, help="begin no run of a stage later"
    )
    parser.add_argument("--losses", nargs="+", choices=LOSS_OPTIONS, default=list(LOSS_OPTIONS))
    parser.add_argument("--batches", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--trials", metavar="N", type=int, default=TRIALS)
    args = parser.parse_args()
    print(*info.headline(), sep="\n", flush=True)
    if args.stage == "prepare":
        if not (args.data and args.weights):
            parser.error("prepare needs --data folder:PATH and --weights FILE")
        activations.prepare(args.data, args.weights, args.activations, args.device)
        return
    if args.stage != "table" and not args.activations.exists():
        parser.error(f"there is no {args.activations}: run prepare first")
    with Workers(args.workers) as workers:
        for stage in STAGES if args.stage == "all" else (args.stage,):
            if stage == "table":
                print(write_table(args.out))
            else:
                make(stage, args, workers)


def make(stage: str, args: argparse.Namespace, workers: Workers) -> None:
    """The runs of a stage, those of which ``args.out`` holds no results."""
    until = time.time() + args.seconds
    source = f"{args.activations}@{args.device}"
    execute(_runs(stage, args), source, args.out / f"{stage}.jsonl", workers, train, until)


def _runs(stage: str, args: argparse.Namespace) -> Iterable[Run]:
    if stage == "search":
        # First the first trial of all, so that those that are short of time have had equal effort.
        found = [run for which in _wanted(args) for run in trials(*which, args.trials)]
        return sorted(found, key=lambda run: parts(run._asdict())[3])
    keys = {(f"{loss} {batch}", method) for loss, batch, method in _wanted(args)}
    search = [e for e in read(args.out / "search.jsonl") if (e["loss"], e["method"]) in keys]
    search = equal_effort(search, args.trials)
    if stage == "folds":
        return on_other_folds(best_trials(search))
    best = chosen(search, read(args.out / "folds.jsonl"))
    if missing := sorted(keys - best.keys()):
        raise SystemExit(f"{stage} needs the search and folds of {missing[0]} in {args.out}")
    entries: list[dict[str, Any]] = [best[key] for key in sorted(keys)]
    return final_runs(entries) if stage == "final" else lambda_runs(entries)


def _wanted(args: argparse.Namespace) -> list[tuple[str, str, str]]:
    return [(loss, b, method) for loss in args.losses for b in args.batches for method in METHODS]


if __name__ == "__main__":
    main()
