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
    PairProblem,
    PairSpec,
    PairStats,
    compute_dtype,
)


def pair_loss(
    spec: PairSpec, problem: PairProblem, backend: str, *, stats: bool = False, scores: bool = False
) -> tuple[Tensor, PairStats | None]:
    """The loss of ``spec`` over ``problem``, differentiable in anchors and references."""
    if torch.compiler.is_compiling():
        return _compiled(spec, problem, backend, stats, scores)
    x, labels, y, ref_labels = problem
    runner = registry.choose(backend, spec, x.device.type, x.dtype)
    gathered: list[PairStats | None] = []
    loss = _PairLoss.apply(x, y, labels, ref_labels, spec, runner, (stats, scores), gathered)
    return loss, gathered[0]


class _PairLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, y, labels, ref_labels, spec, runner, wanted, gathered):
        problem = PairProblem(x, labels, y, ref_labels)
        result = runner.forward(spec, problem, *wanted)
        gathered.append(result.stats)
        ctx.save_for_backward(x, y, labels, ref_labels, result.saved)
        ctx.spec, ctx.runner = spec, runner
        return result.loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        x, y, labels, ref_labels, saved = ctx.saved_tensors
        problem = PairProblem(x, labels, y, ref_labels)
        again = torch.is_grad_enabled()
        with torch.no_grad():
            gx, gy = ctx.runner.backward(ctx.spec, problem, saved, grads[0].detach())
        if again:
            gx = _Once.apply(gx, x, grads[0])
            gy = None if gy is None else _Once.apply(gy, y, grads[0])
        return gx, gy, None, None, None, None, None, None


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
    spec: str,
    params: Sequence[float],
    backend: str,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, what backward needs, and the packed statistics (empty unless asked for)."""
    decoded = PairSpec.decode(spec, params)
    runner = registry.choose(backend, decoded, x.device.type, x.dtype)
    result = runner.forward(decoded, PairProblem(x, labels, y, ref_labels), stats, False)
    if result.stats is not None:
        return result.loss, result.saved, *result.stats.packed()
    return result.loss, result.saved, labels.new_empty(0), result.loss.new_empty(0)


@_pair_loss_op.register_fake
def _(x, labels, y, ref_labels, spec, params, backend, stats):
    decoded = PairSpec.decode(spec, params)
    runner = registry.choose(backend, decoded, x.device.type, x.dtype)
    real = compute_dtype(x.dtype)
    rows = x.shape[0]
    loss = x.new_empty((rows,) if decoded.reduction == "none" else (), dtype=real)
    counts = x.new_empty((2 + 2 * rows if stats else 0,), dtype=torch.int64)
    values = x.new_empty((3 if stats else 0,), dtype=real)
    saved = runner.saved_like(decoded, PairProblem(x, labels, y, ref_labels))
    return loss, saved, counts, values


@torch.library.custom_op("dmlap::pair_loss_backward", mutates_args=())
def _pair_loss_backward_op(
    x: Tensor,
    labels: Tensor,
    y: Tensor | None,
    ref_labels: Tensor | None,
    spec: str,
    params: Sequence[float],
    backend: str,
    saved: Tensor,
    grad: Tensor,
) -> list[Tensor]:
    decoded = PairSpec.decode(spec, params)
    runner = registry.choose(backend, decoded, x.device.type, x.dtype)
    with _autograd_inside_operators():
        gx, gy = runner.backward(decoded, PairProblem(x, labels, y, ref_labels), saved, grad)
    return [gx] if gy is None else [gx, gy]


@_pair_loss_backward_op.register_fake
def _(x, labels, y, ref_labels, spec, params, backend, saved, grad):
    return [torch.empty_like(x)] if y is None else [torch.empty_like(x), torch.empty_like(y)]


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, labels, y, ref_labels, ctx.spec, ctx.params, ctx.backend, _ = inputs
    ctx.save_for_backward(x, labels, y, ref_labels, output[1])


def _op_backward(ctx: Any, grad: Tensor, *_: Any):
    x, labels, y, ref_labels, saved = ctx.saved_tensors
    gradients = torch.ops.dmlap.pair_loss_backward(
        x, labels, y, ref_labels, ctx.spec, ctx.params, ctx.backend, saved, grad
    )
    return gradients[0], None, gradients[1] if y is not None else None, *[None] * 5


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
