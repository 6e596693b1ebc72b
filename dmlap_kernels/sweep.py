"""The one bridge between autograd and the backends.

Eager calls go through `_PairLoss`, a plain autograd function, because the dispatch of a custom
operator costs as much as a small batch itself. Under `torch.compile` the same two backend calls
are the operators ``dmlap::pair_loss`` and ``dmlap::pair_loss_backward``, so that a loss is one node
of a full graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends import registry
from dmlap_kernels.problem import (
    Forward,
    PairProblem,
    PairSpec,
    PairStats,
    compute_dtype,
)


def pair_loss(
    spec: PairSpec, problem: PairProblem, backend: str, *, stats: bool = False, scores: bool = False
) -> tuple[Tensor, PairStats | None]:
    """The loss of ``spec`` over ``problem``, differentiable in all of its floating tensors."""
    if torch.compiler.is_compiling():
        return _compiled(spec, problem, backend, stats, scores)
    x = problem.x
    runner = registry.choose(backend, spec, x, problem.y)
    call = _Call(spec, problem, runner)
    loss = _PairLoss.apply(x, problem.y, problem.anchor_params, call, stats, scores)
    return loss, call.stats


class _Call:
    """One eager call: what its forward is asked for, and what it leaves for its backward beside the
    tensors that autograd guards."""

    __slots__ = ("context", "present", "problem", "runner", "saved", "spec", "stats")

    def __init__(self, spec: PairSpec, problem: PairProblem, runner: registry.Backend) -> None:
        self.spec, self.runner = spec, runner
        self.problem: PairProblem | None = problem

    def keep(self, result: Forward) -> None:
        problem = self.problem
        assert problem is not None
        self.saved, self.context, self.stats = result.saved, result.context, result.stats
        self.present = tuple(t is not None for t in problem)
        self.problem = None  # autograd keeps its tensors, and lets go of them after backward

    def restore(self, tensors: Sequence[Tensor]) -> PairProblem:
        left = iter(tensors)
        return PairProblem._make(next(left) if here else None for here in self.present)


class _PairLoss(torch.autograd.Function):
    """Counts microseconds: few arguments, and nothing saved that is not there."""

    @staticmethod
    def forward(ctx: Any, x, y, anchor_params, call, stats, scores):
        problem = call.problem
        result = call.runner.forward(call.spec, problem, stats, scores)
        call.keep(result)
        ctx.save_for_backward(*(t for t in problem if t is not None))
        ctx.call = call
        return result.loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        call = ctx.call
        problem = call.restore(ctx.saved_tensors)
        # A loss that is kept for the log must not keep its batch; a second backward does without.
        context, call.context = call.context, None
        if not torch.is_grad_enabled():
            found = call.runner.backward(call.spec, problem, call.saved, grad, context)
            return *found, None, None, None
        with torch.no_grad():
            plain = grad.detach()
            found = call.runner.backward(call.spec, problem, call.saved, plain, context)
        inputs = (problem.x, problem.y, problem.anchor_params)
        once = (
            g if g is None else _Once.apply(g, t, grad) for g, t in zip(found, inputs, strict=True)
        )
        return *once, None, None, None


class _Once(torch.autograd.Function):
    """Stands behind a gradient taken with `create_graph=True` and refuses to be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient, *depends_on):
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        raise RuntimeError(
            "fused losses can be differentiated once: their backward sweep has no derivative of "
            "its own (use a plain PyTorch loss where a gradient of a gradient is needed)"
        )


def _autograd_inside_operators() -> Any:
    """The body of a custom operator runs below autograd, where nothing is recorded; the `torch`
    backend takes its gradient by autograd over a block, and needs it switched on again."""
    key = torch._C.DispatchKey
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for above in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor"):
        excluded = excluded.remove(getattr(key, above))
    included = torch._C._dispatch_tls_local_include_set()
    return torch._C._ForceDispatchKeyGuard(included, excluded)


@torch.library.custom_op("dmlap::pair_loss", mutates_args=())
def _pair_loss_op(
    x: Tensor,
    labels: Tensor,
    y: Tensor | None,
    ref_labels: Tensor | None,
    anchor_params: Tensor | None,
    spec: str,
    params: Sequence[float],
    backend: str,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, what backward needs, and the packed statistics (empty unless asked for)."""
    problem = PairProblem(x, labels, y, ref_labels, anchor_params)
    decoded = PairSpec.decode(spec, params)
    runner = registry.choose(backend, decoded, x, y)
    result = runner.forward(decoded, problem, stats, False)
    if result.stats is not None:
        return result.loss, result.saved, *result.stats.packed()
    return result.loss, result.saved, labels.new_empty(0), result.loss.new_empty(0)


@_pair_loss_op.register_fake
def _(x, labels, y, ref_labels, anchor_params, spec, params, backend, stats):
    decoded = PairSpec.decode(spec, params)
    runner = registry.choose(backend, decoded, x, y)
    real = compute_dtype(x.dtype)
    rows = x.shape[0]
    loss = x.new_empty((rows,) if decoded.reduction == "none" else (), dtype=real)
    counts = x.new_empty((2 + 2 * rows if stats else 0,), dtype=torch.int64)
    values = x.new_empty((3 if stats else 0,), dtype=real)
    problem = PairProblem(x, labels, y, ref_labels, anchor_params)
    return loss, runner.saved_like(decoded, problem), counts, values


@torch.library.custom_op("dmlap::pair_loss_backward", mutates_args=())
def _pair_loss_backward_op(
    x: Tensor,
    labels: Tensor,
    y: Tensor | None,
    ref_labels: Tensor | None,
    anchor_params: Tensor | None,
    spec: str,
    params: Sequence[float],
    backend: str,
    saved: Tensor,
    grad: Tensor,
) -> list[Tensor]:
    """The gradients that `Gradients` holds, without its Nones."""
    problem = PairProblem(x, labels, y, ref_labels, anchor_params)
    decoded = PairSpec.decode(spec, params)
    runner = registry.choose(backend, decoded, x, y)
    with _autograd_inside_operators():
        gradients = runner.backward(decoded, problem, saved, grad)
    return [g for g in gradients if g is not None]


@_pair_loss_backward_op.register_fake
def _(x, labels, y, ref_labels, anchor_params, spec, params, backend, saved, grad):
    return [torch.empty_like(t) for t in (x, y, anchor_params) if t is not None]


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.spec, ctx.params, ctx.backend, _ = inputs
    ctx.save_for_backward(*tensors, output[1])


def _op_backward(ctx: Any, grad: Tensor, *_: Any):
    *tensors, saved = ctx.saved_tensors
    found = iter(
        torch.ops.dmlap.pair_loss_backward(*tensors, ctx.spec, ctx.params, ctx.backend, saved, grad)
    )
    x, _, y, _, anchor_params = tensors
    gx, gy, g_anchor = (None if t is None else next(found) for t in (x, y, anchor_params))
    return gx, None, gy, None, g_anchor, *[None] * 4


_pair_loss_op.register_autograd(_op_backward, setup_context=_setup_context)


def _compiled(
    spec: PairSpec, problem: PairProblem, backend: str, stats: bool, scores: bool
) -> tuple[Tensor, PairStats | None]:
    if scores:
        raise RuntimeError(
            'return_stats="class_scores" cannot be compiled: the number of classes depends on the '
            "data; call the loss outside torch.compile"
        )
    loss, _, counts, values = torch.ops.dmlap.pair_loss(
        *problem, spec.encode(), spec.params, backend, stats
    )
    return loss, PairStats.unpack(counts, values.detach()) if stats else None
