"""Turns measured times of backends into what ``backend="auto"`` goes by.

    python -m benchmarks.order RESULTS.json [--write]

RESULTS.json is written by `benchmarks.gpu`, on any device. Prints ``order.json`` with the orders of
that chip in place of those it had; ``--write`` puts them into the package. For every op and shape
the fastest backend, forward and backward, comes first; those within 5 % of it go by the rule. A
call counts for the nearest shape that was measured, by rows and then by features. What was stopped
far behind comes last. Shapes for which time ran out before all backends had their turn say nothing.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.candidates import LOSSES, SEARCHES
from benchmarks.gpu import NO_TIME, loss_of, ranking_way
from dmlap_kernels.backends import orders
from dmlap_kernels.backends.ranking import Shape, Times, entries
from dmlap_kernels.backends.registry import NAMES


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("--write", action="store_true", help=f"into {orders.PATH}")
    arguments = parser.parse_args(argv)
    content = json.loads(arguments.results.read_text())
    if "results" not in content:
        raise SystemExit(f"error: {arguments.results} has no times of backends by name")
    table = proposed(content, orders.shipped())
    text = dumps(table)
    if arguments.write:
        orders.PATH.write_text(text)
        print(f"wrote {orders.PATH}")
    else:
        print(text, end="")


def proposed(content: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """A copy of the table with the orders of the chip on which ``content`` was measured."""
    device = content["type"]
    of_device = table[device]
    found = {
        loss: entries(by_shape, of_device["rule"])
        for loss, by_shape in sorted(times(content["results"]).items())
    }
    if not found:
        raise SystemExit("error: no op was measured on two backends")
    measured = of_device["measured"] | {content["device"]: found}
    return table | {device: of_device | {"measured": measured}}


def times(results: list[dict[str, Any]]) -> dict[str, dict[Shape, Times]]:
    """By the name that ``auto`` knows a loss by, and by shape; of ops that are one loss at several
    settings the geometric mean."""
    of_ops: dict[tuple[str, Shape], dict[str, Times]] = defaultdict(lambda: defaultdict(dict))
    unfinished = set()
    for one in results:
        op, backend = one["op"], one["candidate"]
        if backend not in NAMES or op not in (*LOSSES, *SEARCHES):
            continue
        key = loss_of(op), (one["rows"], one["features"])
        if one.get("absent") == NO_TIME:
            unfinished.add(key)
        elif one.get("absent") and one.get("stopped"):
            of_ops[key][op][backend] = math.inf
        elif one.get("way") == ranking_way(op):
            of_ops[key][op][backend] = one["seconds"]
    found: dict[str, dict[Shape, Times]] = defaultdict(dict)
    for key, by_op in of_ops.items():
        everywhere = set.intersection(*(set(seconds) for seconds in by_op.values()))
        if len(everywhere) > 1 and key not in unfinished:
            loss, (rows, features) = key
            shape = pair_rows(next(iter(by_op)), rows), features
            found[loss][shape] = {
                name: math.exp(sum(math.log(s[name]) for s in by_op.values()) / len(by_op))
                for name in everywhere
            }
    return dict(found)


def pair_rows(op: str, rows: int) -> int:
    """The rows of a batch with as many pairs as the op has: proxies are fewer, or more."""
    if op in SEARCHES or not LOSSES[op].proxies:
        return rows
    return math.isqrt(rows * len(LOSSES[op].batch(rows, 1).leaves[-1]))


def dumps(table: dict[str, Any]) -> str:
    """A line for each op, so that changes are read in a diff."""
    lines = []
    for key, value in table.items():
        if key == "about" or not value["measured"]:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
            continue
        chips = [
            f"      {json.dumps(chip)}: {{\n"
            + ",\n".join(f"        {json.dumps(op)}: {json.dumps(of)}" for op, of in ops.items())
            + "\n      }"
            for chip, ops in value["measured"].items()
        ]
        head = f'  {json.dumps(key)}: {{"rule": {json.dumps(value["rule"])}, "measured": {{\n'
        lines.append(head + ",\n".join(chips) + "\n  }}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main()
