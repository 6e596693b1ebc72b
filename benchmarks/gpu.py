"""Ops on a GPU: ours, the plain ways to write them, and cuBLAS making the same product.

    python -m benchmarks.gpu --out DIR [--seconds 240] [--ops nt-xent info-nce nearest]
        [--shapes 4096x128 32768x512] [--device cpu] [--without-kernels]

Candidates are our backends, `torch` (plain PyTorch, bounded memory) among them, eager PyTorch,
torch.compile of it, and a library: pytorch-metric-learning, or Inf-CL's kernels for ``info-nce``,
which is NT-Xent over two sets as Inf-CL has it: references, one positive an anchor, products in
TF32 for everybody, or siglip-kernel's for ``siglip-pairs``. Times are medians over CUDA events;
memory is what a step allocates beyond its inputs. G is ``torch.mm(x, y.T, out=buffer)``, one
product that materialises every pair. The share of the roofline is what the products that a step
cannot do without (one forward, two more backward) would take at the rate of the fastest G of the
run in their precision, over the time it takes. Writes gpu.json and gpu.png; `benchmarks.order`
makes of gpu.json what ``auto`` goes by.
``--device cpu`` measures the CPU's backends the same way, times only. Where none of our kernels
for the device run, nothing is measured, unless ``--without-kernels`` asks for the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dmlap_kernels
from benchmarks import eager, kernels
from benchmarks.batch import Absent, Batch
from benchmarks.candidates import LOSSES, NEIGHBOURS, PAIRED, SEARCHES, Loss
from benchmarks.devices import DEVICES, Cpu, Gpu, Step, always, timed
from dmlap_kernels import info
from dmlap_kernels.backends.precision import matmul_precision as precision_now
from dmlap_kernels.backends.registry import backends

ROWS = LOSSES | PAIRED
OPS = (*ROWS, *SEARCHES)
# Rows and features; the first `FIRST` are measured by all before the others are by any.
SHAPES = [
    (4096, 128),
    (32768, 512),
    (1024, 512),
    (128, 128),
    (16384, 1024),
    (8192, 64),
    (131072, 128),
]
FIRST = 2
PLAIN = ("torch", "eager", "library")
# Seconds that go into a measurement, and why there is none where they have run out.
BUDGET = 0.2
NO_TIME = "no time was left"
SAVE_EVERY = 5.0  # seconds
# The plain ways hold about this many matrices of all pairs.
_MATRICES = 8
_PRODUCTS = {"forward": 1, "backward": 2, "both": 3}

Device = Gpu | Cpu
Shape = tuple[int, int]
Result = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=240, help="no measurement begins later")
    parser.add_argument("--ops", nargs="*", default=list(OPS), choices=OPS)
    parser.add_argument("--shapes", nargs="*", type=_shape, default=SHAPES, help="ROWSxFEATURES")
    parser.add_argument("--device", default="cuda", choices=list(DEVICES))
    parser.add_argument(
        "--without-kernels", action="store_true", help="measure the rest all the same"
    )
    arguments = parser.parse_args(argv)
    device = DEVICES[arguments.device]()
    print(*info.headline(), sep="\n", flush=True)
    if not arguments.without_kernels:
        try:
            kernels.require(*device.ours)
        except kernels.Missing as refusal:
            raise SystemExit(f"error: {refusal}") from None
    arguments.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + arguments.seconds
    results: list[Result] = []
    saved = time.monotonic()
    for one in measurements(device, arguments.ops, arguments.shapes, until):
        results.append(one)
        if one.get("absent") != NO_TIME:
            print(json.dumps(one), flush=True)
        if time.monotonic() > saved + SAVE_EVERY:
            save(device, arguments.out, results)
            saved = time.monotonic()
    save(device, arguments.out, results)
    if left := sum(one.get("absent") == NO_TIME for one in results):
        print(f"{left} of {len(results)} were not measured: {NO_TIME}")
    draw(device, results, arguments.out / "gpu.png")


def _shape(text: str) -> Shape:
    rows, features = text.split("x")
    return int(rows), int(features)


def save(device: Device, out: Path, results: list[Result]) -> None:
    """Now and then, so that a run that is cut short leaves what it has."""
    fastest: dict[str, float] = {}
    for one in results:
        if "flops" in one:
            rate = one["flops"] / one["seconds"]
            fastest[one["precision"]] = max(rate, fastest.get(one["precision"], 0))
    for one in results:
        if "products" in one:
            one["roofline"] = one["products"] / fastest[one["precision"]] / one["seconds"]
    about = {"type": device.type, "torch": torch.__version__} | device.about()
    (out / "gpu.json").write_text(json.dumps(about | {"results": results}, indent=1))


def stages(device: Device, shapes: Sequence[Shape]) -> Iterator[tuple[Shape, tuple[str, ...]]]:
    """What is measured one after the other: shapes and candidates. What compiles for long comes
    late, so that there is something of everybody when time runs out."""
    for some in (shapes[:FIRST], shapes[FIRST:]):
        for candidates in ((device.ours[0], *PLAIN), device.ours[1:], ("compile",)):
            for shape in some:
                if candidates:
                    yield shape, candidates


def measurements(
    device: Device, ops: Sequence[str], shapes: Sequence[Shape], until: float
) -> Iterator[Result]:
    precisions = sorted({_precision(op) for op in ops})
    seen: set[Shape] = set()
    for shape, candidates in stages(device, shapes):
        sizes = dict(zip(("rows", "features"), shape, strict=True))
        if shape not in seen and time.monotonic() < until:
            seen.add(shape)
            for precision in precisions:
                yield sizes | product(device, *shape, precision)
        for op in ops:
            for candidate in candidates:
                about = {"op": op, "candidate": candidate, "precision": _precision(op)} | sizes
                if time.monotonic() > until:
                    yield about | {"absent": NO_TIME}
                    continue
                try:
                    with matmul_precision(_precision(op)):
                        for found in measure(device, op, candidate, shape):
                            yield about | found
                except Absent as absent:
                    yield about | {"absent": str(absent)}
                except torch.OutOfMemoryError:
                    yield about | {"absent": "out of memory"}
                except RuntimeError as error:  # one that fails must not cost the others their times
                    yield about | {"absent": f"failed: {error}"}
                device.tidy()


def _precision(op: str) -> str:
    return ROWS[op].precision if op in ROWS else "highest"


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    before = precision_now()
    # The old setting writes the new one, where there is one, of GPU and CPU.
    both = (torch.backends.cuda, torch.backends.mkldnn)
    places = [each.matmul for each in both if hasattr(getattr(each, "matmul", 0), "fp32_precision")]
    new = [place.fp32_precision for place in places]
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        for place, value in zip(places, new, strict=True):
            place.fp32_precision = value


@functools.lru_cache(maxsize=4)
def batch_of(op: str, rows: int, features: int, device_type: str) -> Batch:
    # Searches are among rows as losses without proxies have them.
    batch = ROWS.get(op, LOSSES["triplet-hard"]).batch(rows, features)

    def leaf(one: Tensor | None) -> Tensor | None:
        return None if one is None else one.detach().to(device_type).requires_grad_()

    x = leaf(batch.x)
    assert x is not None
    names = None if batch.proxy_labels is None else batch.proxy_labels.to(device_type)
    labels = batch.labels.to(device_type)
    return Batch(x, labels, batch.classes, leaf(batch.proxies), names)


def product(device: Device, rows: int, features: int, precision: str) -> Result:
    """The yardstick; a block of rows of it where the matrix has no room."""
    x = torch.randn(rows, features, device=device.type)
    block = min(rows, device.free() // 2 // (4 * rows))
    buffer = torch.empty(block, rows, device=device.type)
    with matmul_precision(precision):
        seconds = timed(device, always(lambda: torch.mm(x[:block], x.T, out=buffer)), BUDGET)
    about = {"op": "product", "candidate": "G", "way": "both", "precision": precision}
    return about | {"seconds": seconds * rows / block, "flops": 2.0 * rows * rows * features}


def measure(device: Device, op: str, candidate: str, shape: Shape) -> Iterator[Result]:
    """Forward, backward and both, or a search; raises `Absent`."""
    batch = batch_of(op, *shape, device.type)
    rows, columns = len(batch.x), len(batch.leaves[-1])
    if candidate in ("eager", "compile", "library"):
        if _MATRICES * 4 * rows * columns > device.free():
            raise Absent(f"{_MATRICES} matrices of {rows} x {columns} have no room")
    elif reason := backends()[candidate].unavailable():
        raise Absent(reason)
    try:
        ways = searching(op, candidate, batch) if op in SEARCHES else losing(op, candidate, batch)
    except ValueError as refusal:
        if candidate not in backends():
            raise
        raise Absent(str(refusal)) from refusal
    for way, prepare in ways.items():
        seconds = timed(device, prepare, BUDGET)
        products = _PRODUCTS[way] * 2.0 * rows * columns * shape[1]
        yield {"way": way, "seconds": seconds, "products": products} | device.peak(prepare())


def losing(op: str, candidate: str, batch: Batch) -> dict[str, Callable[[], Step]]:
    loss = function(ROWS[op], candidate, batch)
    loss(*batch.tensors)

    def backward() -> Step:
        value = loss(*batch.tensors)  # each time: a second backward has more to do than the first
        return lambda: torch.autograd.grad(value, batch.leaves)

    return {
        "forward": always(lambda: loss(*batch.tensors)),
        "backward": backward,
        "both": always(lambda: torch.autograd.grad(loss(*batch.tensors), batch.leaves)),
    }


def function(row: Loss, candidate: str, batch: Batch) -> Callable[..., Tensor]:
    settings = row.settings(batch.x)
    if candidate == "library":
        return row.peer(batch, **settings)
    if candidate in ("eager", "compile"):
        # Compiled once: wrapping anew would be timed with every call.
        plain = row.eager if candidate == "eager" else torch.compile(row.eager, dynamic=True)
        return functools.partial(plain, **settings)
    fused = getattr(dmlap_kernels, row.function)
    return functools.partial(fused, **(settings | row.own), backend=candidate)


def searching(op: str, candidate: str, batch: Batch) -> dict[str, Callable[[], Step]]:
    x = batch.x.detach()
    options: dict[str, Any] = {"k": NEIGHBOURS}
    if op == "hard-classes":
        options["margin"] = 1.0
    if candidate == "library":
        raise Absent("no library searches here; bench_nearest.py has faiss")
    if candidate in ("eager", "compile"):
        plain = eager.nearest if op == "nearest" else eager.hard_classes
        plain = plain if candidate == "eager" else torch.compile(plain, dynamic=True)
        step = functools.partial(plain, x, **options)
    elif op == "nearest":
        step = functools.partial(dmlap_kernels.nearest, x, **options, backend=candidate)
    else:
        names = torch.arange(len(x), device=x.device)
        step = functools.partial(dmlap_kernels.hard_classes, x, names, **options, backend=candidate)
    step()
    return {"forward": always(step)}


def draw(device: Device, results: list[Result], path: Path) -> None:
    """Times over G, a panel for each shape; none without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    units = {
        (r["rows"], r["features"], r["precision"]): r["seconds"] for r in results if "flops" in r
    }
    shapes = list(dict.fromkeys(key[:2] for key in units))
    if not shapes:
        return
    figure, axes = plt.subplots(1, len(shapes), figsize=(5 * len(shapes), 5), squeeze=False)
    for axis, shape in zip(axes[0], shapes, strict=True):
        here = [r for r in results if (r["rows"], r["features"]) == shape and "products" in r]
        whole = [r for r in here if r["way"] == ("forward" if r["op"] in SEARCHES else "both")]
        for candidate in (*device.ours, *PLAIN, "compile"):
            mine = [r for r in whole if r["candidate"] == candidate]
            times = [r["seconds"] / units[(*shape, r["precision"])] for r in mine]
            axis.plot([r["op"] for r in mine], times, "o", label=candidate)
        axis.set_title(f"{shape[0]} x {shape[1]}")
        axis.set_yscale("log")
        axis.axhline(1, color="grey")
        axis.tick_params(axis="x", rotation=90)
    axes[0][0].set_ylabel("forward and backward, over one product of all pairs")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main()
