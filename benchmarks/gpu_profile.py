"""Kernels of a step on a GPU, and products in parts: where the time of the device goes.

    python -m benchmarks.gpu_profile OUT.json [--shapes 4096x128] [--ops sup-con contrastive-all]
        [--candidates triton eager]

Prints for each op, shape and candidate the microseconds of the host to ask for a step and of the
device to make it, by PyTorch's profiler, and the launches; OUT.json has them kernel by kernel. Then
float32 products of two sets of rows: microseconds, and the error over the norm of the result, of
the library's own and of six products of bfloat16 parts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import gpu
from benchmarks.devices import Gpu, Step

STEPS, ASKED = 3, 10


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument("--shapes", nargs="*", type=gpu._shape, default=[(4096, 128)])
    parser.add_argument("--ops", nargs="*", default=list(gpu.ROWS), choices=list(gpu.ROWS))
    parser.add_argument("--candidates", nargs="*", default=["triton", "eager"])
    arguments = parser.parse_args(argv)
    device = Gpu()
    found: list[dict[str, Any]] = []
    for shape in arguments.shapes:
        for op in arguments.ops:
            for candidate in arguments.candidates:
                one = {"op": op, "candidate": candidate, "rows": shape[0], "features": shape[1]}
                if reason := gpu.absent(device, op, candidate, shape, True):
                    found.append(one | {"absent": reason})
                    continue
                with gpu.matmul_precision(gpu._precision(op)):
                    batch = gpu.batch_of(op, *shape, device.type)
                    one |= profiled(gpu.losing(op, candidate, batch)["both"]())
                print(json.dumps({k: v for k, v in one.items() if k != "kernels"}), flush=True)
                found.append(one)
        found.append(products(*shape))
        print(json.dumps(found[-1]), flush=True)
    about = device.about() | {"torch": torch.__version__, "revision": gpu.revision()}
    arguments.out.write_text(json.dumps(about | {"results": found}, indent=1))


def profiled(step: Step) -> dict[str, Any]:
    """Microseconds, and by kernel how often it runs in a step and how long."""
    step()
    hosts = []
    for _ in range(ASKED):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        hosts.append(time.perf_counter() - began)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = {}
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kernel = kernels.setdefault(event.name[:90], [0, 0.0])
            kernel[0] += 1 / STEPS
            kernel[1] += event.device_time_total / STEPS
    return {
        "host_us": 1e6 * statistics.median(hosts),
        "device_us": sum(time for _, time in kernels.values()),
        "launches": round(sum(times for times, _ in kernels.values())),
        "kernels": kernels,
    }


def products(rows: int, features: int) -> dict[str, Any]:
    """Of float32, and of three parts of each row, side by side as `row_kernels` has them."""
    x, y = (torch.randn(rows, features, device="cuda") for _ in range(2))
    true = x.double() @ y.double().T
    wide, depth = [side_by_side(one) for one in (x, y)], features
    ways = {
        "float32": lambda: x @ y.T,
        "bfloat16 parts": lambda: torch.mm(
            wide[0][:, : 6 * depth], wide[1][:, depth:].T, out_dtype=torch.float32
        ),
    }
    found: dict[str, Any] = {"op": "product", "rows": rows, "features": features}
    for name, way in ways.items():
        error = float((way() - true).norm() / true.norm())
        found[name] = {"device_us": profiled(way)["device_us"], "error": error}
    return found


def side_by_side(rows: Tensor) -> Tensor:
    def leading(values: Tensor) -> Tensor:
        return (values.view(torch.int32) & -65536).view(torch.float32)

    first = leading(rows)
    second = leading(rows - first)
    third = rows - first - second
    return torch.cat([first, third, first, second, second, first, first], 1).bfloat16()


if __name__ == "__main__":
    main()
