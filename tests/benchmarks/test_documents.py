"""Figures in README and documentation are those that the benchmarks' own command prints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import swap_table
from benchmarks.findings import Findings
from benchmarks.table import losses_table

ROOT = Path(__file__).resolve().parents[2]
PRINTED = losses_table(Findings([ROOT / "benchmarks" / "results" / "cpu.json"]))


def test_the_table_of_all_ops() -> None:
    assert PRINTED in (ROOT / "docs" / "benchmarks.md").read_text()


def test_the_rows_of_the_readme() -> None:
    """The columns of B = 4,096: ours, eager and library over ours."""
    printed = {
        tuple(cell.strip() for cell in row.split("|")[5:8])
        for row in PRINTED.splitlines()
        if row.startswith("| ")
    }
    row = r"^\| [^|]+ \| ([\d.]+) \| ([\d.]+x) \| ([\d.]+x) \|$"
    told = re.findall(row, (ROOT / "README.md").read_text(), re.M)
    assert len(told) >= 5
    assert set(told) <= printed


@pytest.mark.parametrize("bench", swap_table.BENCHES)
def test_the_tables_of_swaps(bench: str) -> None:
    content = json.loads((ROOT / "benchmarks" / "results" / "swap.json").read_text())
    library, _ = swap_table.BENCHES[bench]
    page = (ROOT / "docs" / f"{library}.md").read_text()
    table = swap_table.table(content, bench)
    assert table.count("\n") > 5 and table in page
