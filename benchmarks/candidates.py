"""Who takes part in a comparison: ours, eager, torch.compile of eager, a library, the yardstick.

A candidate is a function without arguments that does the work of one step and returns tensors by
which it is checked: loss and gradient for losses, values for searches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import dmlap_kernels
from benchmarks import eager

Step = Callable[[], tuple[Tensor, ...]]
OPS = ("triplet", "contrastive-all", "contrastive-2%", "nearest", "hard_classes")
CANDIDATES = ("ours", "eager", "compile", "library", "G")
NEIGHBOURS = 10
ACTIVE_SHARE = 0.02


class Absent(Exception):
    """A candidate that cannot run here, and why."""


def inputs(rows: int, features: int) -> tuple[Tensor, Tensor]:
    """Clustered points, four samples a class, in no order."""
    g = torch.Generator().manual_seed(rows + features)
    names = torch.arange(rows) // 4
    centres = torch.randn(rows // 4 + 1, features, generator=g)
    points = 0.5 * centres[names] + torch.randn(rows, features, generator=g)
    order = torch.randperm(rows, generator=g)
    return points[order], names[order]


def negative_margin(x: Tensor, share: float) -> float:
    """A margin under which this share of the pairs is active."""
    sample = torch.pdist(x[:1024])
    return 2 * sample.max().item() if share == 1 else sample.quantile(share).item()


def with_gradient(loss: Callable[..., Tensor], x: Tensor, *args: Any) -> Step:
    def step() -> tuple[Tensor, ...]:
        value = loss(x, *args)
        return value, *torch.autograd.grad(value, x)

    return step


def make(op: str, candidate: str, rows: int, features: int) -> Step:
    """One candidate; raises `Absent`."""
    x, labels = inputs(rows, features)
    if candidate == "G":
        buffer = torch.empty(rows, rows)
        return lambda: (torch.mm(x, x.T, out=buffer),)
    if op in ("nearest", "hard_classes"):
        return _search(op, candidate, x)
    return _loss(op, candidate, x.requires_grad_(), labels)


def _loss(op: str, candidate: str, x: Tensor, labels: Tensor) -> Step:
    if op == "triplet":
        name, keyword, margin = "triplet", "margin", 0.2
        ours, plain = dmlap_kernels.fused_triplet_loss, eager.triplet
    else:
        share = 1.0 if op == "contrastive-all" else ACTIVE_SHARE
        name, keyword = "contrastive", "neg_margin"
        margin = negative_margin(x.detach(), share)
        ours, plain = dmlap_kernels.fused_contrastive_loss, eager.contrastive
    if candidate == "ours":
        return with_gradient(lambda x, labels: ours(x, labels, **{keyword: margin}), x, labels)
    if candidate == "library":
        return with_gradient(_peer(name, margin), x, labels)
    function = _compiled(plain) if candidate == "compile" else plain
    return with_gradient(function, x, labels, torch.tensor(margin))


def _search(op: str, candidate: str, x: Tensor) -> Step:
    margin = negative_margin(x, 1.0)
    if candidate == "ours":
        if op == "nearest":
            return lambda: (dmlap_kernels.nearest(x, k=NEIGHBOURS).distances,)
        names = torch.arange(len(x))
        return lambda: (dmlap_kernels.hard_classes(x, names, NEIGHBOURS, margin=margin).scores,)
    if candidate == "library":
        if op == "hard_classes":
            raise Absent("no library that we know of mines classes")
        return _faiss(x)
    plain = eager.nearest if op == "nearest" else eager.hard_classes
    function = _compiled(plain) if candidate == "compile" else plain
    if op == "nearest":
        return lambda: (function(x, NEIGHBOURS)[0],)
    return lambda: (function(x, NEIGHBOURS, torch.tensor(margin))[0],)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled once for all shapes; compiling for each would take most of the session."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2))
    except Exception as error:
        raise Absent(f"torch.compile does not work here: {error}") from error
    return torch.compile(function, dynamic=True)


def _peer(name: str, margin: float) -> Callable[..., Tensor]:
    """pytorch-metric-learning at the same settings."""
    try:
        from pytorch_metric_learning import distances, losses, miners, reducers
    except ImportError as error:
        raise Absent("pytorch-metric-learning is not installed") from error
    distance = distances.LpDistance(normalize_embeddings=False)
    options = {"distance": distance, "reducer": reducers.MeanReducer()}
    if name == "contrastive":
        loss = losses.ContrastiveLoss(pos_margin=0.0, neg_margin=margin, **options)
        return lambda x, labels: loss(x, labels)
    miner = miners.BatchHardMiner(distance=distance)
    loss = losses.TripletMarginLoss(margin=margin, **options)
    return lambda x, labels: loss(x, labels, miner(x, labels))


def _faiss(x: Tensor) -> Step:
    try:
        import faiss
    except ImportError as error:
        raise Absent("faiss is not installed") from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    rows = x.numpy()

    def step() -> tuple[Tensor, ...]:
        index = faiss.IndexFlatL2(rows.shape[1])
        index.add(rows)
        squared, _ = index.search(rows, NEIGHBOURS + 1)
        return (torch.from_numpy(squared[:, 1:]).clamp_min(0).sqrt(),)

    return step
