"""The command line of the study."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.evidence.runs import execute, read
from benchmarks.evidence.settings import Run
from benchmarks.photographs import activations
from benchmarks.photographs.choice import best_trials, chosen
from benchmarks.photographs.settings import (
    BATCHES,
    LOSS_OPTIONS,
    METHODS,
    TRIALS,
    final_runs,
    lambda_runs,
    on_other_folds,
    trials,
)
from benchmarks.photographs.table import write_table
from benchmarks.photographs.training import train
from dmlap_kernels import info

RESULTS = Path(__file__).parents[1] / "results" / "photographs"
STAGES = ("search", "final", "lambda", "table")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photographs")
    parser.add_argument("stage", choices=("prepare", *STAGES, "all"))
    parser.add_argument("--data", metavar="SOURCE", help="photographs, folder:PATH; for prepare")
    parser.add_argument("--weights", metavar="FILE", type=Path, help="of EfficientNet-Lite0, too")
    parser.add_argument("--activations", metavar="FILE", type=Path, default="activations.pt")
    parser.add_argument("--out", metavar="DIR", type=Path, default=RESULTS)
    parser.add_argument("--workers", metavar="N", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--losses", nargs="+", choices=LOSS_OPTIONS, default=list(LOSS_OPTIONS))
    parser.add_argument("--batches", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--trials", metavar="N", type=int, default=TRIALS)
    args = parser.parse_args()
    print(*info.headline(), sep="\n", flush=True)
    if args.stage == "prepare":
        if not (args.data and args.weights):
            parser.error("prepare needs --data folder:PATH and --weights FILE")
        activations.prepare(args.data, args.weights, args.activations)
        return
    if args.stage != "table" and not args.activations.exists():
        parser.error(f"there is no {args.activations}: run prepare first")
    for stage in STAGES if args.stage == "all" else (args.stage,):
        if stage == "search":
            _search(args)
        elif stage == "table":
            print(write_table(args.out))
        else:
            _judge(stage, args)


def _execute(runs: Iterable[Run], name: str, args: argparse.Namespace) -> None:
    source = f"{args.activations}@{args.device}"
    execute(runs, source, args.out / f"{name}.jsonl", args.workers, train)


def _wanted(args: argparse.Namespace) -> list[tuple[str, str, str]]:
    return [(loss, b, method) for loss in args.losses for b in args.batches for method in METHODS]


def _search(args: argparse.Namespace) -> None:
    wanted = [run for which in _wanted(args) for run in trials(*which, args.trials)]
    _execute(wanted, "search", args)
    names = {run.name for run in wanted}
    found = [entry for entry in read(args.out / "search.jsonl") if entry["name"] in names]
    _execute(on_other_folds(best_trials(found)), "folds", args)


def _judge(stage: str, args: argparse.Namespace) -> None:
    """The stages that take what the search found best."""
    best = chosen(read(args.out / "search.jsonl"), read(args.out / "folds.jsonl"))
    keys = {(f"{loss} {batch}", method) for loss, batch, method in _wanted(args)}
    if missing := sorted(keys - best.keys()):
        raise SystemExit(f"{stage} needs the search of {missing[0]} in {args.out}: run search")
    entries: list[dict[str, Any]] = [best[key] for key in sorted(keys)]
    _execute(final_runs(entries) if stage == "final" else lambda_runs(entries), stage, args)


if __name__ == "__main__":
    main()
