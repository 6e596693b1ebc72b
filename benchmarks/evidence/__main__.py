"""The command line of the evidence."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from benchmarks.evidence.cost import measure_cost
from benchmarks.evidence.runs import best_of, execute, read
from benchmarks.evidence.settings import (
    clock_runs,
    dmlap_search,
    final_runs,
    plain_search,
    sweep_runs,
)
from benchmarks.evidence.table import write_table

RESULTS = Path(__file__).parents[1] / "results" / "evidence"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence")
    parser.add_argument("stage", choices=("search", "final", "cost", "clock", "sweep", "table"))
    parser.add_argument("--data", metavar="SOURCE", help="omniglot:PATH")
    parser.add_argument("--out", metavar="DIR", type=Path, default=RESULTS)
    parser.add_argument("--workers", metavar="N", type=int, default=os.cpu_count())
    args = parser.parse_args()
    search = args.out / "search.jsonl"
    if args.stage == "table":
        print(write_table(args.out))
        return
    if not args.data:
        parser.error("--data is needed for training: omniglot:PATH")
    if args.stage == "search":
        execute(plain_search(), args.data, search, args.workers)
        plain = {
            loss: entry["config"] for (loss, _), entry in best_of(_of(search, "plain")).items()
        }
        execute(dmlap_search(plain), args.data, search, args.workers)
        return
    best = {key: entry["config"] for key, entry in best_of(read(search)).items()}
    cost = args.out / "cost.json"
    if args.stage == "cost":
        measure_cost(best, args.data, cost)
        return
    if args.stage == "clock":
        runs = clock_runs(best, json.loads(cost.read_text())["ratios"])
    else:
        runs = final_runs(best) if args.stage == "final" else sweep_runs(best)
    execute(runs, args.data, args.out / f"{args.stage}.jsonl", args.workers)


def _of(path: Path, method: str) -> list[dict]:
    return [entry for entry in read(path) if entry["method"] == method]


if __name__ == "__main__":
    main()
