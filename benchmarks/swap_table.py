"""Tables of training steps before and after a swap of losses, from the JSON of pytest-benchmark.

    python -m pytest benchmarks/bench_swap.py benchmarks/bench_sentence_transformers.py \
        --benchmark-only --benchmark-json=benchmarks/results/swap.json
    python -m benchmarks.swap_table benchmarks/results/swap.json

Milliseconds of ours, and how many times as long theirs take.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.table import figures, markdown

# Of the benchmark: its library, and where it notes ours over theirs.
BENCHES = {
    "swap": ("pytorch-metric-learning", "times_theirs"),
    "sentence-transformers": ("sentence-transformers", "times_before"),
}
Content = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    content = json.loads(parser.parse_args().results.read_text())
    for bench, (library, _) in BENCHES.items():
        print(f"{library}\n\n{table(content, bench)}\n")


def table(content: Content, bench: str) -> str:
    """A row for each loss, with a pair of columns for each number of rows."""
    _, over = BENCHES[bench]
    found: dict[str, dict[int, tuple[float, float | None]]] = {}
    for one in content["benchmarks"]:
        told = one["extra_info"]
        if told["bench"] != bench:
            continue
        of_op = found.setdefault(told["op"].removesuffix(" step"), {})
        of_op[one["params"]["rows"]] = one["stats"]["median"], told.get(over)
    sizes = sorted({rows for of_op in found.values() for rows in of_op})
    header = ["loss", *(text for rows in sizes for text in (f"{rows:,} rows, ms", "theirs"))]
    return markdown(header, ([op, *_cells(of_op, sizes)] for op, of_op in found.items()))


def _cells(of_op: dict[int, tuple[float, float | None]], sizes: list[int]) -> list[str]:
    cells = []
    for rows in sizes:
        seconds, ratio = of_op[rows]
        cells += [figures(1e3 * seconds), "-" if ratio is None else figures(1 / ratio, "x")]
    return cells


if __name__ == "__main__":
    main()
