"""What the JSON files of pytest-benchmark say, as `benchmarks.table` asks for it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.candidates import LOSSES
from benchmarks.targets import Target

Entry = dict[str, Any]


class Findings:
    """Entries of one or several files; a later file replaces what an earlier one says.

    A metric is a method from an op, and the numbers of a `Target`, to a number; None where nothing
    was measured.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.machine: Entry = {}
        self.entries: dict[str, dict[tuple[Any, ...], Entry]] = {}
        for path in paths:
            content = json.loads(path.read_text())
            self.machine = content["machine_info"]
            for entry in content["benchmarks"]:
                info = entry["extra_info"]
                key = (info["op"], info["size"], info.get("candidate"))
                found = self.entries.setdefault(info["bench"], {})
                found[key] = info | {"median": entry["stats"]["median"]}

    def op(self, op: str, rows: int, features: int, candidate: str = "ours") -> Entry | None:
        return self.entries.get("ops", {}).get((op, f"{rows} x {features}", candidate))

    def seconds(self, op: str, rows: int, features: int, candidate: str = "ours") -> float | None:
        entry = self.op(op, rows, features, candidate)
        return entry["median"] if entry else None

    def absent(self, op: str, rows: int, features: int, candidate: str) -> str:
        """Why a candidate took no part; empty if it did or nothing was measured."""
        entry = self.op(op, rows, features)
        return entry["absent"].get(candidate, "") if entry else ""

    def times_g(self, op: str, rows: int, features: int) -> float | None:
        entry = self.op(op, rows, features)
        return entry["times_g"] if entry else None

    def over(self, op: str, rows: int, features: int, candidate: str) -> float | None:
        """How many times faster ours is."""
        ours, theirs = (self.seconds(op, rows, features, name) for name in ("ours", candidate))
        return theirs / ours if ours and theirs else None

    def over_eager(self, op: str, rows: int, features: int) -> float | None:
        return self.over(op, rows, features, "eager")

    def over_library(self, op: str, rows: int, features: int) -> float | None:
        return self.over(op, rows, features, "library")

    def of(self, bench: str) -> dict[str, list[Entry]]:
        """The entries of a benchmark by op."""
        found: dict[str, list[Entry]] = {}
        for (op, *_), entry in self.entries.get(bench, {}).items():
            found.setdefault(op, []).append(entry)
        return found

    def _only(self, bench: str, op: str) -> Entry | None:
        return self.of(bench).get(op, [None])[0]

    def peak(self, op: str) -> float | None:
        entry = self._only("scaling", op)
        return entry["peak_mib"] / entry["input_mib"] if entry else None

    def peak_beyond_64(self, op: str) -> float | None:
        entry = self._only("scaling", op)
        return max(0.0, entry["peak_mib"] - 64) / entry["input_mib"] if entry else None

    def spread(self, op: str) -> float | None:
        """By how many per cent the time per pair differs between numbers of rows."""
        entry = self._only("scaling", op)
        if entry is None:
            return None
        found = entry["picoseconds_per_pair"].values()
        return 100 * (max(found) / min(found) - 1)

    def over_faiss(self, op: str, rows: int, features: int) -> float | None:
        for entry in self.of("nearest").get(op, []):
            if (entry["rows"], entry["features"]) == (rows, features):
                return 1 / entry["times_faiss"]
        return None

    def over_plain(self, op: str) -> float | None:
        entry = self._only("training", op)
        return entry["times_plain"] if entry else None

    def measured(self, target: Target) -> dict[str, float | None]:
        """What a target asks for, by op."""
        metric = getattr(self, target.metric)
        return {op: metric(op, *target.arguments) for op in target.ops}

    def losses(self) -> list[str]:
        """Losses of which something was measured, in the order of the table."""
        found = {op for bench in ("ops", "scaling") for op in self.of(bench)}
        return [op for op in LOSSES if op in found]
