"""The gradient of a weighted sum of terms, block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels.backends.chunked.blocks import Block, Sides, make_block, through_rows
from dmlap_kernels.backends.chunked.policies import LOG_SUMS_BEFORE, POLICIES
from dmlap_kernels.backends.chunked.terms import Terms
from dmlap_kernels.problem import Gradients, PairProblem, PairSpec


def log_sums_before(spec: PairSpec, problem: PairProblem, sides: Sides) -> Tensor | None:
    """What the loss must know of each reference (N,) before its terms; None if nothing."""
    if spec.loss not in LOG_SUMS_BEFORE:
        return None
    sums = sides.x.new_full((sides.y.shape[0] or 1,), -torch.inf)
    for at in sides.blocks():
        block = make_block(spec, problem, at, sides.x[at], sides.refs, None)
        sums = torch.logaddexp(sums, LOG_SUMS_BEFORE[spec.loss](spec.params, block))
    return sums


def gradients(spec: PairSpec, problem: PairProblem, weights: Tensor) -> Gradients:
    """The gradient of the sum of ``weights`` (B, groups) times each anchor's sums of terms."""
    sides = Sides.of(spec, problem)
    of_refs = log_sums_before(spec, problem, sides)
    sums = _GradientSums(spec, problem, sides)
    at_params = None if problem.anchor_params is None else torch.zeros_like(weights[:, 0])
    at_of_refs = None if of_refs is None else torch.zeros_like(of_refs)
    for at in sides.blocks() if sides.y.shape[0] else ():
        with torch.enable_grad():
            x, rows, block = _with_leaf_rows(spec, problem, at, sides, of_refs)
            cut = _cut(block)
            for terms in POLICIES[spec.loss](spec.params, cut):
                _accumulate(_weighed(spec, terms, weights[at]), _leaves(cut))
        sums.add(at, *torch.autograd.grad(block.d, (x, rows), _at(cut.d)))
        sums.add(at, _at(cut.rows), _at(cut.refs.rows))
        if at_params is not None and cut.anchor_params is not None:
            at_params[at] = _at(cut.anchor_params)
        if at_of_refs is not None and cut.of_refs is not None:
            at_of_refs += _at(cut.of_refs)
    if of_refs is not None and at_of_refs is not None:
        _add_through_log_sums(spec, problem, sides, sums, of_refs, at_of_refs)
    return sums.result(at_params)


@torch.no_grad()
def at_numbers(spec: PairSpec, problem: PairProblem, numbers: Tensor, weights: Tensor) -> Tensor:
    """The gradient of the same sum at ``numbers`` (P,), which fill the params of ``spec``."""
    sides = Sides.of(spec, problem)
    leaves = [_leaf(number) for number in numbers.unbind()]
    spec = spec.filled(leaves)
    of_refs = log_sums_before(spec, problem, sides)
    at_of_refs = None if of_refs is None else torch.zeros_like(of_refs)
    for at in sides.blocks() if sides.y.shape[0] else ():
        known = None if of_refs is None else _leaf(of_refs)
        block = make_block(spec, problem, at, sides.x[at], sides.refs, known)
        inputs = leaves if known is None else [*leaves, known]
        with torch.enable_grad():
            for terms in POLICIES[spec.loss](spec.params, block):
                _accumulate(_weighed(spec, terms, weights[at]), inputs)
        if at_of_refs is not None and known is not None:
            at_of_refs += _at(known)
    if of_refs is not None and at_of_refs is not None:
        for at in sides.blocks() if sides.y.shape[0] else ():
            block = make_block(spec, problem, at, sides.x[at], sides.refs, None)
            with torch.enable_grad():
                part = LOG_SUMS_BEFORE[spec.loss](spec.params, block)
            _accumulate(part, leaves, _share(part, of_refs, at_of_refs))
    return torch.stack([_at(leaf) for leaf in leaves]) + sides.poison


def _accumulate(total: Tensor, leaves: list[Tensor], grad: Tensor | None = None) -> None:
    """As `Tensor.backward(inputs=leaves)`, which PyTorch does not have inside a transform."""
    if not total.requires_grad:
        return
    found = torch.autograd.grad(total, leaves, grad, allow_unused=True)
    for leaf, part in zip(leaves, found, strict=True):
        if part is not None:
            leaf.grad = part if leaf.grad is None else leaf.grad + part


def _weighed(spec: PairSpec, terms: Terms, weights: Tensor) -> Tensor:
    totals = torch.stack([group.sum_for(spec.reduction) for group in terms.groups], 1)
    return (weights * totals).sum()


def _share(part: Tensor, of_refs: Tensor, at_of_refs: Tensor) -> Tensor:
    """The gradient at one block's log-sums (N,), given that at the log-sums of all."""
    share = torch.where(of_refs > -torch.inf, (part.detach() - of_refs).exp(), 0)
    return share * at_of_refs


def _add_through_log_sums(
    spec: PairSpec,
    problem: PairProblem,
    sides: Sides,
    sums: _GradientSums,
    of_refs: Tensor,
    at_of_refs: Tensor,
) -> None:
    """Adds what flows through the `log_sums_before`, given the gradient at them."""
    for at in sides.blocks() if sides.y.shape[0] else ():
        with torch.enable_grad():
            x, rows, block = _with_leaf_rows(spec, problem, at, sides, None)
            part = LOG_SUMS_BEFORE[spec.loss](spec.params, block)
        sums.add(at, *torch.autograd.grad(part, (x, rows), _share(part, of_refs, at_of_refs)))


class _GradientSums:
    """The gradients at the rows that distances see, of anchors and references."""

    def __init__(self, spec: PairSpec, problem: PairProblem, sides: Sides) -> None:
        self.spec, self.problem, self.sides = spec, problem, sides
        self.x, self.y = torch.zeros_like(sides.x), torch.zeros_like(sides.y)

    def add(self, at: slice, x: Tensor, refs: Tensor) -> None:
        self.x[at] += x
        self.add_refs(refs)

    def add_refs(self, refs: Tensor) -> None:
        self.y.index_add_(0, self.sides.refs.order, refs)

    def result(self, anchor_params: Tensor | None) -> Gradients:
        problem, unit, poison = self.problem, self.spec.unit_rows, self.sides.poison
        if anchor_params is not None:
            anchor_params = anchor_params + poison
        if problem.y is None:
            whole = through_rows(problem.x, self.x + self.y + poison, unit)
            return Gradients(whole, None, anchor_params)
        gx = through_rows(problem.x, self.x + poison, unit)
        return Gradients(gx, through_rows(problem.y, self.y + poison, unit), anchor_params)


def _with_leaf_rows(
    spec: PairSpec, problem: PairProblem, at: slice, sides: Sides, of_refs: Tensor | None
) -> tuple[Tensor, Tensor, Block]:
    """Anchors (b, D) and references (N, D) as leaves of autograd, and the block made of them."""
    x, rows = _leaf(sides.x[at]), _leaf(sides.refs.rows)
    refs = sides.refs._replace(rows=rows)
    return x, rows, make_block(spec, problem, at, x, refs, of_refs)


def _cut(block: Block) -> Block:
    """The block with leaves of autograd for all that a policy reads.

    So its parts are differentiated one by one, which bounds memory, and its distances once.
    """
    return block._replace(
        d=_leaf(block.d),
        rows=_leaf(block.rows),
        refs=block.refs._replace(rows=_leaf(block.refs.rows)),
        anchor_params=None if block.anchor_params is None else _leaf(block.anchor_params),
        of_refs=None if block.of_refs is None else _leaf(block.of_refs),
    )


def _leaves(block: Block) -> list[Tensor]:
    inputs = (block.d, block.rows, block.refs.rows, block.anchor_params, block.of_refs)
    return [leaf for leaf in inputs if leaf is not None]


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _at(leaf: Tensor) -> Tensor:
    """The gradient gathered at a leaf."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
