"""What ranks do beside the table of losses: whole training steps, memories, refusals.

Each function runs on every rank, and returns what a test compares with one process.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import dmlap_kernels
import dmlap_kernels.ranks as exchanges
from dmlap_kernels import fused_contrastive_loss, fused_multi_similarity_loss, ring, ring_lists
from dmlap_kernels.backends.panels import panel
from dmlap_kernels.distributed import EXCHANGES, global_batch
from dmlap_kernels.losses import (
    ContrastiveLoss,
    MarginLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SupConLoss,
    TripletLoss,
)
from dmlap_kernels.memory import CrossBatchMemory
from dmlap_kernels.ring_sweeps import Ring
from tests.distributed import processes
from tests.losses.losses_table import LOSSES, Row

SIZES = (5, 2, 8, 3)
FEATURES, CLASSES = 6, 4
CRITERIA: dict[str, Callable[[], nn.Module]] = {
    "triplet": lambda: TripletLoss(margin=1.0),
    "margin": lambda: MarginLoss(learn_beta=True, num_classes=CLASSES),
    "margin of a margin": lambda: TripletLoss(
        margin=nn.Parameter(torch.tensor(0.5)), mining="all", reduction="mean_nonzero"
    ),
    "temperature": lambda: SupConLoss(temperature=nn.Parameter(torch.tensor(0.2))),
    "proxy_nca": lambda: ProxyNCALoss(CLASSES, FEATURES),
    "proxy_anchor": lambda: ProxyAnchorLoss(CLASSES, FEATURES),
}


def batch(step: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    rows = sum(SIZES)
    return torch.randn(rows, 7, generator=g), torch.randint(0, CLASSES, (rows,), generator=g)


def own(rank: int, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(one.split(SIZES)[rank] for one in tensors)


def model_and(criterion: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(3)
    return nn.Linear(7, FEATURES), CRITERIA[criterion]()


def one_step(model: nn.Module, loss: nn.Module, inputs: tuple[Tensor, Tensor]) -> Tensor:
    value = loss(model(inputs[0]), inputs[1])
    value.backward()
    return value.detach()


def ddp(rank: int) -> dict[str, Any]:
    """A step with every criterion: the value and the averaged gradients."""
    found = {}
    for name in CRITERIA:
        model, loss = model_and(name)
        whole = global_batch(loss)
        trained = DistributedDataParallel(whole) if [*loss.parameters()] else whole
        value = one_step(DistributedDataParallel(model), trained, own(rank, batch()))
        found[name] = value, [p.grad for p in (*model.parameters(), *loss.parameters())]
    return found


def fsdp(rank: int) -> dict[str, Any]:
    """The same with parameters that are in parts."""
    from torch.distributed.fsdp import fully_shard

    found = {}
    for name in ("temperature", "proxy_anchor"):
        model, loss = model_and(name)
        ignored = {p for p in loss.parameters() if p.ndim == 0}
        mesh = dist.init_device_mesh("cpu", (len(SIZES),))
        fully_shard(model, mesh=mesh)
        whole = global_batch(loss)
        if not ignored:
            fully_shard(whole, mesh=mesh)
        value = one_step(model, whole, own(rank, batch()))
        gradients = [p.grad for p in (*model.parameters(), *loss.parameters()) if p not in ignored]
        found[name] = value, [one.full_tensor() for one in gradients]
    return found


def sums(rank: int) -> Any:
    """Gradients that are to be added up."""
    model, loss = model_and("margin")
    value = one_step(model, global_batch(loss, gradients="sum"), own(rank, batch()))
    return value, [p.grad for p in (*model.parameters(), *loss.parameters())]


def even(rank: int) -> list[Any]:
    found = []
    for exchange in EXCHANGES:
        model, _ = model_and("triplet")
        loss = global_batch(SupConLoss(), even=True, exchange=exchange)
        inputs = tuple(one[:16].split(4)[rank] for one in batch())
        value = one_step(DistributedDataParallel(model), loss, inputs)
        found.append((value, [p.grad for p in model.parameters()]))
    return found


def two_losses(embeddings: Tensor, labels: Tensor) -> Tensor:
    """A function of losses is of the global batch as well."""
    pull = fused_contrastive_loss(embeddings, labels)
    return pull + 0.5 * fused_multi_similarity_loss(embeddings, labels)


def several(rank: int) -> Any:
    model, _ = model_and("triplet")
    value = one_step(DistributedDataParallel(model), global_batch(two_losses), own(rank, batch()))
    return value, [p.grad for p in model.parameters()]


def memory(rank: int) -> dict[str, Any]:
    """Three steps of a queue that all ranks share, and of one a rank."""
    found: dict[str, Any] = {}
    model, _ = model_and("triplet")
    queue = CrossBatchMemory(ContrastiveLoss(), FEATURES, 40, gather=True)
    loss = global_batch(queue)
    for step in range(3):
        copied = copy.deepcopy(model)
        value = one_step(DistributedDataParallel(copied), loss, own(rank, batch(step)))
        found[f"shared {step}"] = value, [p.grad for p in copied.parameters()]
    found["rows"] = queue.embeddings, queue.labels, queue.position
    alone = CrossBatchMemory(ContrastiveLoss(), FEATURES, 40)
    with torch.no_grad():
        embeddings, labels = own(rank, (model(batch()[0]), batch()[1]))
        found["alone"] = alone(embeddings, labels), alone.filled
    found["refused"] = refused(partial(global_batch(alone), embeddings, labels))
    return found


def nonfinite(rank: int) -> list[Tensor]:
    """One row of rank 1 is NaN: the loss is, on every rank."""
    embeddings, labels = own(rank, (batch()[0][:, :FEATURES].clone(), batch()[1]))
    if rank == 1:
        embeddings[0, 0] = torch.nan
    criteria = (ContrastiveLoss(), ProxyNCALoss(CLASSES, FEATURES), MarginLoss(backend="torch"))
    return [global_batch(one)(embeddings, labels).detach() for one in criteria]


def long_rows(rank: int) -> Any:
    """Rows whose squares overflow float32, which the sweeps of the CPU take again in float64."""
    embeddings, labels = own(rank, (1e25 * batch()[0][:, :FEATURES], batch()[1]))
    embeddings.requires_grad_()
    loss = global_batch(far_apart, gradients="sum")(embeddings, labels)
    loss.backward()
    return loss.detach(), [embeddings.grad]


def far_apart(embeddings: Tensor, labels: Tensor) -> Tensor:
    return fused_contrastive_loss(embeddings, labels, neg_margin=4e25, normalize=False)


def refusals(rank: int) -> dict[str, str]:
    labels = torch.zeros(3, dtype=torch.int64)
    loss = global_batch(fused_contrastive_loss)
    other = torch.randn(3, 5 if rank == 2 else 4)
    kind = torch.randn(3, 4, dtype=torch.float64 if rank == 3 else torch.float32)
    return {
        "features": refused(lambda: loss(other, labels)),
        "dtype": refused(lambda: loss(kind, labels)),
        "scores": refused(lambda: loss(other, labels, return_stats="class_scores")),
        "ring": refused_by_the_ring(labels),
    }


def refused_by_the_ring(labels: Tensor) -> list[str]:
    embeddings = torch.randn(3, 4)
    number = torch.tensor(0.5, requires_grad=True)
    calls = (
        partial(global_batch(fused_contrastive_loss, exchange="ring"), return_stats=True),
        partial(global_batch(fused_contrastive_loss, exchange="ring"), neg_margin=number),
        partial(global_batch(fused_contrastive_loss, exchange="ring"), backend="cpu"),
    )
    found = [refused(partial(one, embeddings, labels)) for one in calls]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring, "LOSSES", ())
        loss = global_batch(TripletLoss(), exchange="ring")
        return [*found, refused(partial(loss, embeddings, labels))]


def refused(call: Callable[[], Any]) -> str:
    try:
        call()
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


class Largest(TorchDispatchMode):
    """Of the tensors of floats that are made, the most numbers."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in pytree.tree_leaves(found):
            if isinstance(one, Tensor) and one.is_floating_point():
                self.numbers = max(self.numbers, one.numel())
        return found


def options_of(row: Row) -> dict[str, Any]:
    """What makes the public function this loss."""
    return row.fixed | ({"hardness": 0.5} if "hardness" in row.levels else {})


def held(rank: int) -> dict[str, float]:
    """Of the ring of each loss the largest tensor, in blocks of a rank."""
    rows, features = 24, 16
    g = torch.Generator().manual_seed(rank)
    x, labels = torch.randn(rows, features, generator=g), torch.arange(rows) % 12
    found = {}
    for name in ("gather", *ring.LOSSES):
        exchange, loss = ("gather", "contrastive") if name == "gather" else ("ring", name)
        row = LOSSES[loss]
        options = options_of(row) | ({"swap": True} if row.variant_of == "triplet" else {})
        call = global_batch(getattr(dmlap_kernels, row.function), exchange=exchange)
        leaf = x.clone().requires_grad_()
        inputs = (x[:12].clone(), torch.arange(12), leaf, labels) if row.proxies else (leaf, labels)
        with pytest.MonkeyPatch.context() as patch, Largest() as largest:
            patch.setattr(ring_lists, "LIST_BYTES", 1)
            patch.setitem(panel.PANEL_BYTES, "cpu", 4 * rows * features)
            call(*inputs, backend="torch", **options).backward()
        found[name] = largest.numbers / (rows * features)
    return found


def turns(rank: int) -> dict[str, tuple[int, int]]:
    """Of each loss the turns of the ring, forward and backward."""
    g = torch.Generator().manual_seed(rank)
    x, labels = torch.randn(8, 5, generator=g, requires_grad=True), torch.arange(8) % 4
    found, counted, turn = {}, [], Ring.turn

    def count(*arguments: Any, **keywords: Any) -> Tensor | None:
        counted.append(None)
        return turn(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ring, "turn", count)
        for name in ring.LOSSES:
            row = LOSSES[name]
            loss = global_batch(getattr(dmlap_kernels, row.function), exchange="ring")
            inputs = (x[:4].detach(), labels[:4], x, labels) if row.proxies else (x, labels)
            counted.clear()
            value = loss(*inputs, backend="torch", **options_of(row))
            forward = len(counted)
            value.backward()
            found[name] = forward, len(counted) - forward
    return found


def compiled(rank: int) -> Any:
    """A compiled step has a break of the graph where the ranks meet."""
    model, loss = model_and("triplet")
    whole = global_batch(loss)
    step = torch.compile(lambda x, labels: whole(model(x), labels) * 2, backend="eager")
    value = step(*own(rank, batch()))
    return value.detach() / 2


def accumulated(rank: int) -> dict[str, list[Tensor]]:
    """Two batches whose gradients are averaged once, by DDP and by FSDP."""
    from torch.distributed.fsdp import fully_shard

    found = {}
    loss = global_batch(SupConLoss())
    for name in ("ddp", "fsdp"):
        model, _ = model_and("triplet")
        if name == "ddp":
            wrapped: Any = DistributedDataParallel(model)
            with wrapped.no_sync():
                one_step(wrapped, loss, own(rank, batch(0)))
        else:
            wrapped = fully_shard(model, mesh=dist.init_device_mesh("cpu", (len(SIZES),)))
            wrapped.set_requires_gradient_sync(False)
            one_step(wrapped, loss, own(rank, batch(0)))
            wrapped.set_requires_gradient_sync(True)
        one_step(wrapped, loss, own(rank, batch(1)))
        gradients = [p.grad for p in model.parameters()]
        found[name] = [g.full_tensor() if name == "fsdp" else g for g in gradients]
    return found


class AsNCCL:
    """Lets through what NCCL takes, and writes down what is called: (what, dtype, shape)."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str, tuple[int, ...]]] = []
        for name in ("_gather_into", "_scatter_into"):
            patch.setattr(exchanges, name, self.watched(name, getattr(exchanges, name)))
        patch.setattr(dist, "all_reduce", self.watched("all_reduce", dist.all_reduce))
        several = dist.batch_isend_irecv

        def batched(calls: list[Any]) -> Any:
            for one in calls:
                self.check(one.tensor)
                assert one.tensor.numel(), "NCCL may hang where nothing is sent"
            return several(calls)

        patch.setattr(dist, "batch_isend_irecv", batched)
        objects = (
            "broadcast_object_list",
            "gather_object",
            "all_gather_object",
            "scatter_object_list",
        )
        for name in (*objects, "all_gather", "send", "recv"):
            patch.delattr(dist, name)

    def watched(self, name: str, function: Any) -> Callable[..., Any]:
        def call(*tensors: Any, **keywords: Any) -> Any:
            for one in tensors:
                self.check(one)
            given = tensors[-1]
            self.calls.append((name, str(given.dtype), tuple(given.shape)))
            return function(*tensors, **keywords)

        return call

    def check(self, tensor: Tensor) -> None:
        assert tensor.is_contiguous() and not tensor.requires_grad
        assert tensor.dtype in (torch.int64, torch.float16, torch.float32, torch.float64)


def as_nccl(rank: int) -> dict[str, Any]:
    """What the ranks call, with tensors of no default device, so that each has its rows'."""
    x, labels = own(rank, (batch()[0][:, :FEATURES].half(), batch()[1]))
    x = x.T.contiguous().T  # rows that are not contiguous
    found = {}
    for name in ring.LOSSES:
        row = LOSSES[name]
        for exchange in EXCHANGES:
            loss = global_batch(getattr(dmlap_kernels, row.function), exchange=exchange)
            leaf = x.detach().requires_grad_()
            inputs = (x[:1].detach(), labels[:1], leaf, labels) if row.proxies else (leaf, labels)
            with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
                strict = AsNCCL(patch)
                loss(*inputs, backend="torch", **options_of(row)).backward()
            found[f"{name} {exchange}"] = strict.calls
    return found


SCENARIOS = (
    ddp,
    fsdp,
    sums,
    even,
    several,
    memory,
    nonfinite,
    long_rows,
    refusals,
    held,
    turns,
    *(accumulated, as_nccl, compiled),
)


def all_of(rank: int) -> dict[str, Any]:
    warnings.simplefilter("error", FutureWarning)
    return {one.__name__: one(rank) for one in SCENARIOS}


def die(rank: int, count: int, folder: Path, queue: Any) -> None:
    """Rank 1 ends after the first call; the others say so."""
    processes.join(rank, count, folder)
    x, labels = torch.randn(4, 5, requires_grad=True), torch.tensor([0, 0, 1, 1])
    loss = global_batch(fused_contrastive_loss)
    loss(x, labels).backward()
    if rank == 1:
        os._exit(7)
    try:
        loss(x, labels).backward()
    except RuntimeError as error:
        queue.put((rank, str(error)))
