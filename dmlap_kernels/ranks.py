"""The ranks that share a batch, and what they exchange: sizes, rows, sums."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmlap_kernels.problem import EMBEDDING_DTYPES

# Named so since PyTorch 2.13, which warns of the older names.
_gather_into: Any = getattr(dist, "all_gather_single", None)
_gather_into = _gather_into or getattr(dist, "all_gather_into_tensor", None)
_scatter_into: Any = getattr(dist, "reduce_scatter_single", None)
_scatter_into = _scatter_into or getattr(dist, "reduce_scatter_tensor", None)


class LostRank(RuntimeError):
    """Ranks could not exchange something: one has ended, or does something else."""


@dataclass(frozen=True)
class Ranks:
    """The ranks of a process group, seen from one of them."""

    group: Any
    rank: int
    count: int

    @staticmethod
    def of(group: Any) -> Ranks | None:
        """None where there is one rank alone."""
        if not dist.is_available() or not dist.is_initialized():
            return None
        rank, count = dist.get_rank(group), dist.get_world_size(group)
        if rank < 0:
            raise ValueError("group must have this rank as a member, got one without it")
        return None if count == 1 else Ranks(group, rank, count)

    def sizes(self, rows: Tensor, even: bool) -> list[int]:
        """How many rows each rank has; waits for a device unless they are ``even``."""
        if even:
            return [rows.shape[0]] * self.count
        mine = (*rows.shape, EMBEDDING_DTYPES.index(rows.dtype))
        told = torch.tensor(mine, device=rows.device)
        every = told.new_empty(self.count * 3)
        with self.exchange("the shapes of the embeddings"):
            _gather_into(every, told, group=self.group)
        found = every.view(self.count, 3).tolist()
        for rank, other in enumerate(found):
            if other[1:] != found[0][1:]:
                kinds = [f"{one[1]} of {EMBEDDING_DTYPES[one[2]]}" for one in (found[0], other)]
                raise ValueError(
                    "embeddings must have the same features and dtype on every rank, got "
                    f"{kinds[0]} on rank 0 and {kinds[1]} on rank {rank}"
                )
        return [one[0] for one in found]

    def own(self, sizes: Sequence[int]) -> slice:
        """Where the rows of this rank are among those of all."""
        first = sum(sizes[: self.rank])
        return slice(first, first + sizes[self.rank])

    def gather(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows (B, ...) of all ranks in their order (N, ...)."""
        most = max(sizes)
        out = rows.new_empty((self.count * most, *rows.shape[1:]))
        with self.exchange("embeddings"):
            _gather_into(out, _padded(rows.detach(), most), group=self.group)
        if min(sizes) == most:
            return out
        parts = out.view(self.count, most, *rows.shape[1:])
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def scatter_sum(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """Of rows (N, ...) that every rank has a part of, the sums of this rank's own (B, ...)."""
        with self.exchange("gradients"):
            if rows.device.type == "cpu":  # gloo has no reduce-scatter
                total = rows.clone()
                dist.all_reduce(total, group=self.group)
                return total[self.own(sizes)]
            most = max(sizes)
            parts = [_padded(part, most) for part in rows.split(list(sizes))]
            mine = rows.new_empty((most, *rows.shape[1:]))
            _scatter_into(mine, torch.cat(parts), group=self.group)
            return mine[: sizes[self.rank]]

    def add_up(self, numbers: Tensor) -> Tensor:
        """Their sums over the ranks."""
        total = numbers.clone(memory_format=torch.contiguous_format)  # NCCL takes no other
        with self.exchange("the sums of the loss"):
            dist.all_reduce(total, group=self.group)
        return total

    def most(self, number: int, device: torch.device) -> int:
        """The largest number of the ranks; waits for a device."""
        largest = torch.tensor(number, device=device)
        with self.exchange("the sizes of their lists"):
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group)
        return int(largest)

    @contextlib.contextmanager
    def exchange(self, what: str) -> Iterator[None]:
        """Says who could not exchange what where the process group fails."""
        try:
            yield
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise LostRank(
                f"rank {self.rank} of {self.count} could not exchange {what} for a loss of the "
                f"global batch: another rank has ended, or calls something else ({reason})"
            ) from error


def all_gather(ranks: Ranks, rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """`Ranks.gather`, whose gradient returns to the ranks that own the rows."""
    return _AllGather.apply(rows, ranks, tuple(sizes))


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks, sizes: tuple[int, ...]) -> Tensor:
        ctx.ranks, ctx.sizes = ranks, sizes
        return ranks.gather(rows, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.ranks.scatter_sum(grad.contiguous(), ctx.sizes), None, None


def _padded(rows: Tensor, count: int) -> Tensor:
    """Rows (B, ...) followed by zeros, (count, ...)."""
    missing = count - rows.shape[0]
    if missing == 0:
        return rows.contiguous()
    return torch.cat((rows, rows.new_zeros((missing, *rows.shape[1:]))))
