"""What a step costs the host, without a device: ours with launches that do nothing, beside eager.

    python -m benchmarks.host [--rounds 50] [--ops OP ...]

Both sides are whole steps, forward and backward, of so few rows on the CPU that nothing takes time
but asking for it; a batch of 128 rows, or of 4,096, asks for the same operations. Ours is the
`triton` backend as for a chip of capability 9.0: its kernels are compiled, looked up at every
launch, and handed to a driver that does nothing; the first run compiles them, which Triton keeps.
Steps take turns; medians. Left out of both is what the driver of a GPU takes to launch, so that the
operations of each side stand beside the times. (Tensors of the meta device are no measure: most of
their operators are Python, which takes fifty times as long.)
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

import dmlap_kernels
from benchmarks.candidates import LOSSES, with_gradient
from benchmarks.counts import Counted
from dmlap_kernels.backends import registry

Step = Callable[[], Any]
# Of four classes. `triton` goes by panels from 32 features on.
ROWS, FEATURES = 16, 32


class Host(NamedTuple):
    """Of a loss, by candidate: seconds of the host, and operations asked for, or why not."""

    op: str
    seconds: dict[str, float]
    operations: dict[str, int]
    absent: dict[str, str]

    @property
    def faster(self) -> float | None:
        """Eager's time over ours."""
        known = self.seconds
        return known["eager"] / known["triton"] if len(known) == 2 else None


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--ops", nargs="+", choices=[*LOSSES], default=[*LOSSES], metavar="OP")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(render([measured(op, arguments.rounds) for op in arguments.ops]))


def render(found: Sequence[Host]) -> str:
    lines = [
        "Microseconds of the host to ask for a step, forward and backward, and in parentheses the",
        "operations of PyTorch and launches of kernels.",
        "",
        "| op | `triton` | eager | eager / `triton` |",
        "| --- | ---: | ---: | ---: |",
    ]
    for one in found:
        cells = [
            f"{1e6 * one.seconds[name]:.0f} ({one.operations[name]})"
            if name in one.seconds
            else "-"
            for name in ("triton", "eager")
        ]
        faster = "-" if one.faster is None else f"{one.faster:.2g}"
        lines.append(f"| {one.op} | {' | '.join(cells)} | {faster} |")
    return "\n".join(lines)


def measured(op: str, rounds: int) -> Host:
    found = Host(op, {}, {}, {})
    times: dict[str, list[float]] = {}
    steps: dict[str, Step] = {}
    with nowhere() as launched:
        for name in ("triton", "eager"):
            try:
                step = step_of(op, name)
                step()  # Compiles.
                step()  # What it found is looked up from now on.
                launched.clear()
                with Counted() as seen:
                    step()
            except RuntimeError as error:
                found.absent[name] = str(error).splitlines()[0]
                continue
            found.operations[name] = round(seen.total.operations) + len(launched)
            steps[name], times[name] = step, []
        for _ in range(rounds):
            for name, step in steps.items():
                begin = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - begin)
            launched.clear()
    found.seconds.update({name: statistics.median(taken) for name, taken in times.items()})
    return found


def step_of(op: str, name: str) -> Step:
    """Forward and backward of a loss, by `triton` or by eager code."""
    row = LOSSES[op]
    batch = row.batch(ROWS, FEATURES)
    options = row.settings(batch.x)
    function: Callable[..., Tensor] = row.eager
    if name == "triton":
        options |= row.own | {"backend": "triton"}
        function = getattr(dmlap_kernels, row.function)
    return with_gradient(functools.partial(function, **options), batch)


@contextlib.contextmanager
def nowhere() -> Iterator[list[str]]:
    """As on a machine with a GPU, whose driver does nothing; names of what was launched."""
    from triton.runtime import driver

    from dmlap_kernels.backends.triton import configurations, kinds
    from dmlap_kernels.backends.triton.triton_backend import TritonBackend

    backend = TritonBackend
    patches = [
        (driver, "_active" if hasattr(driver, "_active") else "active", _driver()),
        (configurations, "capability_of", lambda device: (9, 0)),
        (configurations, "_multiprocessors", lambda device: 132),
        (backend, "unavailable", lambda self: None),
        (backend, "device_types", lambda self: ("cpu",)),
        (registry, "_chosen", {}),
        # What is compiled here is launched nowhere, and of no use elsewhere.
        (kinds, "_kinds", {}),
        (kinds, "_tables", {}),
    ]
    with contextlib.ExitStack() as stack:
        for place, name, what in patches:
            stack.enter_context(mock.patch.object(place, name, what))
        _launched.clear()
        yield _launched


# Kernels outlive what they were compiled in, and note their launches here.
_launched: list[str] = []


def _driver() -> Any:
    """What Triton asks of a driver."""
    from triton.backends.compiler import GPUTarget

    class Launcher:
        def __init__(self, src: Any, metadata: Any) -> None:
            self.name = metadata.name

        def __call__(self, *arguments: Any) -> None:
            _launched.append(self.name)

    utils = SimpleNamespace(
        load_binary=lambda *_: (1, 1, 32, 0, 1024),
        get_device_properties=lambda _: {"max_shared_mem": 232448},
        unload_module=lambda _: None,
    )
    return SimpleNamespace(
        utils=utils,
        launcher_cls=Launcher,
        get_current_device=lambda: 0,
        get_current_stream=lambda _: 17,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_active_torch_device=lambda: torch.device("cpu"),
    )


if __name__ == "__main__":
    main()
