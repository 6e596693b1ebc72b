"""A command that torchrun starts several times: its process group, and one voice for all."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Seconds that a rank waits for the others.
TIMEOUT = 1800.0

_store: Any = None


def rank_of_environment() -> int:
    """The rank that torchrun gave this process; 0 without torchrun."""
    return int(os.environ.get("RANK", 0)) if "WORLD_SIZE" in os.environ else 0


@contextlib.contextmanager
def torchrun_ranks(timeout: float = TIMEOUT) -> Iterator[None]:
    """Be a rank of the process group of all processes that torchrun started; alone without it.

    Tensors on the CPU go by gloo, those on GPUs by NCCL, each process having the GPU of its number
    on its machine.

    Args:
        timeout: seconds that an exchange waits for the other ranks.
    """
    global _store
    if not timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}")
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ
    if alone or dist.is_initialized():
        yield
        return
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    local = int(os.environ.get("LOCAL_RANK", 0))
    if gpus and local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    patience = timedelta(seconds=timeout)
    store, rank, count = next(dist.rendezvous("env://", timeout=patience))
    _store = dist.PrefixStore("dmlap", store)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpus else "gloo",
        store=dist.PrefixStore("ranks", store),
        rank=rank,
        world_size=count,
        timeout=patience,
    )
    yield
    # Not after an error: what is left of the group may wait for a rank that has ended.
    dist.destroy_process_group()


def says_first(text: str) -> bool:
    """Whether no other rank has said ``text`` before, and this one should."""
    if _store is None:
        return True
    try:
        return _store.add(hashlib.sha256(text.encode()).hexdigest(), 1) == 1
    except RuntimeError:  # torchrun has ended
        return rank_of_environment() == 0
