"""Turns the JSON of pytest-benchmark into the README's Markdown table, and a plot.

python -m benchmarks.table RESULTS.json [--plot RESULTS.png]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

Row = dict[str, dict[str, Any]]
COLUMNS = (
    "op",
    "B",
    "D",
    "ours, ms",
    "x G",
    "eager / ours",
    "compile / ours",
    "library / ours",
    "peak MiB ours",
    "peak MiB eager",
    "peak MiB library",
)


COLOURS = {"library": "C0", "eager": "C1", "compile": "C2", "ours": "C3", "G": "0.6"}


def load(path: Path) -> dict[tuple[str, int, int], Row]:
    """Candidates by (op, rows, features), in the order of the file."""
    table: dict[tuple[str, int, int], Row] = {}
    for entry in json.loads(path.read_text())["benchmarks"]:
        info = entry["extra_info"]
        key = (info["op"], info["rows"], info["features"])
        table.setdefault(key, {})[info["candidate"]] = info | {"median": entry["stats"]["median"]}
    return table


def speed_up(row: Row, candidate: str) -> str:
    if candidate not in row:
        return ""
    return f"{row[candidate]['median'] / row['ours']['median']:.1f}x"


def peak(row: Row, candidate: str) -> str:
    mib = row.get(candidate, {}).get("peak_mib")
    return "" if mib is None else f"{mib:.0f}"


def markdown(table: dict[tuple[str, int, int], Row]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    for (op, rows, features), row in table.items():
        cells = [op, f"{rows:,}", str(features), f"{1e3 * row['ours']['median']:.2f}"]
        cells.append(f"{row['ours']['times_g']:.2f}")
        cells += [speed_up(row, name) for name in ("eager", "compile", "library")]
        cells += [peak(row, name) for name in ("ours", "eager", "library")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(table: dict[tuple[str, int, int], Row], path: Path) -> None:
    """Time over B on logarithmic axes, one panel for each op, at the smallest D measured."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    features = min(key[2] for key in table)
    ops = list(dict.fromkeys(key[0] for key in table))
    sizes = sorted({key[1] for key in table})
    figure = plt.figure(figsize=(3 * len(ops), 3.2))
    figure.subplots(1, len(ops), sharey=True)
    for axis, op in zip(figure.axes, ops, strict=True):
        for candidate, colour in COLOURS.items():
            points = [
                (key[1], 1e3 * row[candidate]["median"])
                for key, row in table.items()
                if key[0] == op and key[2] == features and candidate in row
            ]
            style = {"linestyle": "--"} if candidate == "G" else {"marker": "o"}
            if points:
                axis.loglog(
                    *zip(*sorted(points), strict=True), label=candidate, color=colour, **style
                )
        axis.set(title=op, xlabel="rows B")
        axis.grid(alpha=0.3)
        axis.set_xticks(sizes, [f"{rows:,}" for rows in sizes], minor=False)
        axis.minorticks_off()
    figure.axes[0].set_ylabel(f"ms, D = {features}")
    figure.axes[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="file written by --benchmark-json")
    parser.add_argument("--plot", type=Path, help="also draw the times into this PNG")
    arguments = parser.parse_args()
    table = load(arguments.results)
    print(markdown(table))
    if arguments.plot:
        plot(table, arguments.plot)


if __name__ == "__main__":
    main()
