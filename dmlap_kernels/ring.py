"""A loss against the references of all ranks, whose blocks go round a ring.

`RingSweeps` are the primitives of `backends/device` over all blocks. So a loss that is made of such
primitives is computed exactly, while a rank holds its own rows, the block at hand and the one that
arrives, and the labels of all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmlap_kernels.backends import registry
from dmlap_kernels.backends.device import families, hard
from dmlap_kernels.backends.device.backend import DeviceBackend
from dmlap_kernels.backends.device.packing import unpacked
from dmlap_kernels.backends.device.terms import Call, Family, parts, reduce
from dmlap_kernels.backends.precision import full_precision
from dmlap_kernels.problem import PairProblem, PairSpec, compute_dtype
from dmlap_kernels.ranks import Ranks
from dmlap_kernels.ring_sweeps import Ring, RingSweeps
from dmlap_kernels.ring_triplets import Hard

# Made of primitives that `RingSweeps` has.
LOSSES = (
    *("contrastive", "margin", "siglip", "multi_similarity", "lifted_structure", "nt_xent"),
    *("sup_con", "circle", "proxy_anchor", "lifted_structure_original", "n_pairs"),
    *("nt_xent_hardness", "sup_con_hardness"),
    *("triplet_hard", "triplet_easy_positive", "triplet_easy_positive_semihard"),
    *("triplet_semihard", "triplet_all", "triplet_distance_weighted", "angular"),
)
_FAMILIES: dict[str, Family] = {
    name: Hard() if isinstance(family, hard.Hard) else family
    for name, family in families.FAMILIES.items()
}


def ring_loss(
    ranks: Ranks, spec: PairSpec, problem: PairProblem, backend: str, even: bool
) -> Tensor:
    """The loss of the anchors of this rank in the batch of all, references in blocks."""
    if spec.loss not in LOSSES:
        raise ValueError(
            f'exchange="ring" has no form of {spec.loss}, whose terms it cannot put together block '
            f'by block: take exchange="gather"; the ring serves {", ".join(LOSSES)}'
        )
    if problem.numbers is not None:
        raise ValueError(
            'exchange="ring" takes the numbers of a loss as Python numbers, got a tensor that '
            'needs a gradient, which exchange="gather" takes'
        )
    runner = _device_backend(spec, problem, backend)
    if spec.loss == "n_pairs" and problem.y is None:
        return _pairs_of_classes(ranks, spec, problem, runner, even)
    whole = _RingLoss(ranks, spec, problem, runner, even)
    return _Function.apply(whole, problem.x, problem.y, problem.anchor_params)


def _pairs_of_classes(
    ranks: Ranks, spec: PairSpec, problem: PairProblem, backend: DeviceBackend, even: bool
) -> Tensor:
    """N-pairs without references: the first row of each class of two rows or more, in the order of
    the ranks, is an anchor, and the second one its positive."""
    x, own_labels = problem.x, problem.labels
    sizes = ranks.sizes(x, even)
    labels, own = ranks.gather(own_labels, sizes), ranks.own(sizes)
    order = torch.argsort(labels, stable=True)
    ordered = labels[order]
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    pairs = (begins[:-1] & ~begins[1:]).nonzero().squeeze(1)

    def of_this_rank(rows: Tensor) -> Tensor:
        return rows[(rows >= own.start) & (rows < own.stop)].sort().values - own.start

    first, second = of_this_rank(order[pairs]), of_this_rank(order[pairs + 1])
    refs = x[second], own_labels[second]
    chosen = PairProblem(x[first], own_labels[first], *refs, None, None, problem.numbers)
    # A row that is neither makes the loss NaN as well if it is not finite.
    nonfinite = x.detach().sum(dtype=torch.float64) * 0
    whole = _RingLoss(ranks, spec, chosen, backend, False, nonfinite)
    value = _Function.apply(whole, chosen.x, chosen.y, None)
    if spec.reduction != "none":
        return value
    return value.new_zeros(len(x)).index_copy(0, first, value) + whole.nonfinite.to(value.dtype)


def _device_backend(spec: PairSpec, problem: PairProblem, name: str) -> DeviceBackend:
    if name == "cpu":
        raise ValueError('exchange="ring" runs on the backends torch, triton and cuda, got "cpu"')
    chosen = registry.choose(name, spec, problem.x, problem.y)
    if not isinstance(chosen, DeviceBackend):
        chosen = registry.choose("torch", spec, problem.x, problem.y)
    assert isinstance(chosen, DeviceBackend)
    return chosen


class _RingLoss:
    """One call: its forward, and what that leaves for its backward."""

    def __init__(
        self,
        ranks: Ranks,
        spec: PairSpec,
        problem: PairProblem,
        backend: DeviceBackend,
        even: bool,
        nonfinite: Tensor | None = None,
    ) -> None:
        self.ranks, self.spec, self.problem, self.backend = ranks, spec, problem, backend
        self.even, self.of_others = even, nonfinite
        self.family = _FAMILIES[spec.loss]

    def forward(self) -> Tensor:
        ranks, spec, problem = self.ranks, self.spec, self.problem
        rows, own_labels = problem.ref_side
        sizes = ranks.sizes(rows, self.even)
        labels = ranks.gather(own_labels, sizes)
        ring = Ring(ranks, rows, sizes)
        self.sweeps = RingSweeps(self.backend.sweeps(), ring, spec, problem, labels)
        # The families call no other primitives for these losses.
        self.call = call = Call.of(spec, problem, self.sweeps)  # type: ignore[arg-type]
        self.sweeps.own = call.sides
        call._positives, call._negatives = _pairs_of_anchors(problem, labels, call.sides.order_x)
        others = 0 if self.of_others is None else self.of_others
        self.nonfinite = ranks.add_up(call.nonfinite + others)
        found = self.family.forward(call)
        loss, self.weights = reduce(found.groups, spec.reduction)
        kept = found.kept
        if kept is None:
            kept = self.weights.new_empty(0)
        self.kept = torch.stack(kept) if isinstance(kept, tuple) else kept
        if spec.reduction == "none":
            loss = torch.empty_like(loss).index_copy_(0, call.sides.order_x, loss)
        elif spec.reduction == "sum":
            loss = ranks.add_up(loss.double()).to(loss.dtype)
        else:
            sums, counts = ranks.add_up(parts(found.groups, spec.reduction))
            shares = counts.clamp(min=1).reciprocal()
            loss = (sums * shares).sum().to(loss.dtype)
            weights = shares.to(loss.dtype)[:, None]
            self.weights = torch.where(self.weights != 0, weights, 0)
        return loss + self.nonfinite.to(loss.dtype)

    def backward(
        self, grad: Tensor, refs_wanted: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        problem, sides, nonfinite = self.problem, self.call.sides, self.nonfinite
        self.sweeps.begin_gradient(refs_wanted or problem.y is None)
        weights = self.weights * (grad if grad.ndim == 0 else grad[sides.order_x])
        found = self.family.backward(self.call, self.kept, weights.to(compute_dtype(grad.dtype)))
        assert found.x is not None
        gx = unpacked(sides, found.x, problem.x, False, nonfinite)
        gy = self.sweeps.at_references
        gy = None if gy is None else gy + nonfinite
        if problem.y is None:
            assert gy is not None
            gx, gy = gx + gy, None
        params = found.anchor_params
        if params is not None:
            params = torch.empty_like(params).index_copy_(0, sides.order_x, params + nonfinite)
        refs = None if gy is None or problem.y is None else gy.to(problem.y.dtype)
        return gx.to(problem.x.dtype), refs, params

    @contextlib.contextmanager
    def at_device(self) -> Iterator[None]:
        """Keeps autocast off, and makes the tensors' device current for kernels."""
        x = self.problem.x
        device = torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
        with full_precision(x), device:
            yield


def _pairs_of_anchors(
    problem: PairProblem, ref_labels: Tensor, order: Tensor
) -> tuple[Tensor, Tensor]:
    """How many positives and negatives (B,) each anchor has among the references of all ranks."""
    labels, ordered = problem.labels[order], ref_labels.sort().values
    alike = torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)
    others = ref_labels.numel() - alike
    if problem.y is None:
        return alike - 1, others
    if problem.self_index is None or problem.ref_labels is None:
        return alike, others
    itself = problem.self_index[order]
    named = itself >= 0
    if problem.ref_labels.numel() == 0:
        return alike, others
    same = problem.ref_labels[itself.clamp(min=0)] == labels
    return alike - (named & same).long(), others - (named & ~same).long()


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, whole: _RingLoss, x: Tensor, y: Tensor | None, anchor_params: Tensor | None
    ) -> Tensor:
        ctx.whole = whole
        ctx.save_for_backward(x, y)  # autograd sees to it that they are what they were
        with whole.at_device():
            return whole.forward()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y = ctx.saved_tensors[1]
        with ctx.whole.at_device():
            return None, *ctx.whole.backward(grad, y is not None and ctx.needs_input_grad[2])
