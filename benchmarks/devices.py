"""Where `benchmarks.gpu` measures: what a device is called, its clock and its memory."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.measure import call_time

Step = Callable[[], Any]


class Gpu:
    """The current CUDA device; times are between CUDA events."""

    type = "cuda"
    ours = ("cuda", "triton")

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise SystemExit("error: benchmarks.gpu needs an NVIDIA GPU, and PyTorch sees none")

    def about(self) -> dict[str, Any]:
        return {
            "device": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "triton": version("triton"),
        }

    def free(self) -> int:
        """Bytes."""
        return torch.cuda.mem_get_info()[0]

    def seconds(self, step: Step) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def peak(self, step: Step) -> dict[str, int]:
        """Bytes that a step allocates beyond what there was."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return {"peak_bytes": torch.cuda.max_memory_allocated() - before}

    def tidy(self) -> None:
        torch.cuda.empty_cache()


class Cpu:
    """This machine's processors; memory is the business of `benchmarks.peak`."""

    type = "cpu"
    ours = ("cpu",)

    def about(self) -> dict[str, Any]:
        return {"device": "cpu", "threads": torch.get_num_threads()}

    def free(self) -> int:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def seconds(self, step: Step) -> float:
        return call_time(step)

    def peak(self, step: Step) -> dict[str, int]:
        return {}

    def tidy(self) -> None:
        return None


DEVICES: dict[str, type[Gpu] | type[Cpu]] = {"cuda": Gpu, "cpu": Cpu}
# The first call may compile; of what takes this many seconds one more call is the measurement.
LONG = 1.0
CALLS = 3, 50


def always(step: Step) -> Callable[[], Step]:
    """For `timed`: nothing to prepare."""
    return lambda: step


def timed(device: Gpu | Cpu, prepare: Callable[[], Step], budget: float) -> float:
    """Median seconds of what ``prepare`` returns, of as many as fit into a budget."""
    device.seconds(prepare())
    times = [device.seconds(prepare())]
    fewest, most = CALLS
    while times[0] < LONG and (len(times) < fewest or (sum(times) < budget and len(times) < most)):
        times.append(device.seconds(prepare()))
    return statistics.median(times)
