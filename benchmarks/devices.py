"""Where `benchmarks.gpu` measures: what a device is called, its clocks and its memory.

A step takes the host some time to ask for, and the device some time to do; among other steps it
takes the longer of the two. Both are measured, apart from each other.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import torch

from benchmarks.measure import call_time

Step = Callable[[], Any]


class Seconds(NamedTuple):
    """Of a step; where they cannot be told apart, both are those of the step."""

    host: float
    device: float

    @property
    def step(self) -> float:
        return max(self)


class Gpu:
    """The current CUDA device; its times are between CUDA events."""

    type = "cuda"
    ours = ("triton", "cuda")
    # Of the clock that `torch.cuda._sleep` counts, about; and what is slept longer than the host
    # took, so that all of a step is in the queue when the device begins it.
    CYCLES, AHEAD, LONGEST_SLEEP = 2e9, 1.3, 0.05
    AHEAD_SECONDS = 60.0

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise SystemExit("error: benchmarks.gpu needs an NVIDIA GPU, and PyTorch sees none")

    def about(self) -> dict[str, Any]:
        return {
            "device": torch.cuda.get_device_name(),
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "triton": version("triton"),
        }

    def free(self) -> int:
        """Bytes."""
        return torch.cuda.mem_get_info()[0]

    def clock(self) -> float:
        return time.monotonic()

    def compile_ahead(self, work: Callable[[Any], None], tasks: Sequence[Any]) -> int:
        """How many tasks were done by processes beside this one, before time is measured."""
        workers = min(8, (os.cpu_count() or 1) - 1)
        if workers < 2:
            return 0
        pool = multiprocessing.get_context("spawn").Pool(workers)
        done = 0
        try:
            found = pool.imap_unordered(work, tasks)
            until = time.monotonic() + self.AHEAD_SECONDS
            for _ in tasks:
                found.next(timeout=max(0.1, until - time.monotonic()))
                done += 1
        except Exception as error:  # each compiles for itself then
            print(f"compiling ahead ended: {type(error).__name__}: {error}", flush=True)
        finally:
            pool.terminate()
        return done

    def warm(self, step: Step) -> None:
        """The first call, which may compile."""
        step()
        torch.cuda.synchronize()

    def seconds(self, prepare: Callable[[], Step]) -> Seconds:
        step = prepare()
        torch.cuda.synchronize()
        asked = time.perf_counter()
        step()
        host = time.perf_counter() - asked
        step = prepare()
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int(self.CYCLES * self.AHEAD * min(host, self.LONGEST_SLEEP)))
        begin.record()
        step()
        end.record()
        end.synchronize()
        return Seconds(host, begin.elapsed_time(end) / 1000)

    def peak(self, step: Step) -> dict[str, int]:
        """Bytes that a step allocates beyond what there was."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return {"peak_bytes": torch.cuda.max_memory_allocated() - before}

    def tidy(self) -> None:
        torch.cuda.empty_cache()


def _driver() -> str:
    """Its version, empty where nvidia-smi does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[0].strip()
    except OSError:
        return ""


class Cpu:
    """This machine's processors; memory is the business of `benchmarks.peak`."""

    type = "cpu"
    ours = ("cpu",)

    def about(self) -> dict[str, Any]:
        return {"device": "cpu", "threads": torch.get_num_threads()}

    def free(self) -> int:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def clock(self) -> float:
        return time.monotonic()

    def compile_ahead(self, work: Callable[[Any], None], tasks: Sequence[Any]) -> int:
        return 0

    def warm(self, step: Step) -> None:
        step()

    def seconds(self, prepare: Callable[[], Step]) -> Seconds:
        taken = call_time(prepare())
        return Seconds(taken, taken)

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


def timed(
    device: Gpu | Cpu, prepare: Callable[[], Step], budget: float, limit: float = float("inf")
) -> Seconds:
    """Medians of what ``prepare`` returns, of as many as fit into a budget; of a step that takes
    longer than ``limit``, the first that does not compile."""
    device.warm(prepare())
    times = [device.seconds(prepare)]
    fewest, most = CALLS
    spent = times[0].step
    while times[0].step < min(LONG, limit) and len(times) < most:
        if len(times) >= fewest and spent >= budget:
            break
        times.append(device.seconds(prepare))
        spent += times[-1].step
    return Seconds(*map(statistics.median, zip(*times, strict=True)))
