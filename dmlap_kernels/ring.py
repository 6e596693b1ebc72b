"""A loss against the references of all ranks, whose blocks go round a ring.

`RingSweeps` are the primitives of `backends/device` over all blocks: each is called for one block
at a time, and what it finds of the anchors is merged. So a loss that is made of such primitives
is computed exactly, while a rank holds its own rows, the block at hand and the one that arrives.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmlap_kernels.backends import registry
from dmlap_kernels.backends.device.backend import DeviceBackend
from dmlap_kernels.backends.device.families import FAMILIES
from dmlap_kernels.backends.device.packing import Sides, pack, unpacked
from dmlap_kernels.backends.device.sweeps import (
    Both,
    Exponent,
    Extremes,
    HingeSums,
    LogSums,
    PairGradient,
    PairTerms,
    Sweeps,
)
from dmlap_kernels.backends.device.terms import Call, parts, reduce
from dmlap_kernels.backends.precision import full_precision
from dmlap_kernels.problem import PairProblem, PairSpec, compute_dtype
from dmlap_kernels.ranks import Ranks

# Made of primitives that `RingSweeps` has.
LOSSES = (
    *("contrastive", "margin", "multi_similarity", "lifted_structure", "nt_xent", "sup_con"),
    *("circle", "proxy_anchor"),
)


def ring_loss(
    ranks: Ranks, spec: PairSpec, problem: PairProblem, backend: str, even: bool
) -> Tensor:
    """The loss of the anchors of this rank in the batch of all, references in blocks."""
    if spec.loss not in LOSSES:
        raise ValueError(
            f'exchange="ring" serves {", ".join(LOSSES)}; {spec.loss} is not made of parts that '
            'blocks add up to, and takes exchange="gather"'
        )
    if problem.numbers is not None:
        raise ValueError(
            'exchange="ring" takes the numbers of a loss as Python numbers, got a tensor that '
            'needs a gradient, which exchange="gather" takes'
        )
    whole = _RingLoss(ranks, spec, problem, _device_backend(spec, problem, backend), even)
    return _Function.apply(whole, problem.x, problem.y, problem.anchor_params)


def _device_backend(spec: PairSpec, problem: PairProblem, name: str) -> DeviceBackend:
    if name == "cpu":
        raise ValueError('exchange="ring" runs on the backends torch, triton and cuda, got "cpu"')
    chosen = registry.choose(name, spec, problem.x, problem.y)
    if not isinstance(chosen, DeviceBackend):
        chosen = registry.choose("torch", spec, problem.x, problem.y)
    assert isinstance(chosen, DeviceBackend)
    return chosen


class Ring:
    """The blocks of all ranks, of which ``rows`` (E, D) is that of this one."""

    def __init__(self, ranks: Ranks, rows: Tensor, sizes: list[int]) -> None:
        self.ranks, self.rows, self.sizes = ranks, rows.detach().contiguous(), sizes

    def turn(self, visit: Callable[[int, Tensor], Tensor | None], carry: bool) -> Tensor | None:
        """Calls ``visit(owner, block)`` for the block of each rank, this one's first, while the
        next one arrives. With ``carry`` what it returns, a gradient at the block, travels with
        the block; back comes the sum for the block of this rank."""
        ranks, block = self.ranks, self.rows
        carried: Tensor | None = None
        for step in range(ranks.count):
            owner = (ranks.rank - step) % ranks.count
            following = self.sizes[owner - 1]
            last = step == ranks.count - 1
            waiting, arriving = ([], block) if last else self._pass_on(block, following)
            found = visit(owner, block)
            with ranks.exchange("blocks of embeddings"):
                _wait(waiting)
            block = arriving
            if carry:
                assert found is not None
                carried = found if carried is None else carried + found
                waiting, carried = self._pass_on(carried, following)
                with ranks.exchange("gradients"):
                    _wait(waiting)
        return carried

    def _pass_on(self, block: Tensor, arriving_rows: int) -> tuple[list[Any], Tensor]:
        """Sends the block to the next rank; what is to be waited for, and what then has arrived."""
        ranks = self.ranks
        arriving = block.new_empty((arriving_rows, *block.shape[1:]))
        onward, before = ((ranks.rank + by) % ranks.count for by in (1, -1))
        calls = []
        if block.numel():
            calls.append(self._operation(dist.isend, block.contiguous(), onward))
        if arriving.numel():
            calls.append(self._operation(dist.irecv, arriving, before))
        with ranks.exchange("blocks of embeddings"):
            return (dist.batch_isend_irecv(calls) if calls else []), arriving

    def _operation(self, kind: Any, tensor: Tensor, peer: int) -> Any:
        group = self.ranks.group
        peer = peer if group is None else dist.get_global_rank(group, peer)
        return dist.P2POp(kind, tensor, peer, group)


def _wait(operations: list[Any]) -> None:
    for one in operations:
        one.wait()


class RingSweeps:
    """The primitives over the references of all ranks; sides that they are given are those of the
    own block, of which the anchors count.

    Gradients at the references are not returned but kept in ``at_references`` (E, D), those of
    the rows of this rank.
    """

    def __init__(
        self, sweeps: Sweeps, ring: Ring, spec: PairSpec, problem: PairProblem, labels: Tensor
    ) -> None:
        self.sweeps, self.ring, self.spec, self.problem = sweeps, ring, spec, problem
        self.labels = labels.split(ring.sizes)
        self.refs_wanted = True
        self.at_references: Tensor | None = None

    def extremes(self, sides: Sides, sums: bool) -> Extremes:
        merged: list[Extremes] = []

        def visit(owner: int, block: Tensor) -> None:
            one = self.sweeps.extremes(self._sides(owner, block), sums)
            if merged:
                before = merged.pop()
                one = one._replace(
                    positive=torch.maximum(before.positive, one.positive),
                    negative=torch.minimum(before.negative, one.negative),
                )
            merged.append(one)

        self.ring.turn(visit, carry=False)
        return merged[0]

    def hinge_sums(
        self, sides: Sides, positive_bound: Tensor, negative_bound: Tensor, squared: bool
    ) -> HingeSums:
        return HingeSums(
            *self._added(
                lambda one: self.sweeps.hinge_sums(one, positive_bound, negative_bound, squared)
            )
        )

    def log_sums(
        self,
        sides: Sides,
        positive: Exponent,
        negative: Exponent,
        positive_above: Tensor | None = None,
        negative_below: Tensor | None = None,
        read: tuple[str, ...] = LogSums._fields,
    ) -> LogSums:
        merged: list[LogSums] = []

        def visit(owner: int, block: Tensor) -> None:
            bounds = positive_above, negative_below
            one = self.sweeps.log_sums(self._sides(owner, block), positive, negative, *bounds, read)
            if merged:
                before = merged.pop()
                one = LogSums(
                    torch.logaddexp(before.pos_lse, one.pos_lse),
                    torch.logaddexp(before.neg_lse, one.neg_lse),
                    before.exponent_sum + one.exponent_sum,
                )
            merged.append(one)

        self.ring.turn(visit, carry=False)
        return merged[0]

    def pair_terms(self, sides: Sides, kind: str, exponent: Exponent, neg_lse: Tensor) -> PairTerms:
        return PairTerms(
            *self._added(lambda one: self.sweeps.pair_terms(one, kind, exponent, neg_lse))
        )

    def gradient(self, sides: Sides, pair_gradient: PairGradient) -> Both:
        total: list[Tensor] = []

        def visit(owner: int, block: Tensor) -> Tensor | None:
            one = self._sides(owner, block)._replace(y_grad=self.refs_wanted)
            gx, gy = self.sweeps.gradient(one, pair_gradient)
            assert gx is not None
            total.append(total.pop() + gx if total else gx)
            return None if gy is None else unpacked(one, gy, block, True, gy.new_zeros(()))

        self.at_references = self.ring.turn(visit, carry=self.refs_wanted)
        return total[0], None

    def _added(self, sums: Callable[[Sides], tuple[Tensor, ...]]) -> list[Tensor]:
        total: list[Tensor] = []

        def visit(owner: int, block: Tensor) -> None:
            found = sums(self._sides(owner, block))
            total[:] = [a + b for a, b in zip(total, found, strict=True)] if total else found

        self.ring.turn(visit, carry=False)
        return total

    def _sides(self, owner: int, block: Tensor) -> Sides:
        """The anchors against a block, of which they may be rows if it is this rank's."""
        x, labels, y, _, _, itself, _ = self.problem
        if owner != self.ring.ranks.rank:
            itself = None
        elif y is None:
            itself = torch.arange(x.shape[0], device=x.device)
        return pack(
            self.spec, PairProblem(x.detach(), labels, block, self.labels[owner], None, itself)
        )


class _RingLoss:
    """One call: its forward, and what that leaves for its backward."""

    def __init__(
        self,
        ranks: Ranks,
        spec: PairSpec,
        problem: PairProblem,
        backend: DeviceBackend,
        even: bool,
    ) -> None:
        self.ranks, self.spec, self.problem, self.backend = ranks, spec, problem, backend
        self.even = even
        self.family = FAMILIES[spec.loss]

    def forward(self) -> Tensor:
        ranks, spec, problem = self.ranks, self.spec, self.problem
        rows, own_labels = problem.ref_side
        sizes = ranks.sizes(rows, self.even)
        labels = ranks.gather(own_labels, sizes)
        ring = Ring(ranks, rows, sizes)
        self.sweeps = RingSweeps(self.backend.sweeps(), ring, spec, problem, labels)
        # The families call no other primitives for these losses.
        self.call = call = Call.of(spec, problem, self.sweeps)  # type: ignore[arg-type]
        call._positives, call._negatives = _pairs_of_anchors(problem, labels, call.sides.order_x)
        self.nonfinite = ranks.add_up(call.nonfinite)
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
        self.sweeps.refs_wanted = refs_wanted or problem.y is None
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
