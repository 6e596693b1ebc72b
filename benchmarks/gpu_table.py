"""What `benchmarks.gpu` measured, as a page.

python -m benchmarks.gpu_table benchmarks/results/gpu-*.json --page docs/measured-on-gpus.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import FIRST, NO_TIME, SHAPES, ranking_way
from dmlap_kernels.backends.ranking import ranked

OURS = ("triton", "cuda", "torch")
COLUMNS = (*OURS, "eager", "compile", "library")
RULE = ("triton", "cuda", "torch")
Times = dict[str, dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULTS.json")
    parser.add_argument("--page", type=Path, help="write it there")
    arguments = parser.parse_args(argv)
    text = page([json.loads(path.read_text()) for path in arguments.results])
    if arguments.page is None:
        print(text, end="")
    else:
        arguments.page.write_text(text)


def page(contents: Sequence[dict[str, Any]]) -> str:
    lines = [
        "# Measured on GPUs",
        "",
        "Milliseconds of a step, forward and backward, float32: the longer of what the host takes",
        "to ask for it and what the device takes; medians. `torch` is plain PyTorch in bounded",
        "memory, `eager` the B x B code that people write, `library` pytorch-metric-learning,",
        "Inf-CL (`info-nce`) or siglip-kernel. Bold is what `auto` takes. `faster` is the time of",
        "eager code over that; `device` the same of the time of the device alone, which counts",
        "where the host is ahead of it; `memory` eager's over that of what `auto` takes, beyond",
        "the inputs.",
        "[Results](results/commands.md) says how it is measured.",
    ]
    for content in contents:
        parts = (
            f"driver {content['driver']}" if content.get("driver") else "",
            f"PyTorch {content['torch']}",
            f"CUDA {content['cuda']}" if content.get("cuda") else "",
            f"Triton {content['triton']}" if content.get("triton") else "",
            f"dmlap_kernels {revisions(content)}" if content.get("revision") else "",
        )
        lines += ["", f"## {content['device']}", "", f"{', '.join(filter(None, parts))}.", ""]
        if lead := summary(content["results"]):
            lines += [lead, ""]
        for shape in SHAPES:
            lines += of_shape(content["results"], shape)
    lines += ["Printed by `python -m benchmarks.gpu_table`.", ""]
    return "\n".join(lines)


def revisions(content: dict[str, Any]) -> str:
    """The commit, and those of ops that were measured again later."""
    later: dict[str, list[str]] = {}
    for one in content["results"]:
        if "revision" in one and one["op"] not in later.setdefault(one["revision"], []):
            later[one["revision"]].append(one["op"])
    parts = [f"{revision} ({', '.join(ops)})" for revision, ops in later.items()]
    return " and ".join([content["revision"], *parts])


def by_op(results: Sequence[dict[str, Any]], shape: tuple[int, int]) -> dict[str, Times]:
    """Of each op the whole step of each candidate, or why there is none."""
    found: dict[str, Times] = {}
    for one in results:
        if (one["rows"], one["features"]) != shape or one["op"] == "product":
            continue
        if "absent" in one or one["way"] == ranking_way(one["op"]):
            found.setdefault(one["op"], {})[one["candidate"]] = one
    return found


def taken(times: Times) -> str | None:
    """What ``auto`` takes."""
    seconds = {name: times[name]["seconds"] for name in OURS if "seconds" in times.get(name, {})}
    return ranked(seconds, RULE)[0] if seconds else None


def gains(results: Sequence[dict[str, Any]], shape: tuple[int, int]) -> list[float]:
    """Of each op the time of eager code over that of what ``auto`` takes."""
    found = []
    for times in by_op(results, shape).values():
        mine, eager = taken(times), times.get("eager", {})
        if mine is not None and "seconds" in eager:
            found.append(eager["seconds"] / times[mine]["seconds"])
    return sorted(found)


def summary(results: Sequence[dict[str, Any]]) -> str:
    parts = []
    for shape in FIRST:
        if found := gains(results, shape):
            middle = found[len(found) // 2]
            parts.append(
                f"{shape[0]:,} x {shape[1]}: {found[0]:.2g} to {found[-1]:.2g} times as fast as "
                f"eager code, {middle:.2g} in the middle"
            )
    return "; ".join(parts) + "." if parts else ""


def of_shape(results: Sequence[dict[str, Any]], shape: tuple[int, int]) -> list[str]:
    rows = []
    for op, times in by_op(results, shape).items():
        mine = taken(times)
        if mine is None:
            continue
        cells = [_cell(times.get(name, {}), name == mine) for name in COLUMNS]
        ours, eager = times[mine], times.get("eager", {})
        cells += [
            _ratio(eager, ours, "seconds"),
            _ratio(eager, ours, "device_seconds"),
            _ratio(eager, ours, "peak_bytes"),
        ]
        rows.append(f"| {op} | " + " | ".join(cells) + " |")
    if not rows:
        return []
    names = [f"`{name}`" for name in OURS] + list(COLUMNS[len(OURS) :])
    head = f"| op | {' | '.join(names)} | faster | device | memory |"
    bar = "| --- |" + " ---: |" * (len(COLUMNS) + 3)
    return [f"### {shape[0]:,} rows of {shape[1]:,} features", "", head, bar, *rows, ""]


def _cell(one: dict[str, Any], best: bool) -> str:
    if "seconds" not in one:
        reason = one.get("absent", "")
        return "no time" if reason == NO_TIME else "wrong" if "self-check" in reason else "-"
    text = f"{1e3 * one['seconds']:.3g}"
    return f"**{text}**" if best else text


def _ratio(above: dict[str, Any], below: dict[str, Any], key: str) -> str:
    if not above.get(key) or not below.get(key):
        return "-"
    return f"{above[key] / below[key]:.2g}"


if __name__ == "__main__":
    main()
