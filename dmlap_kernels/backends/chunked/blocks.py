"""Blocks of anchors against all references, the references in label order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels.problem import PairProblem, PairSpec, compute_dtype

# About a dozen (block, N) tensors live at once; this bounds one of them.
_BLOCK_BYTES = 4 << 20
# Of the differences between rows that the gradient of Euclidean distances holds on a GPU.
DIFFERENCE_BYTES = 64 << 20


class References(NamedTuple):
    """References in label order: `rows` (N, D), `labels` (N,) and what they were, `order` (N,)."""

    rows: Tensor
    labels: Tensor
    order: Tensor

    @property
    def classes(self) -> Tensor:
        """(N,) which of the classes present each reference belongs to, from 0."""
        new = self.labels[1:] != self.labels[:-1]
        return torch.cat((new.new_zeros(1), new)).cumsum(0)


class Block(NamedTuple):
    """A block of b anchors against all references.

    Distances `d`, and which pairs are `positive` and `negative`, (b, N) in the order of `refs`;
    the index of each anchor, its row (b, D) and its parameter (b,); what the loss needs to know of
    each reference before it sees a block (N,).
    """

    d: Tensor
    positive: Tensor
    negative: Tensor
    refs: References
    distance: str
    anchors: Tensor
    self_case: bool
    rows: Tensor
    anchor_params: Tensor | None = None
    of_refs: Tensor | None = None

    def lines(self, rows: Tensor) -> Tensor:
        """Distances (k, N) of anchors ``rows`` (k,) to all references.

        By `index_select`, here and below: the gradient of an index in brackets adds in no fixed
        order on several threads.
        """
        return self.d.index_select(0, rows)

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Distances (k,) of anchors ``rows`` to references ``columns`` (k,)."""
        return self.d.flatten().index_select(0, rows * self.d.shape[1] + columns)

    def nearer(self, anchors: Tensor, p: Tensor, n: Tensor) -> Tensor:
        """The smaller of d(anchor, n) and d(p, n) (k,), of anchors of the block and references.

        Both are computed in one way, so that they are equal where their rows are.
        """
        x, y = self.rows.index_select(0, anchors), self.refs.rows.index_select(0, n)
        d_an = row_distances(x, y, self.distance)
        return torch.minimum(d_an, self.between(p, n))

    def between(self, p: Tensor, n: Tensor) -> Tensor:
        """Distances (k,) between references p and n (k,)."""
        rows = self.refs.rows
        return row_distances(rows.index_select(0, p), rows.index_select(0, n), self.distance)

    def from_refs(self, p: Tensor) -> Tensor:
        """Distances (k, N) of references p (k,) to all references."""
        return distances(self.refs.rows.index_select(0, p), self.refs.rows, self.distance)

    def positive_pairs(self, width: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and columns (k,) of the positive pairs, so many that (k, width) is bounded."""
        rows, columns = self.positive.nonzero(as_tuple=True)
        step = rows_in_a_block(width, self.d.element_size())
        yield from zip(rows.split(step), columns.split(step), strict=True)


class Sides(NamedTuple):
    """The tensors of a problem as distances see them: in the compute dtype, of unit length."""

    x: Tensor
    y: Tensor
    refs: References

    @staticmethod
    def of(spec: PairSpec, problem: PairProblem) -> Sides:
        x = ready(problem.x, spec.unit_rows)
        y, labels = problem.ref_side
        y = x if problem.y is None else ready(y, spec.unit_rows)
        return Sides(x, y, in_label_order(y, labels))

    def blocks(self) -> Iterator[slice]:
        return anchor_blocks(self.x.shape[0], self.y.shape[0], self.x.element_size())

    @property
    def poison(self) -> Tensor:
        """0, or NaN where an embedding is not finite."""
        return self.x.mul(0).sum() + self.y.mul(0).sum()


def distances(x: Tensor, y: Tensor, distance: str) -> Tensor:
    """Distances (B, N) of rows (B, D) and (N, D)."""
    if distance == "dot":
        return -(x @ y.T)
    if distance == "cosine":
        return 1 - x @ y.T
    d = Euclidean.apply(x, y)
    return d if distance == "euclidean" else d.square()


class Euclidean(torch.autograd.Function):
    """Distances (B, N) by differences, not through a matrix product: its cancellation for near
    pairs is what a fallback must not add.

    The derivative that PyTorch has for GPUs keeps a difference for each pair and feature. Here it
    is taken of so few pairs at a time that they fit into `DIFFERENCE_BYTES`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        d = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        ctx.save_for_backward(x, y, d)
        return d

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, y, d = ctx.saved_tensors
        gx, gy = torch.zeros_like(x), torch.zeros_like(y)
        for rows, columns in _pieces(x, y):
            pieces = grad[rows, columns], x[rows], y[columns], d[rows, columns]
            at_d, xs, ys, ds = (piece.contiguous() for piece in pieces)
            gx[rows] += torch.ops.aten._cdist_backward(at_d, xs, ys, 2.0, ds)
            turned = at_d.T.contiguous(), ys, xs, 2.0, ds.T.contiguous()
            gy[columns] += torch.ops.aten._cdist_backward(*turned)
        return gx, gy


def _pieces(x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of rows and columns that cover all pairs."""
    if not _keeps_differences(x.device):
        yield slice(None), slice(None)
        return
    pairs = max(1, DIFFERENCE_BYTES // (x.shape[1] * x.element_size()))
    width = min(y.shape[0], pairs)
    height = max(1, pairs // max(1, width))
    for i in range(0, x.shape[0], height):
        for j in range(0, y.shape[0], width):
            yield slice(i, i + height), slice(j, j + width)


def _keeps_differences(device: torch.device) -> bool:
    """Whether PyTorch's derivative of distances does so there."""
    return device.type != "cpu"


def row_distances(p: Tensor, n: Tensor, distance: str) -> Tensor:
    """Distances (k,) of rows (k, D) to rows (k, D)."""
    if distance == "dot":
        return -(p * n).sum(1)
    if distance == "cosine":
        return 1 - (p * n).sum(1)
    squared = (p - n).square().sum(1)
    if distance == "sqeuclidean":
        return squared
    return torch.where(squared > 0, squared, 1).sqrt().where(squared > 0, squared)


def ready(rows: Tensor, unit: bool) -> Tensor:
    rows = rows.detach().to(compute_dtype(rows.dtype))
    return F.normalize(rows, eps=1e-12) if unit else rows


def through_rows(rows: Tensor, grad: Tensor, unit: bool) -> Tensor:
    """The gradient at the raw rows, given the gradient at the rows that distances saw."""
    if unit:
        with torch.enable_grad():
            raw = rows.detach().to(grad.dtype).requires_grad_()
            (grad,) = torch.autograd.grad(F.normalize(raw, eps=1e-12), raw, grad)
    return grad.to(rows.dtype)


def in_label_order(rows: Tensor, labels: Tensor) -> References:
    order = torch.argsort(labels, stable=True)
    return References(rows[order], labels[order], order)


def full_precision(tensor: Tensor) -> AbstractContextManager:
    """Autocast would take matrix products in half precision."""
    kind = tensor.device.type
    available = torch.amp.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if available else nullcontext()


def rows_in_a_block(width: int, itemsize: int) -> int:
    return max(1, _BLOCK_BYTES // max(1, width * itemsize))


def anchor_blocks(anchors: int, refs: int, itemsize: int) -> Iterator[slice]:
    step = rows_in_a_block(refs, itemsize)
    for start in range(0, anchors, step):
        yield slice(start, min(start + step, anchors))


def make_block(
    spec: PairSpec,
    problem: PairProblem,
    at: slice,
    x: Tensor,
    refs: References,
    of_refs: Tensor | None,
) -> Block:
    """The block of the anchors ``at``, whose rows are ``x`` (b, D)."""
    self_case = problem.y is None
    anchors = torch.arange(at.start, at.stop, device=x.device)
    if refs.rows.shape[0] == 0:
        # A reference that is in no pair, so that reductions over references have one.
        column = torch.zeros(1, dtype=torch.int64, device=x.device)
        refs = References(x.new_zeros(1, x.shape[1]), column, column)
        positive = negative = torch.zeros(len(anchors), 1, dtype=torch.bool, device=x.device)
    else:
        positive = problem.labels[at, None] == refs.labels
        negative = ~positive
        if self_case:
            positive &= anchors[:, None] != refs.order
        elif problem.self_index is not None:
            other = problem.self_index[at, None] != refs.order
            positive, negative = positive & other, negative & other
    return Block(
        distances(x, refs.rows, spec.distance),
        positive,
        negative,
        refs,
        spec.distance,
        anchors,
        self_case,
        x,
        None if problem.anchor_params is None else problem.anchor_params[at],
        of_refs,
    )
