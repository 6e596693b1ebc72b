"""Losses on a GPU: ours, the plain ways to write them, and cuBLAS making the same product.

    python -m benchmarks.gpu --out DIR [--seconds 240] [--losses nt-xent sup-con]

Times are medians over CUDA events; memory is what a step allocates beyond its inputs. G is
``torch.mm(x, y.T, out=buffer)``, one product that materialises every pair. The share of the
roofline is what the products that a step cannot do without (one forward, two more backward) would
take at the rate of the fastest G of the run, over the time it takes. Writes gpu.json and gpu.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dmlap_kernels
from benchmarks.batch import Absent, Batch, make_batch
from benchmarks.candidates import LOSSES, Loss
from dmlap_kernels.backends.registry import backends

# Rows and features; those that all shall have first.
SHAPES = [
    (4096, 128),
    (32768, 512),
    (1024, 512),
    (128, 128),
    (16384, 1024),
    (8192, 64),
    (131072, 128),
]
OURS = ("cuda", "triton")
OTHERS = ("torch", "eager", "compile", "library")
# The plain ways hold about this many matrices of all pairs.
_MATRICES = 8
_WAYS = ("forward", "backward", "both")
_PRODUCTS = {"forward": 1, "backward": 2, "both": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=240, help="no measurement begins later")
    parser.add_argument("--losses", nargs="*", default=list(LOSSES), choices=list(LOSSES))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: benchmarks.gpu needs an NVIDIA GPU, and PyTorch sees none")
    arguments.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + arguments.seconds
    results: list[dict[str, Any]] = []
    for one in measurements(arguments.losses, until):
        results.append(one)
        print(json.dumps(one), flush=True)
        save(arguments.out, results)
    draw(results, arguments.out / "gpu.png")


def save(out: Path, results: list[dict[str, Any]]) -> None:
    """After every measurement, so that a run that is cut short leaves what it has."""
    fastest = max((r["flops"] / r["seconds"] for r in results if "flops" in r), default=None)
    for one in results:
        if fastest and "products" in one:
            one["roofline"] = one["products"] / fastest / one["seconds"]
    about = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": version("triton"),
        "precision": torch.get_float32_matmul_precision(),
        "results": results,
    }
    (out / "gpu.json").write_text(json.dumps(about, indent=1))


def measurements(losses: list[str], until: float) -> Iterator[dict[str, Any]]:
    for rows, features in SHAPES:
        yield product(rows, features)
        for loss in losses:
            row = LOSSES[loss]
            batch = on_device(make_batch(rows, features, proxies_per_class=row.proxies))
            for candidate in (*OURS, *OTHERS):
                about = {"op": loss, "candidate": candidate, "rows": rows, "features": features}
                if time.monotonic() > until:
                    return
                try:
                    for found in measure(row, candidate, batch):
                        yield about | found
                except Absent as absent:
                    yield about | {"absent": str(absent)}
                except torch.cuda.OutOfMemoryError:
                    yield about | {"absent": "out of memory"}
                torch.cuda.empty_cache()


def on_device(batch: Batch) -> Batch:
    def leaf(rows: Tensor | None) -> Tensor | None:
        return None if rows is None else rows.detach().cuda().requires_grad_()

    x = leaf(batch.x)
    assert x is not None
    names = None if batch.proxy_labels is None else batch.proxy_labels.cuda()
    return Batch(x, batch.labels.cuda(), batch.classes, leaf(batch.proxies), names)


def product(rows: int, features: int) -> dict[str, Any]:
    """The yardstick; a block of rows of it where the matrix has no room."""
    x = torch.randn(rows, features, device="cuda")
    free = torch.cuda.mem_get_info()[0]
    block = min(rows, free // 2 // (4 * rows))
    buffer = torch.empty(block, rows, device="cuda")
    seconds = timed(lambda: torch.mm(x[:block], x.T, out=buffer)) * rows / block
    flops = 2.0 * rows * rows * features
    about = {"op": "product", "candidate": "G", "way": "both", "rows": rows, "features": features}
    return about | {"seconds": seconds, "flops": flops}


def measure(row: Loss, candidate: str, batch: Batch) -> Iterator[dict[str, Any]]:
    """Forward, backward and both; raises `Absent`."""
    rows = len(batch.x)
    columns = rows if batch.proxies is None else len(batch.proxies)
    if candidate in ("eager", "compile", "library"):
        needed = _MATRICES * 4 * rows * columns
        if needed > torch.cuda.mem_get_info()[0]:
            raise Absent(f"{_MATRICES} matrices of {rows} x {columns} have no room")
    loss = function(row, candidate, batch)
    leaves = batch.leaves
    value = loss(*batch.tensors)
    ways: dict[str, Callable[[], Any]] = {
        "forward": lambda: loss(*batch.tensors),
        "backward": lambda: torch.autograd.grad(value, leaves, retain_graph=True),
        "both": lambda: torch.autograd.grad(loss(*batch.tensors), leaves),
    }
    for way in _WAYS:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds = timed(ways[way])
        yield {
            "way": way,
            "seconds": seconds,
            "peak_bytes": torch.cuda.max_memory_allocated() - before,
            "products": _PRODUCTS[way] * 2.0 * rows * columns * batch.x.shape[1],
        }


def function(row: Loss, candidate: str, batch: Batch) -> Callable[..., Tensor]:
    settings = row.settings(batch.x)
    if candidate in ("eager", "compile"):
        # Compiled once: wrapping anew would be timed with every call.
        plain = row.eager if candidate == "eager" else torch.compile(row.eager, dynamic=True)
        return lambda *tensors: plain(*tensors, **settings)
    if candidate == "library":
        return row.peer(batch, **settings)
    if reason := backends()[candidate].unavailable():
        raise Absent(reason)
    fused = getattr(dmlap_kernels, row.function)
    options = settings | row.own | {"backend": candidate}
    try:
        fused(*batch.tensors, **options)
    except ValueError as error:  # a loss that the backend refuses
        raise Absent(str(error)) from error
    return lambda *tensors: fused(*tensors, **options)


def timed(step: Callable[[], Any], budget: float = 0.5) -> float:
    """Median seconds of a step over CUDA events."""
    step()
    torch.cuda.synchronize()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget and len(times) < 50):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return statistics.median(times)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Times over G, a panel for each shape; none without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    yardsticks = {(r["rows"], r["features"]): r["seconds"] for r in results if "flops" in r}
    figure, axes = plt.subplots(1, len(yardsticks), figsize=(5 * len(yardsticks), 5), squeeze=False)
    for axis, (shape, unit) in zip(axes[0], yardsticks.items(), strict=True):
        both = [r for r in results if r.get("way") == "both" and "products" in r]
        here = [r for r in both if (r["rows"], r["features"]) == shape]
        for candidate in (*OURS, *OTHERS):
            mine = [r for r in here if r["candidate"] == candidate]
            axis.plot(
                [r["op"] for r in mine], [r["seconds"] / unit for r in mine], "o", label=candidate
            )
        axis.set_title(f"{shape[0]} x {shape[1]}")
        axis.set_yscale("log")
        axis.axhline(1, color="grey")
        axis.tick_params(axis="x", rotation=90)
    axes[0][0].set_ylabel("forward and backward, over cuBLAS making the product")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
