"""The ranks that train one encoder together, and what they exchange besides their loss."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dmlap_kernels.ranks import Ranks
from dmlap_kernels.trainer.batches import Batch
from dmlap_kernels.trainer.seeds import generator

T = TypeVar("T")
# Numbers that are added up over the ranks at a time.
_BUCKET = 2**23


class RankGroup:
    """All ranks of `torch.distributed`, seen from one of them; or a process of its own.

    Every method but `device` and `sizes` must be called by all ranks in the same order. What is
    said of tensors on a GPU goes by the backend of GPUs, all else by gloo, for which no GPU is
    waited for.

    Attributes:
        rank: of this process, 0 to ``count - 1``.
        count: of processes.
    """

    def __init__(self) -> None:
        self._ranks = Ranks.of(None)
        self.rank = 0 if self._ranks is None else self._ranks.rank
        self.count = 1 if self._ranks is None else self._ranks.count
        self._control = None if self._ranks is None else _gloo()
        self._orders: dict[tuple[int, int], Tensor] = {}

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    @property
    def place(self) -> tuple[int, int]:
        """Rank and number of ranks."""
        return self.rank, self.count

    def device(self, name: str) -> str:
        """The device of this rank, where ``name`` leaves open which GPU it is.

        Raises:
            ValueError: the machine has fewer GPUs than processes.
        """
        if self.count == 1 or name not in ("auto", "cuda") or not torch.cuda.is_available():
            return name
        gpus = torch.cuda.device_count()
        local = int(os.environ.get("LOCAL_RANK", self.rank % gpus))
        if local >= gpus:
            raise ValueError(
                f"device must be of this machine for each of its processes, got {name!r} for "
                f"process {local + 1} of a machine with {gpus} GPUs: start fewer, or say cpu"
            )
        return f"cuda:{local}"

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is True on one rank at least."""
        if self._ranks is None:
            return flag
        told = torch.tensor([flag], dtype=torch.int32, device="cpu")
        with self._ranks.exchange("whether to stop"):
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self._control)
        return bool(told)

    def by_first(self, function: Callable[[], T]) -> T:
        """What ``function`` returns or raises on rank 0, the only one that calls it."""
        if self._ranks is None:
            return function()
        told: list[Any] = [None]
        if self.first:
            try:
                told = [(function(), None)]
            except Exception as error:
                told = [(None, _picklable(error))]
        with self._ranks.exchange("what the first rank found"):
            dist.broadcast_object_list(told, src=0, group=self._control, device=torch.device("cpu"))
        found, refusal = told[0]
        if refusal is not None:
            raise refusal
        return found

    def all(self, value: T) -> list[T]:
        """The ``value`` of every rank."""
        if self._ranks is None:
            return [value]
        found: list[Any] = [None] * self.count
        with self._ranks.exchange("what each rank found"):
            dist.all_gather_object(found, value, group=self._control)
        return found

    def require_same(self, **values: Any) -> None:
        """Raise ValueError, naming what differs between ranks."""
        for rank, others in enumerate(self.all(values)):
            other = [name for name, value in values.items() if others[name] != value]
            if other:
                raise ValueError(
                    f"{', '.join(other)} must be the same for all processes, but ranks "
                    f"{min(rank, self.rank)} and {max(rank, self.rank)} have others"
                )

    def sizes(self, rows: int) -> list[int]:
        """How many of ``rows`` each rank gets."""
        return [rows * (r + 1) // self.count - rows * r // self.count for r in range(self.count)]

    def own(self, rows: int) -> slice:
        """Which of ``rows`` this rank gets."""
        return slice(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)

    def gather(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows (B, ...) of all ranks in their order (N, ...), without a gradient."""
        return rows if self._ranks is None else self._ranks.gather(rows, sizes)

    def whole(self, batch: Batch, rows: Tensor) -> Tensor:
        """Rows (B, ...) in the order of ``batch``, of which each rank has its part; no gradient."""
        if self._ranks is None:
            return rows.detach()
        shape = len(batch.labels), batch.representatives
        parts = [batch.rows_of(rank, self.count) for rank in range(self.count)]
        gathered = self.gather(rows, [len(part) for part in parts])
        if shape not in self._orders:
            self._orders = {shape: torch.cat(parts).argsort().to(rows.device)}
        return gathered[self._orders[shape]]

    def check_batch(self, rows: int, representatives: int) -> None:
        """Raise ValueError unless every rank has a sample of a batch."""
        if rows - representatives < self.count:
            raise ValueError(
                "classes_per_batch and samples_per_class must give each process a sample beside "
                f"the representatives, got {rows - representatives} for {self.count} processes"
            )

    def add_up(self, numbers: Tensor) -> Tensor:
        """Their sums over the ranks."""
        return numbers if self._ranks is None else self._ranks.add_up(numbers)

    def as_first(self, tensors: Sequence[Tensor]) -> None:
        """Make them what they are on rank 0."""
        if self._ranks is None:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in bucket])
            with self._ranks.exchange("weights"):
                dist.broadcast(flat, src=0)
            _copy_back(flat, bucket)

    @contextlib.contextmanager
    def own_randomness(
        self, seed: int, step: int, part: int, device: torch.device
    ) -> Iterator[None]:
        """Draws of its own from torch's generators on each rank, where there are several.

        Afterwards the generators are where they were, on all ranks alike.
        """
        if self._ranks is None:
            yield
            return
        own = generator(seed, "ranks", step, self.rank, part=part).initial_seed()
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, device_type="cuda"):
            torch.manual_seed(own)
            yield


class GradientSum:
    """Adds up the gradients of parameters over the ranks.

    Args:
        ranks: that have a part of each gradient.
        parameters: the same on all of them.
    """

    def __init__(self, ranks: RankGroup, parameters: Sequence[nn.Parameter]) -> None:
        self._group, self._parameters = ranks, list(parameters)
        self._learned: list[bool] | None = None

    @torch.no_grad()
    def __call__(self) -> None:
        """Do so, in place.

        Raises:
            RuntimeError: a parameter has a gradient that had none in the first step.
        """
        ranks = self._group._ranks
        if ranks is None:
            return
        here = [p.grad is not None for p in self._parameters]
        if self._learned is None:
            # A parameter that one rank alone has learned from has a gradient on all.
            self._learned = [any(flags) for flags in zip(*self._group.all(here), strict=True)]
        if any(mine and not known for mine, known in zip(here, self._learned, strict=True)):
            raise RuntimeError(
                "with several processes the same parameters of the encoder must have gradients "
                "in every step"
            )
        gradients = []
        for parameter, known in zip(self._parameters, self._learned, strict=True):
            if known and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if known:
                assert parameter.grad is not None
                gradients.append(parameter.grad)
        with ranks.exchange("gradients"):
            pending = []
            for bucket in _buckets(gradients):
                flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
                pending.append((dist.all_reduce(flat, async_op=True), flat, bucket))
            for work, flat, bucket in pending:
                work.wait()
                _copy_back(flat, bucket)


class SameBuffers:
    """Makes the buffers of a module's parts in training mode, such as running statistics, those of
    rank 0."""

    def __init__(self, ranks: RankGroup, module: nn.Module) -> None:
        self._ranks, self._module = ranks, module

    @torch.no_grad()
    def __call__(self) -> None:
        if self._ranks.count == 1:
            return
        changing = [
            buffer
            for part in self._module.modules()
            if part.training
            for buffer in part.buffers(recurse=False)
        ]
        self._ranks.as_first(changing)


def _gloo() -> Any:
    """The group in which ranks exchange what lies on the CPU; None for that of all tensors."""
    if "gloo" in dist.get_backend_config().lower():
        return None
    world = dist.group.WORLD
    # Made once: every rank must take part.
    if getattr(world, "_dmlap_control", None) is None:
        world._dmlap_control = dist.new_group(backend="gloo")  # type: ignore[union-attr]
    return world._dmlap_control  # type: ignore[union-attr]


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(str(error))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype and device together, up to some size."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for alike in kinds.values():
        bucket: list[Tensor] = []
        size = 0
        for tensor in alike:
            if bucket and size + tensor.numel() > _BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += tensor.numel()
        yield bucket


def _copy_back(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        # In place and past the version counter, as a graph may hold a buffer.
        tensor.data.copy_(part.view(tensor.shape))
