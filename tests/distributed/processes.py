"""Functions run by several processes that gloo connects."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(ranks: int, task: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What ``task(rank, *arguments)`` returns on each rank; the ranks end together."""
    mp.spawn(_start, (ranks, task, folder, arguments), nprocs=ranks, join=True)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def _start(rank: int, ranks: int, task: Callable[..., Any], folder: Path, arguments: tuple) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    join(rank, ranks, folder)
    result = task(rank, *arguments)
    torch.save(result, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def join(rank: int, ranks: int, folder: Path, seconds: float = 60) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=seconds),
    )
