"""Turns the JSON of pytest-benchmark into Markdown tables and a plot.

python -m benchmarks.table RESULTS.json ... [--targets TARGETS.md] [--plot RESULTS.png]

Prints the table of losses; ``--targets`` writes what was reached of `benchmarks.targets`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from benchmarks.candidates import OPS
from benchmarks.findings import Findings
from benchmarks.targets import REASONS, TARGETS, Target

COLOURS = {"library": "C0", "eager": "C1", "compile": "C2", "ours": "C3", "G": "0.6"}
SMALL, LARGE, WIDE = (128, 128), (4096, 128), (4096, 512)


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]], *, left: int = 1) -> str:
    """A table whose first ``left`` columns are text, the others numbers."""
    header = list(header)
    rule = [*["---"] * left, *["---:"] * (len(header) - left)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def figures(value: float, unit: str = "") -> str:
    """Two or three figures: what these measurements are good for."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}{unit}"


def losses_table(findings: Findings) -> str:
    """Every op: time, times of G, speed-ups at both sizes; reasons for what is absent below."""
    notes: list[str] = []

    def against(op: str, size: tuple[int, int], candidate: str) -> str:
        found = findings.over(op, *size, candidate)
        reason = findings.absent(op, *size, candidate)
        if found is not None or not reason:
            return "" if found is None else figures(found, "x")
        if reason not in notes:
            notes.append(reason)
        return f"({notes.index(reason) + 1})"

    rows = []
    for op in OPS:
        ours = findings.seconds(op, *LARGE)
        if ours is None:
            continue
        small = findings.seconds(op, *SMALL)
        speed_ups = [
            against(op, size, name) for size in (SMALL, LARGE) for name in ("eager", "library")
        ]
        times_g = findings.times_g(op, *LARGE)
        rows.append(
            [
                op,
                figures(1e3 * small) if small else "",
                *speed_ups[:2],
                figures(1e3 * ours),
                *speed_ups[2:],
                figures(times_g) if times_g else "",
            ]
        )
    header = ["op", "B = 128, ms", "eager / ours", "library / ours"]
    header += ["B = 4,096, ms", "eager / ours", "library / ours", "x G"]
    below = [f"({i}) absent: {note}." for i, note in enumerate(notes, 1)]
    return "\n\n".join([markdown(header, rows), *below])


def misses(target: Target, value: float, limit: float | None) -> bool:
    return limit is not None and (value < limit if target.more else value > limit)


def verdict(target: Target, found: dict[str, float]) -> tuple[str, str]:
    """The worst measurement, and what it reaches."""
    if not found:
        return "", "not measured"
    worst = min(found, key=found.__getitem__) if target.more else max(found, key=found.__getitem__)
    value = figures(found[worst])
    measured = f"{value} ({worst})" if len(target.ops) > 1 else value
    below = [op for op, v in found.items() if misses(target, v, target.must)]
    if below:
        return measured, "missed" + (f": {', '.join(below)}" if len(target.ops) > 1 else "")
    if target.stretch is None:
        return measured, "must"
    short = [op for op, v in found.items() if misses(target, v, target.stretch)]
    if not short:
        return measured, "stretch"
    reached = f"stretch: {len(found) - len(short)} of {len(found)}"
    return measured, reached if target.must is None else f"must ({reached})"


def limit(target: Target, value: float | None) -> str:
    if value is None:
        return ""
    return f"{'>=' if target.more else '<='} {value:g}{target.unit}"


def targets_table(findings: Findings) -> str:
    """Every target, and below it every loss against the targets of any loss."""
    rows, notes = [], []
    for target in TARGETS:
        found = {op: v for op, v in findings.measured(target).items() if v is not None}
        measured, reached = verdict(target, found)
        limits = [limit(target, target.must), limit(target, target.stretch)]
        missing = [op for op in target.ops if op not in found]
        if found and missing:
            reached += f"; without {', '.join(missing)}"
        rows.append([target.name, *limits, measured, reached])
        if target.name in REASONS:
            notes.append(f"- *{target.name}*: {REASONS[target.name]}")
    header = ["row", "must", "stretch", "worst measured", "reached"]
    parts = [markdown(header, rows, left=5), *(["\n".join(notes)] if notes else [])]
    return "\n\n".join([*parts, every_loss(findings)])


def every_loss(findings: Findings) -> str:
    """Losses by row, numbers that miss their must in bold."""
    shown = [t for t in TARGETS if len(t.ops) > 10]
    of_g = [t for t in TARGETS if t.metric == "times_g"]
    rows = []
    for op in findings.losses():
        cells = []
        for size in (LARGE, WIDE):
            value = findings.times_g(op, *size)
            held = [t for t in of_g if op in t.ops and t.arguments == size]
            missed = value is not None and any(misses(t, value, t.must) for t in held)
            cells.append(_cell(value, missed))
        for target in shown:
            value = findings.measured(target)[op]
            cells.append(_cell(value, value is not None and misses(target, value, target.must)))
        rows.append([op, *cells])
    header = ["loss", "x G, D = 128", "x G, D = 512", "x eager, B = 128", "x library, B = 4,096"]
    header += ["peak beyond 64 MiB, x input", "peak, x input", "time per pair apart, %"]
    return markdown(header, rows)


def _cell(value: float | None, bold: bool) -> str:
    text = "" if value is None else figures(value)
    return f"**{text}**" if bold else text


def other_tables(findings: Findings) -> str:
    """What has no target: references, and the cost of a call."""
    parts = []
    if references := findings.of("references"):
        anchors = sorted({e["anchors"] for entries in references.values() for e in entries})
        rows = []
        for op, entries in references.items():
            by_anchors = {e["anchors"]: figures(e["times_self"]) for e in entries}
            rows.append([op, *(by_anchors.get(n, "") for n in anchors)])
        parts += [
            "Anchors against 100,000 references: time per pair, relative to the time per visited "
            "pair within a batch of 4,096.",
            markdown(["loss", *(f"{n} anchors" for n in anchors)], rows),
        ]
    if overhead := findings.of("overhead"):
        rows = []
        for op, entries in overhead.items():
            for entry in sorted(entries, key=lambda e: e["rows"]):
                us = entry["microseconds"]
                cells = [us[k] for k in ("forward", "both", "empty forward", "empty both")]
                rows.append([op, str(entry["rows"]), *(f"{cell:.0f}" for cell in cells)])
        header = ["loss", "B", "forward", "forward + backward"]
        header += ["empty function, forward", "empty function, both"]
        parts += ["Microseconds of a call, D = 128.", markdown(header, rows)]
    return "\n\n".join(parts)


def write_targets(findings: Findings, path: Path) -> None:
    machine = findings.machine
    where = (
        f"{machine['cpu'].get('brand_raw', 'CPU')}, {machine['threads']} threads, torch "
        f"{machine['torch']}, float32, forward and backward. G is the time of "
        "`torch.mm(x, x.T, out=buffer)` on the same rows; medians of interleaved calls."
    )
    origin = "Written by `python -m benchmarks.table`; reasons come from `benchmarks/targets.py`."
    tables = [targets_table(findings), other_tables(findings)]
    parts = ["# Numbers to reach", origin, where, *tables]
    path.write_text("\n\n".join(part for part in parts if part) + "\n")


def plot(findings: Findings, path: Path) -> None:
    """Milliseconds of every candidate on a logarithmic axis, one line an op, one panel a size."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    ops = [op for op in reversed(OPS) if findings.seconds(op, *LARGE)]
    figure = plt.figure(figsize=(10, 0.3 * len(ops) + 1.2))
    figure.subplots(1, 2, sharey=True)
    for axis, (rows, features) in zip(figure.axes, (SMALL, LARGE), strict=True):
        for candidate, colour in COLOURS.items():
            times = {op: findings.seconds(op, rows, features, candidate) for op in ops}
            points = [(1e3 * t, i) for i, t in enumerate(times.values()) if t]
            if points:
                marker = "|" if candidate == "G" else "o"
                axis.plot(*zip(*points, strict=True), marker, color=colour, label=candidate)
        axis.set(xscale="log", xlabel="ms", title=f"B = {rows:,}, D = {features}")
        axis.grid(alpha=0.3)
    figure.axes[0].set_yticks(range(len(ops)), ops)
    figure.axes[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "results", type=Path, nargs="+", help="files written by --benchmark-json; later ones win"
    )
    parser.add_argument("--targets", type=Path, help="also write what was reached to this .md")
    parser.add_argument("--plot", type=Path, help="also draw the times into this PNG")
    arguments = parser.parse_args()
    findings = Findings(arguments.results)
    print(losses_table(findings))
    if arguments.targets:
        write_targets(findings, arguments.targets)
    if arguments.plot:
        plot(findings, arguments.plot)


if __name__ == "__main__":
    main()
