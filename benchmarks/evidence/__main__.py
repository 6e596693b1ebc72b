"""The command line of the evidence."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from benchmarks import kernels
from benchmarks.evidence.cost import measure_cost
from benchmarks.evidence.runs import Workers, best_of, execute, read
from benchmarks.evidence.settings import (
    LOSS_OPTIONS,
    METHODS,
    ROUNDS,
    clock_runs,
    dmlap_search,
    final_runs,
    plain_search,
    proximal_runs,
    sweep_runs,
)
from benchmarks.evidence.table import write_table
from dmlap_kernels import info

RESULTS = Path(__file__).parents[1] / "results" / "evidence"


STAGES = ("search", "final", "cost", "clock", "sweep", "proximal", "table")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence")
    parser.add_argument("stage", choices=(*STAGES, "all"))
    parser.add_argument("--data", metavar="SOURCE", help="omniglot:PATH")
    parser.add_argument("--out", metavar="DIR", type=Path, default=RESULTS)
    parser.add_argument("--workers", metavar="N", type=int, default=os.cpu_count())
    parser.add_argument("--without-kernels", action="store_true", help="train without them, too")
    args = parser.parse_args()
    print(*info.headline(), sep="\n", flush=True)
    if args.stage != "table" and not args.without_kernels:
        try:
            kernels.require("cpu")
        except kernels.Missing as refusal:
            parser.error(str(refusal))
    if args.stage != "table" and not args.data:
        parser.error("--data is needed for training: omniglot:PATH")
    with Workers(args.workers) as workers:
        for stage in STAGES if args.stage == "all" else (args.stage,):
            if stage == "search":
                _search(args, workers)
            elif stage == "table":
                print(write_table(args.out))
            else:
                _judge(stage, args, workers)


def _search(args: argparse.Namespace, workers: Workers) -> None:
    path = args.out / "search.jsonl"
    names: set[str] = set()  # of the rounds so far: later ones do not tell what these try
    for number in range(ROUNDS):
        names |= execute(plain_search(number), args.data, path, workers)
        best = best_of([entry for entry in read(path) if entry["name"] in names])
        configs = {key: entry["config"] for key, entry in best.items()}
        names |= execute(dmlap_search(number, configs), args.data, path, workers)


def _judge(stage: str, args: argparse.Namespace, workers: Workers) -> None:
    """The stages that take what the search found best."""
    best = {key: entry["config"] for key, entry in best_of(read(args.out / "search.jsonl")).items()}
    if len(best) < len(LOSS_OPTIONS) * len(METHODS):
        raise SystemExit(f"{stage} needs the whole search in {args.out}: run search first")
    cost = args.out / "cost.json"
    if stage == "cost":
        measure_cost(best, args.data, cost)
        return
    if stage == "clock":
        if not cost.exists():
            raise SystemExit(f"clock needs {cost}: run cost first")
        runs = clock_runs(best, json.loads(cost.read_text())["ratios"])
    else:
        runs = {"final": final_runs, "sweep": sweep_runs, "proximal": proximal_runs}[stage](best)
    execute(runs, args.data, args.out / f"{stage}.jsonl", workers)


if __name__ == "__main__":
    main()
