"""The loss of the batch that lies on all ranks.

Each rank computes the terms of its own anchors, against references from everywhere. What the means
divide by is added up over the ranks before backward, and gradients at references return to the
ranks that own them. `_Shared` does it where every loss passes by, below the functions and modules
(`dmlap_kernels.sweep.sharing`); only `torch.distributed` is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dmlap_kernels import checks
from dmlap_kernels.problem import PairProblem, PairSpec, PairStats
from dmlap_kernels.ranks import Ranks, all_gather
from dmlap_kernels.ring import ring_loss
from dmlap_kernels.sweep import pair_loss_here, sharing

GRADIENTS = ("mean", "sum")
EXCHANGES = ("gather", "ring")
# Their references are parameters, the same on every rank.
_PROXY_REFERENCES = ("proxy_nca", "cosface", "arcface", "soft_triple")
_replicated: ContextVar[bool] = ContextVar("replicated", default=False)


def global_batch(
    loss: Callable[..., Any],
    *,
    group: Any = None,
    gradients: str = "mean",
    exchange: str = "gather",
    even: bool = False,
) -> GlobalBatch:
    """``loss`` over the batches of all ranks, exactly, under torchrun, DDP or FSDP.

    Every rank calls the result with its own batch, in place of ``loss``, and gets the value that
    one process would compute for the concatenation of the batches in the order of the ranks. A rank
    computes the terms of its own anchors: its share of the work is its share of the rows. The
    embeddings of all ranks are its references (all-gather), gradients at them return to the rank
    that owns them (reduce-scatter), and the numbers of terms that means divide by are added up.

    Args:
        loss: a module of `dmlap_kernels.losses`, a ``fused_*_loss``, `functools.partial` of one,
            `dmlap_kernels.memory.CrossBatchMemory` with ``gather=True``, or a function that calls
            some of these.
        group: the `torch.distributed` process group whose ranks share the batch, such as
            ``mesh.get_group("dp")``; None for all ranks. Without `torch.distributed`, or on one
            rank, the loss is that of the rank.
        gradients: what becomes of the gradients of the ranks. ``"mean"``: they are averaged, as by
            DistributedDataParallel and FSDP; so the gradient of the loss is multiplied by the
            number of ranks (the value is not), and the averages are the gradients that one process
            would have. ``"sum"``: they are added up, and nothing is multiplied.
        exchange: how the ranks see each other's embeddings. ``"gather"``: all at once; a rank holds
            those of all ranks, N x D, and their gradient. ``"ring"``: the block of each rank goes
            round, and is swept while the next one arrives, so that a rank holds a few blocks, and
            the labels of all. Every loss, without statistics and without numbers that are learned,
            on the backends ``torch``, ``triton`` and ``cuda`` (on the CPU ``"auto"`` takes
            ``torch``; triplets but the hardest, and angular, are computed in plain PyTorch on all
            of them). Losses that exchange no embeddings run as they are.
        even: True where all ranks have the same number of rows, which spares each call one exchange
            of a few numbers that a GPU is waited for. False looks.

    Returns:
        A module that is called as ``loss`` is, and has its parameters. Value, gradient and
        statistics are, to rounding, those of one process:

        - reductions ``"mean"``, ``"mean_nonzero"`` and ``"sum"``: the value (), the same on every
          rank. ``"none"``: (B,) of the rank's own anchors; the gradient is that of whatever sum of
          them over the ranks is taken.
        - `PairStats` counts and averages over all ranks; its indices (B,) are those of the rank's
          own anchors, into the concatenation. ``"class_scores"`` are refused.
        - losses of proxies: the proxies are the same parameter on every rank. Their gradient, and
          that of every number of a loss (``beta``, a temperature), is the part of the rank, and
          becomes whole as all gradients do: wrap the result, or a module that holds it, in DDP or
          FSDP. For proxy-anchor the ranks share out the proxies, and ``"none"`` is of a rank's own
          proxies.
        - references, if they are given, are those of the rank, and are gathered.
        - two losses are computed whole on every rank, from all embeddings: the original form of
          lifted structure, whose references have negatives among all anchors, and N-pairs without
          references, which takes one pair a class.
        - distance-weighted triplets draw as one process does if the ranks pass the same ``seed``.

    If a rank ends,
    the others raise RuntimeError at once with gloo, after the timeout of the process group with
    NCCL. Every rank must call the loss equally often, and backward. Under torch.compile a call is a
    break of the graph and runs as it does without.

    Raises:
        ValueError, TypeError: an argument is not as above, or the embeddings of the ranks have
            different features or dtypes; the message names it.
        RuntimeError: the ranks could not be reached.

    Example:
        >>> import torch
        >>> from dmlap_kernels.distributed import global_batch
        >>> from dmlap_kernels.losses import SupConLoss
        >>> criterion = global_batch(SupConLoss(temperature=0.1))  # torchrun starts the ranks
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> criterion(embeddings, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])).backward()
    """
    return GlobalBatch(loss, group=group, gradients=gradients, exchange=exchange, even=even)


class GlobalBatch(nn.Module):
    """What `global_batch` returns: ``loss`` over the batches of all ranks."""

    def __init__(
        self,
        loss: Callable[..., Any],
        *,
        group: Any,
        gradients: str,
        exchange: str,
        even: bool,
    ) -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(f"loss must be a loss, got {loss!r} ({type(loss).__name__})")
        self.loss, self.group = loss, group
        self.gradients = checks.choice("gradients", gradients, GRADIENTS)
        self.exchange = checks.choice("exchange", exchange, EXCHANGES)
        self.even = checks.flag("even", even)

    @torch.compiler.disable
    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        ranks = Ranks.of(self.group)
        if ranks is None:
            return self.loss(*arguments, **keywords)
        factor = ranks.count if self.gradients == "mean" else 1
        token = sharing.set(_Shared(ranks, factor, self.exchange, self.even))
        try:
            return self.loss(*arguments, **keywords)
        finally:
            sharing.reset(token)

    def extra_repr(self) -> str:
        return f"gradients={self.gradients!r}, exchange={self.exchange!r}, even={self.even}"


def in_global_batch() -> bool:
    """Whether the loss that is being called is one of all ranks."""
    return sharing.get() is not None


@contextlib.contextmanager
def replicated_references() -> Iterator[None]:
    """Losses that are called within have the same references on every rank."""
    token = _replicated.set(True)
    try:
        yield
    finally:
        _replicated.reset(token)


def gathered_rows(rows: Tensor, labels: Tensor, group: Any) -> tuple[Tensor, Tensor, slice]:
    """Rows (E, D) and labels (E,) of all ranks in their order, and where this rank's are among
    them. No gradient."""
    ranks = Ranks.of(group)
    if ranks is None:
        return rows, labels, slice(0, rows.shape[0])
    sizes = ranks.sizes(rows, even=False)
    own = ranks.own(sizes)
    return ranks.gather(rows, sizes), ranks.gather(labels, sizes), own


def of_all_ranks(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Within a global batch, rows (E, D) and labels (E,) of all ranks in their order; else those
    given. Gradients return to the ranks that own the rows."""
    shared = sharing.get()
    if not isinstance(shared, _Shared):
        return rows, labels
    return shared.gathered(rows, labels)[:2]


class _Shared:
    """Takes over the calls of losses while a `GlobalBatch` runs one."""

    def __init__(self, ranks: Ranks, factor: int, exchange: str, even: bool) -> None:
        self.ranks, self.factor, self.exchange, self.even = ranks, factor, exchange, even

    def pair_loss(
        self, spec: PairSpec, problem: PairProblem, backend: str, stats: bool, scores: bool
    ) -> tuple[Tensor, PairStats | None]:
        if scores:
            raise ValueError(
                'return_stats must be True or False in a global batch, got "class_scores", whose '
                "classes are those of one rank"
            )
        exchanged = not _replicated.get() and spec.loss not in _PROXY_REFERENCES
        if self.exchange == "ring" and exchanged:
            if stats:
                raise ValueError(
                    'return_stats must be False with exchange="ring", got True, which '
                    'exchange="gather" takes'
                )
            if spec.loss == "proxy_anchor":
                problem = self._share_of_proxies(problem)
            value = ring_loss(self.ranks, spec, problem, backend, self.even)
            return _Scaled.apply(value, self.factor), None
        whole = spec.loss == "lifted_structure_original" or (
            spec.loss == "n_pairs" and problem.y is None
        )
        if whole and exchanged:
            return self._whole(spec, problem, backend, stats)
        local = self._local(spec, problem)
        value, found = pair_loss_here(spec, local, backend, stats, False, self.ranks.add_up)
        if found is not None:
            found = self._stats(found, local)
        return _Scaled.apply(value, self.factor), found

    def _local(self, spec: PairSpec, problem: PairProblem) -> PairProblem:
        """The anchors of this rank against the references of all."""
        if _replicated.get() or spec.loss in _PROXY_REFERENCES:
            return problem
        if spec.loss == "proxy_anchor":
            problem = self._share_of_proxies(problem)
        rows, labels = problem.ref_side
        refs, ref_labels, own = self.gathered(rows, labels)
        itself = problem.self_index
        if problem.y is None:
            itself = torch.arange(own.start, own.stop, device=labels.device)
        elif itself is not None:
            itself = torch.where(itself >= 0, itself + own.start, itself)
        anchors = problem.x, problem.labels
        return PairProblem(
            *anchors, refs, ref_labels, problem.anchor_params, itself, problem.numbers
        )

    def _share_of_proxies(self, problem: PairProblem) -> PairProblem:
        """Proxies are the anchors, the same on every rank, and each takes some of them."""
        count, (at, of) = problem.x.shape[0], (self.ranks.rank, self.ranks.count)
        share = slice(count * at // of, count * (at + 1) // of)
        rest = problem.y, problem.ref_labels, None, None, problem.numbers
        return PairProblem(problem.x[share], problem.labels[share], *rest)

    def _whole(
        self, spec: PairSpec, problem: PairProblem, backend: str, stats: bool
    ) -> tuple[Tensor, PairStats | None]:
        """The loss of all anchors, as every rank computes it; its gradient in equal parts."""
        x, labels, own = self.gathered(problem.x, problem.labels)
        y, ref_labels, itself = problem.y, problem.ref_labels, problem.self_index
        if y is not None and ref_labels is not None:
            y, ref_labels, own_refs = self.gathered(y, ref_labels)
            if itself is not None:
                itself = torch.where(itself >= 0, itself + own_refs.start, itself)
                sizes = self.ranks.sizes(problem.x, self.even)
                itself = self.ranks.gather(itself, sizes)
        everything = PairProblem(x, labels, y, ref_labels, None, itself, problem.numbers)
        value, found = pair_loss_here(spec, everything, backend, stats, False)
        if found is not None:
            hardest = found.hardest_positive[own], found.hardest_negative[own]
            found = replace(found, hardest_positive=hardest[0], hardest_negative=hardest[1])
        if spec.reduction == "none":
            return _Scaled.apply(value[own], self.factor), found
        return _Scaled.apply(value, self.factor / self.ranks.count), found

    def gathered(self, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, slice]:
        sizes = self.ranks.sizes(rows, self.even)
        gathered = all_gather(self.ranks, rows, sizes)
        return gathered, self.ranks.gather(labels, sizes), self.ranks.own(sizes)

    def _stats(self, stats: PairStats, local: PairProblem) -> PairStats:
        """Sums and means over the anchors of all ranks."""
        positives, negatives = _pairs(local)
        means = stats.mean_positive_distance, stats.mean_negative_distance
        totals = [
            torch.where(count > 0, mean.double() * count, 0)
            for mean, count in zip(means, (positives, negatives), strict=True)
        ]
        numbers = (stats.constraints, stats.violated, stats.violation, positives, negatives)
        mine = torch.stack([one.double() for one in (*numbers, *totals)])
        constraints, violated, violation, *rest = self.ranks.add_up(mine).unbind()
        return replace(
            stats,
            constraints=constraints.long(),
            violated=violated.long(),
            violation=violation.to(stats.violation),
            mean_positive_distance=(rest[2] / rest[0]).to(means[0]),
            mean_negative_distance=(rest[3] / rest[1]).to(means[1]),
        )


def _pairs(problem: PairProblem) -> tuple[Tensor, Tensor]:
    """How many positive and negative pairs there are, ()."""
    _, ref_labels = problem.ref_side
    ordered = ref_labels.sort().values
    alike = torch.searchsorted(ordered, problem.labels, right=True)
    alike = alike - torch.searchsorted(ordered, problem.labels)
    positives, pairs = alike.sum(), problem.labels.numel() * ref_labels.numel()
    if problem.self_index is None or not ref_labels.numel():
        return positives, pairs - positives
    named = problem.self_index >= 0
    own = named & (ref_labels[problem.self_index.clamp(min=0)] == problem.labels)
    positives = positives - own.sum()
    return positives, pairs - named.sum() - positives


class _Scaled(torch.autograd.Function):
    """The same value, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None
