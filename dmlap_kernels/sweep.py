"""The one bridge between autograd and the backends.

Eager calls go through `_PairLoss`, a plain autograd function, because the dispatch of a custom
operator costs as much as a small batch itself. Under `torch.compile`, and for tensors without
memory of their own, the same two backend calls are the operators ``dmlap::pair_loss`` and
``dmlap::pair_loss_backward``, so that a loss is one node of a full graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor

from dmlap_kernels import versions
from dmlap_kernels.backends import orders, registry
from dmlap_kernels.backends.panels import TorchBackend
from dmlap_kernels.problem import Forward, PairProblem, PairSpec, PairStats, compute_dtype


class Sharing(Protocol):
    """Who takes over the calls of a loss whose batch lies in several processes."""

    def pair_loss(
        self, spec: PairSpec, problem: PairProblem, backend: str, stats: bool, scores: bool
    ) -> tuple[Tensor, PairStats | None]: ...

    def gathered(self, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, slice]:
        """Rows (E, D) and labels (E,) of all ranks, and where this rank's are among them."""
        ...


sharing: ContextVar[Sharing | None] = ContextVar("sharing", default=None)


def pair_loss(
    spec: PairSpec, problem: PairProblem, backend: str, *, stats: bool = False, scores: bool = False
) -> tuple[Tensor, PairStats | None]:
    """The loss of ``spec`` over ``problem``, differentiable in all of its floating tensors."""
    if torch.compiler.is_compiling() or not _are_plain(problem):
        return _as_operator(spec, problem, backend, stats, scores)
    if (others := sharing.get()) is not None:
        if spec.match is not None:
            raise ValueError("match is not served in a global batch, whose ranks exchange labels")
        return others.pair_loss(spec, problem, backend, stats, scores)
    return pair_loss_here(spec, problem, backend, stats, scores)


def pair_loss_here(
    spec: PairSpec,
    problem: PairProblem,
    backend: str,
    stats: bool,
    scores: bool,
    add_up: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, PairStats | None]:
    """`pair_loss` of this process. ``add_up`` adds a float64 tensor up over the processes that hold
    anchors of the same batch: the value, and what the gradient is divided by, are then the batch's
    (but for the reduction "none")."""
    runner = _runner(backend, spec, problem)
    call = _Call(spec, runner, stats, scores, add_up)
    if _is_transformed():
        return _TransformedPairLoss.apply(call, *problem), call.stats
    x, _, y, _, anchor_params, _, numbers = problem
    if y is None and anchor_params is None and numbers is None:
        return _PairLoss.apply(call, problem, x), call.stats
    given = [t for t in (x, y, anchor_params, numbers) if t is not None]
    return _PairLoss.apply(call, problem, *given), call.stats


_PLAIN = (Tensor, torch.nn.Parameter)


def _are_plain(problem: PairProblem) -> bool:
    """Whether there is memory behind all: not so for fake tensors, "meta" and wrappers, which only
    the operators know to treat."""
    for tensor in problem:
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_meta):
            return False
    return True


def _runner(name: str, spec: PairSpec, problem: PairProblem) -> registry.Backend:
    """The backend of a call, ``name`` being what a user gives, or that with an `_installation`.

    One with kernels of its own is handed numbers by value, and would have to wait for a device
    that has them.
    """
    name = name.partition("@")[0]
    numbers = problem.numbers
    if numbers is not None and numbers.device.type != "cpu":
        if name not in ("auto", "torch"):
            raise ValueError(
                f"backend {name!r} takes the numbers of a loss as Python numbers or as tensors on "
                f"the CPU, got one on {numbers.device}"
            )
        name = "torch"
    return registry.choose(name, spec, problem.x, problem.y)


def _with_values(spec: PairSpec, numbers: Tensor | None, runner: registry.Backend) -> PairSpec:
    """``spec`` with the values of ``numbers``; as tensors where reading them could wait."""
    if numbers is None:
        return spec
    return spec.filled(numbers.tolist() if numbers.device.type == "cpu" else numbers.unbind())


def _gradients(
    call: _Call, problem: PairProblem, grad: Tensor, wants_numbers: bool, context: Any
) -> tuple[Tensor | None, ...]:
    """At the tensors of ``problem``, in their order."""
    runner, numbers = call.runner, problem.numbers
    spec = _with_values(call.spec, numbers, runner)
    gx, gy, g_anchor = runner.backward(spec, problem, call.saved, grad, context)
    g_numbers = None
    if numbers is not None and wants_numbers:
        g_numbers = _at_numbers(call.spec, problem, runner, call.saved, grad, call.counts)
    return gx, None, gy, None, g_anchor, None, g_numbers


def _at_numbers(
    spec: PairSpec,
    problem: PairProblem,
    runner: registry.Backend,
    saved: Tensor,
    grad: Tensor,
    counts: Tensor | None = None,
) -> Tensor:
    portable = registry.backends()["torch"]
    assert isinstance(portable, TorchBackend) and problem.numbers is not None
    known = saved if runner is portable else None
    if known is None and counts is not None:
        filled = spec.filled(problem.numbers.detach().unbind())
        known = portable.forward(filled, problem, False, False).saved
        known = portable.with_counts(filled, known, counts)
    found = portable.at_numbers(spec, problem, problem.numbers, known, grad)
    return found.to(problem.numbers)


class _Call:
    """One eager call: what its forward is asked for, and what it leaves for its backward beside the
    tensors that autograd guards."""

    __slots__ = (
        "add_up",
        "context",
        "counts",
        "recorded",
        "runner",
        "saved",
        "scores",
        "spec",
        "stats",
        "wanted",
    )

    def __init__(
        self,
        spec: PairSpec,
        runner: registry.Backend,
        stats: bool,
        scores: bool,
        add_up: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.spec, self.runner, self.wanted, self.scores = spec, runner, stats, scores
        self.add_up = add_up
        self.counts: Tensor | None = None
        self.recorded = torch.is_grad_enabled()

    def run(self, problem: PairProblem) -> Tensor:
        if not self.recorded:
            problem = _without_backward(problem)
        spec = _with_values(self.spec, problem.numbers, self.runner)
        result = self.runner.forward(spec, problem, self.wanted, self.scores)
        self.saved, self.stats = result.saved, result.stats
        # Under a transform of torch.func a tensor does not tell whether it needs a gradient, which
        # the context relies on.
        self.context = None if _is_transformed() else result.context
        return result.loss if self.add_up is None else self._added_up(spec, result, self.add_up)

    def _added_up(
        self, spec: PairSpec, result: Forward, add_up: Callable[[Tensor], Tensor]
    ) -> Tensor:
        loss = result.loss
        if spec.reduction == "none":
            return loss
        if spec.reduction == "sum":
            return add_up(loss.double()).to(loss.dtype)
        sums, counts = add_up(self.runner.parts(spec, result))
        self.counts = counts = counts.clamp(min=1)
        self.saved = self.runner.with_counts(spec, result.saved, counts)
        return (sums / counts).sum().to(loss.dtype)


def _without_backward(problem: PairProblem) -> PairProblem:
    """The same for a forward to which no backward belongs that something could be kept for."""
    return PairProblem._make(
        t.detach() if t is not None and t.requires_grad else t for t in problem
    )


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active()


class _PairLoss(torch.autograd.Function):
    """Counts microseconds: no `setup_context`, for which PyTorch looks at the signature in every
    call; and of the tensors only those that may need a gradient are arguments of their own."""

    @staticmethod
    def forward(ctx: Any, call: _Call, problem: PairProblem, *given: Tensor):
        ctx.call = call
        ctx.save_for_backward(*problem)
        return call.run(problem)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        tensors = ctx.saved_tensors
        found = _backward(ctx.call, tensors, grad, ctx.needs_input_grad[-1])
        if len(ctx.needs_input_grad) == 3:
            return None, None, found[0]
        # Those of tensors that are there, in the order in which `pair_loss` gives them.
        return None, None, *(found[i] for i in (0, 2, 4, 6) if tensors[i] is not None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any):
        raise RuntimeError(
            "a fused loss takes one batch at a time: torch.vmap cannot run over embeddings or "
            "labels; call the loss in a loop"
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any):
        raise RuntimeError(_NO_FORWARD_MODE)


class _TransformedPairLoss(_PairLoss):
    """The same under a transform of `torch.func`, which asks for this form, and sees its own
    tensors only among the arguments."""

    @staticmethod
    def forward(call: _Call, *tensors):  # type: ignore[override]
        return call.run(PairProblem(*tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor):
        call, *tensors = inputs
        ctx.call = call
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        return None, *_backward(ctx.call, ctx.saved_tensors, grad, ctx.needs_input_grad[-1])


def _backward(
    call: _Call, tensors: Sequence[Tensor | None], grad: Tensor, wants_numbers: bool
) -> tuple[Tensor | None, ...]:
    """The gradients at ``tensors``, those of the problem."""
    # A loss that is kept for the log must not keep its batch; a second backward does without.
    context, call.context = call.context, None
    if torch._C._functorch.is_legacy_batchedtensor(grad):
        return _batched_gradients(call, wants_numbers, grad, tensors)
    if torch.is_grad_enabled() or _is_transformed():
        return _PairLossBackward.apply(call, wants_numbers, grad, *tensors)
    return _gradients(call, PairProblem._make(tensors), grad, wants_numbers, context)


class _PairLossBackward(torch.autograd.Function):
    """The backward sweep as a function of its own, where somebody looks on: `create_graph=True`,
    `torch.func`, batched gradients. It refuses to be differentiated."""

    @staticmethod
    def forward(call: _Call, wants_numbers: bool, grad: Tensor, *tensors):
        return _gradients(call, PairProblem(*tensors), grad, wants_numbers, None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple):
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        raise RuntimeError(
            "fused losses can be differentiated once: their backward sweep has no derivative of "
            "its own (use a plain PyTorch loss where a gradient of a gradient is needed)"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple, call: _Call, wants_numbers: bool, grad: Tensor, *tensors):
        if any(dim is not None for dim in in_dims[3:]):
            return _PairLoss.vmap(info, in_dims)
        found = _one_by_one(call, wants_numbers, grad.unbind(in_dims[2]), tensors)
        return found, tuple(None if part is None else 0 for part in found)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any):
        raise RuntimeError(_NO_FORWARD_MODE)


def _one_by_one(
    call: _Call, wants_numbers: bool, grads: Sequence[Tensor], tensors: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The gradients for each of several gradients at the loss, stacked."""
    found = [_PairLossBackward.apply(call, wants_numbers, grad, *tensors) for grad in grads]
    columns = zip(*found, strict=True)
    return tuple(None if parts[0] is None else torch.stack(parts) for parts in columns)


def _batched_gradients(
    call: _Call, wants_numbers: bool, grad: Tensor, tensors: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The gradients where `torch.autograd` hands over a batch (`is_grads_batched`, `jacobian` with
    ``vectorize=True``) in a wrapper that only its own functions open."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    batch = torch._remove_batch_dim(grad, level, 0, 0)
    if torch._C._functorch.is_legacy_batchedtensor(batch):
        raise RuntimeError(
            "a fused loss takes batched gradients (is_grads_batched, vectorize) of one level only"
        )
    found = _one_by_one(call, wants_numbers, batch.unbind(), tensors)
    return tuple(None if part is None else torch._add_batch_dim(part, 0, level) for part in found)


_NO_FORWARD_MODE = (
    "fused losses have no forward-mode derivative (jvp, jacfwd, hessian); use reverse mode (grad, "
    "vjp, jacrev), or a plain PyTorch loss"
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


# The operators. `numbers` are all params of the loss but flags, so that another value, or another
# seed, is another operand of the same graph.


@torch.library.custom_op("dmlap::pair_loss", mutates_args=())
def _pair_loss_op(
    x: Tensor,
    labels: Tensor,
    y: Tensor | None,
    ref_labels: Tensor | None,
    anchor_params: Tensor | None,
    self_index: Tensor | None,
    numbers: Tensor | None,
    spec: str,
    backend: str,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, what backward needs, and the packed statistics (empty unless asked for)."""
    problem = PairProblem(x, labels, y, ref_labels, anchor_params, self_index, numbers)
    decoded = PairSpec.decode(spec)
    runner = _runner(backend, decoded, problem)
    values = _with_values(decoded, numbers, runner)
    result = runner.forward(values, _without_backward(problem), stats, False)
    if result.stats is not None:
        return result.loss, result.saved, *result.stats.packed()
    return result.loss, result.saved, labels.new_empty(0), result.loss.new_empty(0)


@_pair_loss_op.register_fake
def _(x, labels, y, ref_labels, anchor_params, self_index, numbers, spec, backend, stats):
    decoded = PairSpec.decode(spec)
    problem = PairProblem(x, labels, y, ref_labels, anchor_params, self_index, numbers)
    runner = _runner(backend, decoded, problem)
    real = compute_dtype(x.dtype)
    rows = x.shape[0]
    loss = x.new_empty((rows,) if decoded.reduction == "none" else (), dtype=real)
    counts = x.new_empty((2 + 2 * rows if stats else 0,), dtype=torch.int64)
    values = x.new_empty((3 if stats else 0,), dtype=real)
    return loss, runner.saved_like(decoded, problem), counts, values


@torch.library.custom_op("dmlap::pair_loss_backward", mutates_args=())
def _pair_loss_backward_op(
    x: Tensor,
    labels: Tensor,
    y: Tensor | None,
    ref_labels: Tensor | None,
    anchor_params: Tensor | None,
    self_index: Tensor | None,
    numbers: Tensor | None,
    spec: str,
    backend: str,
    saved: Tensor,
    grad: Tensor,
    wants_numbers: bool,
) -> list[Tensor]:
    """The gradients at x, y, anchor_params and, if wanted, numbers; without those of None."""
    problem = PairProblem(x, labels, y, ref_labels, anchor_params, self_index, numbers)
    decoded = PairSpec.decode(spec)
    runner = _runner(backend, decoded, problem)
    with _autograd_inside_operators():
        values = _with_values(decoded, numbers, runner)
        found = list(runner.backward(values, problem, saved, grad))
        if wants_numbers:
            found.append(_at_numbers(decoded, problem, runner, saved, grad))
    return [g for g in found if g is not None]


@_pair_loss_backward_op.register_fake
def _(x, labels, y, ref_labels, anchor_params, self_index, numbers, *rest):
    wanted = (x, y, anchor_params, numbers if rest[-1] else None)
    return [torch.empty_like(t) for t in wanted if t is not None]


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.spec, ctx.backend, _ = inputs
    ctx.save_for_backward(*tensors, output[1])


def _op_backward(ctx: Any, grad: Tensor, *_: Any):
    *tensors, saved = ctx.saved_tensors
    wants_numbers = ctx.needs_input_grad[6]
    found = iter(
        torch.ops.dmlap.pair_loss_backward(
            *tensors, ctx.spec, ctx.backend, saved, grad, wants_numbers
        )
    )
    x, _, y, _, anchor_params, _, _ = tensors
    gx, gy, g_anchor = (None if t is None else next(found) for t in (x, y, anchor_params))
    return gx, None, gy, None, g_anchor, None, next(found, None), None, None, None


_pair_loss_op.register_autograd(_op_backward, setup_context=_setup_context)


def _installation() -> str:
    """What a graph relies on beside its operands: PyTorch keeps compiled graphs on disk, and
    another version, one whose extension is missing, or another order of backends leaves other
    tensors for backward."""
    usable = (name for name, one in registry.backends().items() if one.unavailable() is None)
    return ",".join((versions.found("dmlap_kernels") or "", *usable, orders.fingerprint()))


# What torch.compiler.assume_constant_result leaves at a function. The decorator itself imports the
# compiler and with it Triton, which no `import dmlap_kernels` should wait for.
_installation._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _as_operator(
    spec: PairSpec, problem: PairProblem, backend: str, stats: bool, scores: bool
) -> tuple[Tensor, PairStats | None]:
    if spec.match is not None:
        raise RuntimeError(
            "match cannot be compiled or traced: call the loss outside torch.compile, on tensors "
            "with data"
        )
    if scores:
        raise RuntimeError(
            'return_stats="class_scores" cannot be compiled or traced: the number of classes '
            "depends on the data; call the loss outside torch.compile, on tensors with data"
        )
    name = f"{backend}@{_installation()}"
    loss, _, counts, values = torch.ops.dmlap.pair_loss(*problem, spec.encode(), name, stats)
    return loss, PairStats.unpack(counts, values.detach()) if stats else None
