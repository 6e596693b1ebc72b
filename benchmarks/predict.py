"""A prediction, not a measurement: what a step would take on GPUs that nobody here has.

    python -m benchmarks.predict [--shapes 128x128 4096x128] [--chips H100 ...] [--ops nt-xent ...]
        [--page docs/predictions.md]

From the operations, bytes and products of a step, which `benchmarks.counts` counts without a GPU,
and the ceilings that the vendor publishes for a chip. Ours and eager PyTorch go through the same
model, so that its errors are alike on both sides:

    host   = HOST for each operation
    device = FLOOR for each operation + bytes / bandwidth + flops / rate of products
    time   = the longer of the two

What it leaves out stands in `LEFT_OUT`. Measurements take its place as they come.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import candidates, counts
from benchmarks.batch import Absent
from benchmarks.candidates import LOSSES, PAIRED, SEARCHES
from benchmarks.counts import Cost

# Assumed, the same for everybody: seconds of the host to ask for an operation, and of the device to
# begin and end one, however small.
HOST, FLOOR = 5e-6, 2e-6
SHAPES = ((128, 128), (1024, 512), (4096, 128), (32768, 512))
NAMES = ("triton", "torch", "eager")
OPS = (*LOSSES, *PAIRED, *SEARCHES)


class Chip(NamedTuple):
    """Published ceilings: flops a second of float32 and of TF32 products without sparsity, bytes a
    second of memory, and the document that says so."""

    float32: float
    tf32: float
    memory: float
    source: str


CHIPS = {
    "A100": Chip(19.5e12, 156e12, 2.039e12, "NVIDIA A100 Tensor Core GPU datasheet, 80 GB SXM"),
    "H100": Chip(67e12, 494.7e12, 3.35e12, "NVIDIA H100 Tensor Core GPU datasheet, SXM"),
    "H200": Chip(67e12, 494.7e12, 4.8e12, "NVIDIA H200 Tensor Core GPU datasheet, SXM"),
    "B200": Chip(80e12, 1100e12, 8e12, "NVIDIA Blackwell Architecture Technical Brief, HGX B200"),
    "RTX 4090": Chip(82.6e12, 82.6e12, 1.008e12, "NVIDIA Ada GPU Architecture whitepaper"),
}
LEFT_OUT = (
    "caches: matrices that stay in the L2 cache are read faster than their bytes say",
    "how near code comes to a ceiling: everything is taken to reach it, and nothing does",
    "arithmetic beside products: exponentials, comparisons, reductions",
    "waiting: what reads a value on the host, such as `nonzero` in eager code, stops the queue",
    "the backend `cuda`, whose launches are made in C++, `torch.compile`, and CUDA graphs, in "
    "which the host has nothing to do",
    "that a launch of `triton` costs the host more than an operation of PyTorch",
    "compilation and the self-check at the first call",
    "room: eager code at 32,768 rows needs tens of GiB; it is carried on from 1,024 rows",
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ops", nargs="*", default=list(OPS), choices=OPS)
    parser.add_argument("--chips", nargs="*", default=list(CHIPS), choices=CHIPS)
    parser.add_argument("--shapes", nargs="*", type=_shape, default=SHAPES, help="ROWSxFEATURES")
    parser.add_argument("--page", type=Path, help="write the page of the documentation")
    arguments = parser.parse_args(argv)
    text = page(arguments.ops, arguments.chips, arguments.shapes)
    if arguments.page is None:
        print(text, end="")
    else:
        arguments.page.write_text(text)
        print(f"wrote {arguments.page}")


def _shape(text: str) -> tuple[int, int]:
    rows, features = text.split("x")
    return int(rows), int(features)


@functools.cache
def cost(op: str, name: str, rows: int, features: int) -> Cost:
    """Of a step by a backend or by eager PyTorch; raises `Absent`."""
    if name != "eager":
        return counts.of_backend(op, name, rows, features)

    def step(count: int) -> Any:
        if op in PAIRED:
            return candidates.loss_step(PAIRED[op], "eager", PAIRED[op].batch(count, features))
        return candidates.make(op, "eager", count, features)

    return counts.of_eager(step, rows)


def seconds(of: Cost, chip: Chip, precision: str = "highest") -> float:
    """Products in full float32 are CUDA cores' by the library, three of TF32 in our kernels."""
    full = precision == "highest"
    library = of.flops / (chip.float32 if full else chip.tf32)
    fused = of.fused / (chip.tf32 / 3 if full else chip.tf32)
    device = FLOOR * of.operations + of.bytes / chip.memory + library + fused
    return max(HOST * of.operations, device)


def page(ops: Sequence[str], chips: Sequence[str], shapes: Sequence[tuple[int, int]]) -> str:
    lines = [
        "# Predictions for GPUs",
        "",
        "**Nothing on this page was measured.** [One GPU](measured-on-gpus.md) was. This",
        "is what the operations, bytes and products of a step, counted without a GPU, would take",
        "at the ceilings that the vendor publishes. Measurements take its place as they come:",
        "`bash benchmarks/gpu.sh OUT`, or `dmlap calibrate` for `auto`.",
        "",
        f"An operation costs the host {1e6 * HOST:.0f} us and the device {1e6 * FLOOR:.0f} us:",
        "both are assumed, the same for all. A step takes the longer of what the host takes and",
        "what the device takes: its operations, its bytes over the bandwidth, and its products",
        "over their rate, which is that of float32 for plain PyTorch and a third of TF32 for",
        "products inside `triton`, which takes them in three parts. `eager` is the B x B code that",
        "people write. Forward and backward, float32.",
        "",
        "It leaves out",
        "",
        *(f"- {one}." for one in LEFT_OUT),
        "",
        "| chip | float32, TFLOPS | TF32, TFLOPS | memory, GB/s | source |",
        "| --- | ---: | ---: | ---: | --- |",
        *(_ceilings(name) for name in chips),
    ]
    for rows, features in shapes:
        lines += ["", f"## {rows:,} rows of {features:,} features", ""]
        lines += table(ops, chips, rows, features)
    lines += ["", "Printed by `python -m benchmarks.predict`.", ""]
    return "\n".join(lines)


def _ceilings(name: str) -> str:
    chip = CHIPS[name]
    rates = (chip.float32 / 1e12, chip.tf32 / 1e12, chip.memory / 1e9)
    return f"| {name} | " + " | ".join(f"{rate:,.4g}" for rate in rates) + f" | {chip.source} |"


def table(ops: Sequence[str], chips: Sequence[str], rows: int, features: int) -> list[str]:
    """A line an op: operations of a step, and on each chip milliseconds."""
    head = f"operations: {' / '.join(NAMES)}"
    lines = [
        f"Milliseconds of `{'`, `'.join(NAMES)}`.",
        "",
        f"| op | {head} | " + " | ".join(chips) + " |",
        "| --- | ---: |" + " ---: |" * len(chips),
    ]
    for op in ops:
        found = [_cost(op, name, rows, features) for name in NAMES]
        precision = (LOSSES | PAIRED)[op].precision if op not in SEARCHES else "highest"
        counted = " / ".join("-" if one is None else f"{one.operations:,.0f}" for one in found)
        cells = [
            " / ".join(
                "-" if one is None else f"{1e3 * seconds(one, CHIPS[chip], precision):.3g}"
                for one in found
            )
            for chip in chips
        ]
        lines.append(f"| {op} | {counted} | " + " | ".join(cells) + " |")
    return lines


def _cost(op: str, name: str, rows: int, features: int) -> Cost | None:
    try:
        return cost(op, name, rows, features)
    except Absent:
        return None


if __name__ == "__main__":
    main()
