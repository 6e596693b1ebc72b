"""``dmlap calibrate``: its options, its progress bar and its table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch

from dmlap_kernels import calibration
from dmlap_kernels.extras import require


def add_calibrate(commands: Any, run: Callable[[argparse.Namespace], int]) -> None:
    parser = commands.add_parser(
        "calibrate", help="measure the backends on this chip, for backend='auto' to go by"
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=_seconds,
        default=60.0,
        help="to measure for (default: 60); self-checks and compilation come on top",
    )
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        help="whose chip, such as cuda:1 (default: the current GPU, cpu where there is none)",
    )
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0, got {text!r}")
    return value


def run_calibrate(args: argparse.Namespace) -> int:
    """The exit status: 0 if ``auto`` goes by what was measured from now on."""
    device = _device(args.device)
    tqdm = require("tqdm", purpose="the progress bar").tqdm
    with tqdm(total=calibration.total(), unit="op", disable=None, dynamic_ncols=True) as bar:

        def advance(words: str) -> None:
            bar.set_postfix_str(words, refresh=False)
            bar.update(1)

        found = calibration.calibrate(device, args.seconds, advance=advance)
    print("milliseconds of a step, forward and backward; * the fastest, > at least")
    print(found.table())
    for what, why in found.failed.items():
        print(f"not measured, its self-check failed: {what}: {why}")
    if found.path is not None:
        print(f"\nwritten to {found.path}; backend='auto' goes by it on this chip")
        return 0
    reason = "the cache directory cannot be written (DMLAP_CACHE_DIR names another)"
    if not found.orders:
        reason = "nothing was measured on two backends (--seconds gives more time)"
    print(f"dmlap calibrate: no orders were kept: {reason}", file=sys.stderr)
    return 1


def _device(given: str | None) -> torch.device:
    if given is None:
        given = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(given)
    except RuntimeError:
        raise ValueError(f"--device must be a device such as cuda:0, got {given!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {given!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(f"--device {given}: {count} CUDA devices are visible")
        if ":" not in given:
            device = torch.device("cuda", torch.cuda.current_device())
    return device
