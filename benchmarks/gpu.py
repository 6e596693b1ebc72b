"""Ops on a GPU: ours, the plain ways to write them, and cuBLAS making the same product.

    python -m benchmarks.gpu --out DIR [--seconds 240] [--ops nt-xent info-nce nearest]
        [--shapes 4096x128 32768x512] [--device cpu] [--without-kernels] [--compile-all]

Shape by shape, small ones first, and op by op: `triton`, `cuda`, eager PyTorch, torch.compile of
it, a library, and `torch` (plain PyTorch in bounded memory). The library is
pytorch-metric-learning, or Inf-CL's kernels for ``info-nce``, which is NT-Xent over two sets as
Inf-CL has it: references, one positive an anchor, products in TF32 for everybody; and
siglip-kernel's for ``siglip-pairs``, images against texts. What is not here
is absent, with the reason, and so is what fails the self-check of `auto`; a candidate that takes 20
times as long as the best is stopped after one call. So when time runs out there is an order for the
shapes that people train with. Times are medians: ``host_seconds`` to ask for a step,
``device_seconds`` between CUDA events with the queue full, ``seconds`` the longer of the two;
memory is what a step allocates beyond its inputs. G is ``torch.mm(x, y.T, out=buffer)``, one
product that materialises every pair. The share of the roofline is what the products that a step
cannot do without (one forward, two more backward) would take at the rate of the fastest G of the
run in their precision, over the time it takes. Writes gpu.json and gpu.png; `benchmarks.order`
makes of gpu.json what ``auto`` goes by. ``--device cpu`` measures the CPU's backends the same way,
times only. Where none of our kernels for the device run, nothing is measured, unless
``--without-kernels`` asks for the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import subprocess
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
from dmlap_kernels.backends import orders, selfcheck
from dmlap_kernels.backends.device.families import FAMILIES
from dmlap_kernels.backends.precision import matmul_precision as precision_now
from dmlap_kernels.backends.registry import backends, why_not
from dmlap_kernels.calibration import spec_of

ROWS = LOSSES | PAIRED
OPS = (*ROWS, *SEARCHES)
# Rows and features, in the order of their work.
SHAPES = [
    (128, 128),
    (1024, 512),
    (4096, 128),
    (8192, 64),
    (16384, 1024),
    (32768, 512),
    (131072, 128),
]
# Those that people train with, and that are compiled for ahead, by many processes.
FIRST = tuple(SHAPES[:3])
PLAIN = ("eager", "compile", "library", "torch")
# Seconds that go into a measurement, and why there is none where they have run out.
BUDGET = 0.04
NO_TIME = "no time was left"
STOPPED = "far behind"
# A candidate that takes so many times as long as the best is stopped. What it took with fewer pairs
# foretells that, where a call would take long, within a factor: small steps wait for the host.
BEHIND, FORETOLD, LONG = 20.0, 4.0, 1.0
SAVE_EVERY = 5.0  # seconds
# torch.compile takes half a minute an op: some ops, and not before small batches are measured.
COMPILED_FROM = 4096
# The plain ways hold about this many matrices of all pairs.
_MATRICES = 8
_PRODUCTS = {"forward": 1, "backward": 2, "both": 3}
# Seconds of the step that ranks candidates, by op and shape, then by candidate.
Ranked = dict[tuple[str, tuple[int, int]], dict[str, float]]

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
    parser.add_argument(
        "--compile-all", action="store_true", help="torch.compile of every op, half a minute each"
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
    until = device.clock() + arguments.seconds
    compiled = device.compile_ahead(compile_op, [(op, FIRST) for op in arguments.ops])
    print(f"compiled {compiled} of {len(arguments.ops)} ops ahead", flush=True)
    results: list[Result] = []
    saved = time.monotonic()
    for one in measurements(
        device, arguments.ops, arguments.shapes, until, compile_all=arguments.compile_all
    ):
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
    about = {"type": device.type, "torch": torch.__version__, "revision": revision()}
    about |= device.about()
    (out / "gpu.json").write_text(json.dumps(about | {"results": results}, indent=1))


@functools.cache
def revision() -> str:
    """The commit that is measured: ``DMLAP_REVISION``, where a copy has no git of its own."""
    if given := os.environ.get("DMLAP_REVISION"):
        return given
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:
        return ""
    return found.stdout.strip()


def measurements(
    device: Device,
    ops: Sequence[str],
    shapes: Sequence[Shape],
    until: float,
    *,
    compile_all: bool = False,
) -> Iterator[Result]:
    """Shape by shape and op by op, so that what was begun is finished when time runs out;
    torch.compile after all ops, as it takes the time of many."""
    precisions = sorted({_precision(op) for op in ops})
    turns = [(op, name) for op in ops for name in (*device.ours, *PLAIN) if name != "compile"]
    turns += [(op, "compile") for op in ops]
    ranked: Ranked = {}
    for shape in shapes:
        sizes = dict(zip(("rows", "features"), shape, strict=True))
        if device.clock() < until:
            for precision in precisions:
                yield sizes | product(device, *shape, precision)
        for op, candidate in turns:
            about = {"op": op, "candidate": candidate, "precision": _precision(op)} | sizes
            if reason := absent(device, op, candidate, shape, compile_all):
                yield about | {"absent": reason}
                continue
            if device.clock() > until:
                yield about | {"absent": NO_TIME}
                continue
            if words := foretold(op, candidate, shape, ranked, until - device.clock()):
                yield about | words
                continue
            for found in tried(device, op, candidate, shape, ranked):
                yield about | found


def tried(
    device: Device, op: str, candidate: str, shape: Shape, ranked: Ranked
) -> Iterator[Result]:
    """One candidate's results, or why there are none; one that fails costs no other its times."""
    mine = ranked.setdefault((op, shape), {})
    limit = BEHIND * min(mine.values(), default=math.inf)
    try:
        with matmul_precision(_precision(op)):
            for found in measure(device, op, candidate, shape, limit):
                if found["way"] == ranking_way(op):
                    mine[candidate] = found["seconds"]
                yield found
    except Absent as reason:
        yield {"absent": str(reason)}
    except torch.OutOfMemoryError:
        yield {"absent": "out of memory"}
    except RuntimeError as error:
        yield {"absent": f"failed: {error}"}
    device.tidy()


def ranking_way(op: str) -> str:
    return "forward" if op in SEARCHES else "both"


def foretold(op: str, candidate: str, shape: Shape, ranked: Ranked, left: float) -> Result | None:
    """What is said instead of a measurement, where the candidate's last step says how it ends."""
    before = [
        (rows * rows * features, by_name[candidate])
        for (of, (rows, features)), by_name in ranked.items()
        if of == op and candidate in by_name and (rows, features) != shape
    ]
    if not before:
        return None
    work, seconds = before[-1]
    expected = seconds * max(1.0, shape[0] ** 2 * shape[1] / work)
    best = min(ranked.get((op, shape), {}).values(), default=math.inf)
    if expected > LONG and expected > FORETOLD * BEHIND * best:
        return {"absent": f"{STOPPED}: about {expected:.0f} s were foretold", "stopped": True}
    # The step that compiles, and at least one more.
    return {"absent": NO_TIME} if expected > FORETOLD * left else None


def absent(device: Device, op: str, candidate: str, shape: Shape, compile_all: bool) -> str | None:
    """Why a candidate cannot take part, whatever time is left."""
    if candidate == "compile" and not compile_all:
        if op not in ROWS or not ROWS[op].compiled or shape[0] < COMPILED_FROM:
            return "compiled with --compile-all only"
    if candidate not in backends():
        return None
    call = spec_of(loss_of(op)), device.type, torch.float32
    if reason := why_not(backends()[candidate], *call):
        return reason
    return unproved(device.type, op, candidate)


@functools.cache
def unproved(device_type: str, op: str, candidate: str) -> str | None:
    """What `auto` would find wrong with a kernel, whose times would then mean nothing."""
    backend, judge = backends()[candidate], backends()["torch"]
    if not selfcheck.needed(backend):
        return None
    index = torch.cuda.current_device() if device_type == "cuda" else None
    device = torch.device(device_type, index)
    name = None if op in SEARCHES else loss_of(op)
    spec = None if name is None else spec_of(name)
    found = selfcheck.verdict(backend, judge, spec, torch.float32, device, run=True)
    return None if found is None or found.passed else f"failed its self-check: {found.why}"


def compile_op(task: tuple[str, Sequence[Shape]]) -> None:
    """In a process of its own: leaves the kernels of an op in Triton's cache, and its self-check in
    ours. What fails will fail again where it is measured."""
    op, shapes = task
    device = DEVICES["cuda"]()
    with contextlib.suppress(Exception), matmul_precision(_precision(op)):
        for candidate in device.ours:
            if absent(device, op, candidate, shapes[0], False) is None and candidate == "triton":
                for shape in shapes:
                    for _ in measure(device, op, candidate, shape, limit=0.0):
                        pass


def loss_of(op: str) -> str:
    """The name that ``auto`` knows it by: ``contrastive`` of ``contrastive-2%``, the longest name
    of a loss that it begins with."""
    if op in SEARCHES:
        return orders.SEARCH
    name = op.replace("-", "_")
    if op in PAIRED:
        name = PAIRED[op].function.removeprefix("fused_").removesuffix("_loss")
    return max((loss for loss in FAMILIES if name.startswith(loss)), key=len)


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
        step = always(lambda: torch.mm(x[:block], x.T, out=buffer))
        seconds = timed(device, step, BUDGET).device
    about = {"op": "product", "candidate": "G", "way": "both", "precision": precision}
    return about | {"seconds": seconds * rows / block, "flops": 2.0 * rows * rows * features}


def measure(
    device: Device, op: str, candidate: str, shape: Shape, limit: float = math.inf
) -> Iterator[Result]:
    """A search, or both, forward and backward; of what takes longer than ``limit`` no more than
    the first. Raises `Absent`."""
    batch = batch_of(op, *shape, device.type)
    rows, columns = len(batch.x), len(batch.leaves[-1])
    if candidate in ("eager", "compile", "library"):
        if _MATRICES * 4 * rows * columns > device.free():
            raise Absent(f"{_MATRICES} matrices of {rows} x {columns} have no room")
    try:
        ways = searching(op, candidate, batch) if op in SEARCHES else losing(op, candidate, batch)
        for way, prepare in ways.items():
            seconds = timed(device, prepare, BUDGET, limit)
            stopped = {"stopped": True} if seconds.step > limit else {}
            products = _PRODUCTS[way] * 2.0 * rows * columns * shape[1]
            times = {"host_seconds": seconds.host, "device_seconds": seconds.device}
            found = {"way": way, "seconds": seconds.step} | times | {"products": products} | stopped
            yield found | ({} if stopped else device.peak(prepare()))
            if stopped:
                return
    except ValueError as refusal:
        if candidate not in backends():
            raise
        raise Absent(str(refusal)) from refusal


def losing(op: str, candidate: str, batch: Batch) -> dict[str, Callable[[], Step]]:
    loss = function(ROWS[op], candidate, batch)

    def backward() -> Step:
        value = loss(*batch.tensors)  # each time: a second backward has more to do than the first
        return lambda: torch.autograd.grad(value, batch.leaves)

    return {
        "both": always(lambda: torch.autograd.grad(loss(*batch.tensors), batch.leaves)),
        "forward": always(lambda: loss(*batch.tensors)),
        "backward": backward,
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
        whole = [r for r in here if r["way"] == ranking_way(r["op"])]
        for candidate in (*device.ours, *PLAIN):
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
