"""A loss of the global batch on several processes of this machine, by gather and by ring.

``python -m benchmarks.ranks [--ranks 8] [--rows 64] [--features 32]`` compares value and gradient
with one process, and counts the bytes of embeddings that a rank receives.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from dmlap_kernels import fused_sup_con_loss
from dmlap_kernels.distributed import EXCHANGES, global_batch
from dmlap_kernels.ranks import Ranks
from dmlap_kernels.ring import Ring

STEPS = 3


def batch(rows: int, features: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(rows, features, generator=g), torch.arange(rows) // 4


class Received:
    """Bytes of rows with features that arrive at this rank."""

    def __init__(self) -> None:
        self.bytes = 0
        for owner, name in ((Ranks, "gather"), (Ranks, "scatter_sum"), (Ring, "_pass_on")):
            setattr(owner, name, self.counted(name, getattr(owner, name)))

    def counted(self, name: str, method: Any) -> Any:
        def call(me: Any, rows: Tensor, sizes: Any) -> Any:
            found = method(me, rows, sizes)
            arrived = found[1] if name == "_pass_on" else rows if name == "scatter_sum" else found
            own = 0 if name == "_pass_on" else arrived.nbytes // dist.get_world_size()
            self.bytes += (arrived.nbytes - own) if arrived.ndim == 2 else 0
            return found

        return call


def work(rank: int, ranks: int, rows: int, features: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    received, (x, labels) = Received(), batch(ranks * rows, features)
    own = slice(rank * rows, (rank + 1) * rows)
    whole = x.clone().requires_grad_()
    expected = fused_sup_con_loss(whole, labels)
    expected.backward()
    for exchange in EXCHANGES:
        loss = global_batch(fused_sup_con_loss, gradients="sum", exchange=exchange)
        before = 0.0
        for step in range(STEPS):
            mine = x[own].clone().requires_grad_()
            dist.barrier()
            received.bytes, before = 0, time.perf_counter()
            value = loss(mine, labels[own], backend="torch")
            value.backward()
            assert mine.grad is not None and whole.grad is not None, step
        taken = time.perf_counter() - before
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(mine.grad, whole.grad[own], rtol=1e-4, atol=1e-6)
        if rank == 0:
            table = 4 * ranks * rows * features
            told = f"{received.bytes:,} bytes, {received.bytes / table:.2f} times the embeddings"
            print(f"{exchange}: as one process; a rank receives {told}; {1e3 * taken:.0f} ms")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("ranks", 8), ("rows", 64), ("features", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments = given.ranks, given.rows, given.features, str(Path(folder))
        mp.spawn(work, arguments, nprocs=given.ranks, join=True)


if __name__ == "__main__":
    main()
