"""Rows in label order, ready for kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels.backends.precision import matmul_precision
from dmlap_kernels.problem import PairProblem, PairSpec, compute_dtype

# Rows shorter than this are not brought to unit length, as in torch.nn.functional.normalize.
_SHORT = 1e-12
# Features are padded with zeros to a multiple of this.
WIDTH = 16


class Sides(NamedTuple):
    """The two sides of a pair problem as kernels read them; all tensors contiguous on the device.

    Attributes:
        x: (B, Dp) anchors in stable label order, in the dtype of the computation, float32 for
            kernels; of unit length where the loss asks for it, less the `centre` for (sq)euclidean;
            features padded with zeros to a multiple of 16.
        y: (N, Dp) references likewise, less the same centre; ``x`` itself in the self case.
        x_norms, y_norms: (B,) and (N,) a and b of that dtype such that a + b - 2 x.y is the squared
            distance; for cosine and dot, whose d is a + b - x.y, they are 1 or 0 and 0. A column
            with b = inf does not exist: its d is inf, and it is in no run.
        first, last: (B,) int32; the columns [first, last) of y have the anchor's label.
        col_first, col_last: (N,) int32 the same of the columns over the anchors.
        order_x, order_y: (B,) and (N,) int64, what row of the caller's each row is.
        labels_x, labels_y: (B,) and (N,) int64, ascending.
        self_case: the pair of a row with itself does not exist.
        itself: (B,) int32, with references, the column that is the anchor itself, -1 for none; that
            pair does not exist. None where no anchor is among the columns.
        col_itself: the same of exchanged sides: (N,) the row that is the column itself.
        distance: a name of `dmlap_kernels.problem.DISTANCES`.
        precision: of matrix products, a name of `dmlap_kernels.problem.PRECISIONS`.
        features: D, before padding.
        x_grad, y_grad: whether the gradients at x and at y are wanted; those that are not are None
            wherever gradients are returned. Both are in the self case.
    """

    x: Tensor
    y: Tensor
    x_norms: Tensor
    y_norms: Tensor
    first: Tensor
    last: Tensor
    col_first: Tensor
    col_last: Tensor
    order_x: Tensor
    order_y: Tensor
    labels_x: Tensor
    labels_y: Tensor
    self_case: bool
    distance: str
    precision: str
    features: int
    x_grad: bool = True
    y_grad: bool = True
    itself: Tensor | None = None
    col_itself: Tensor | None = None

    @property
    def anchors(self) -> int:
        """B."""
        return self.x.shape[0]

    @property
    def columns(self) -> int:
        """N."""
        return self.y.shape[0]

    @property
    def positives(self) -> Tensor:
        """(B,) int64, how many positive pairs each anchor has."""
        positives = (self.last - self.first - int(self.self_case)).long()
        return positives if self.itself is None else positives - self._itself_within()

    @property
    def negatives(self) -> Tensor:
        """(B,) int64, how many negative pairs each anchor has."""
        negatives = (self.columns - (self.last - self.first)).long()
        if self.itself is None:
            return negatives
        return negatives - ((self.itself >= 0).long() - self._itself_within())

    def _itself_within(self) -> Tensor:
        """(B,) int64, 1 where the column that is the anchor itself has the anchor's label."""
        assert self.itself is not None
        return ((self.itself >= self.first) & (self.itself < self.last)).long()

    def swapped(self) -> Sides:
        """Anchors and references exchanged; the same in the self case."""
        if self.self_case:
            return self
        # The part of d that belongs to one side may be on either.
        return self._replace(
            x=self.y,
            y=self.x,
            x_norms=self.y_norms,
            y_norms=self.x_norms,
            first=self.col_first,
            last=self.col_last,
            col_first=self.first,
            col_last=self.last,
            order_x=self.order_y,
            order_y=self.order_x,
            labels_x=self.labels_y,
            labels_y=self.labels_x,
            x_grad=self.y_grad,
            y_grad=self.x_grad,
            itself=self.col_itself,
            col_itself=self.itself,
        )


def pack(spec: PairSpec, problem: PairProblem) -> Sides:
    """The sides of a loss call."""
    precision = spec.precision or matmul_precision()
    labels = (problem.labels, problem.ref_labels)
    sides = pack_rows(problem.x, problem.y, labels, spec.distance, spec.normalize, precision)
    if problem.self_index is None:
        return sides
    return sides._replace(itself=_packed_columns(sides, problem.self_index))


def _packed_columns(sides: Sides, indices: Tensor) -> Tensor:
    """Indices (B,) of the caller's references as columns, in the order of the anchors, int32.

    -1 of what is no index of a reference.
    """
    count = sides.columns
    column = torch.arange(count + 1, dtype=torch.int32, device=indices.device)
    column_of = torch.empty_like(column)
    column_of[sides.order_y] = column[:count]
    column_of[count] = -1
    exists = (indices >= 0) & (indices < count)
    return column_of[torch.where(exists, indices, count)][sides.order_x]


def pack_rows(
    x: Tensor,
    y: Tensor | None,
    labels: tuple[Tensor, Tensor | None],
    distance: str,
    normalize: bool,
    precision: str,
) -> Sides:
    """The sides of anchors (B, D) and references (N, D), or None, with their labels."""
    self_case, features = y is None, x.shape[1]
    unit = normalize or distance == "cosine"
    order_x = torch.argsort(labels[0], stable=True)
    sorted_x = labels[0][order_x]
    x = _ready(x, unit)
    y = None if y is None else _ready(y, unit)
    if distance in ("euclidean", "sqeuclidean"):
        offset = centre(x if y is None else torch.cat((x, y)))
        x, y = x - offset, None if y is None else y - offset
    x = _padded(x[order_x])
    x_norms = norms(x, distance, True)
    y_norms = x_norms if distance != "cosine" else norms(x, distance, False)
    if y is None or labels[1] is None:
        y, order_y, sorted_y = x, order_x, sorted_x
    else:
        order_y = torch.argsort(labels[1], stable=True)
        sorted_y = labels[1][order_y]
        y = _padded(y[order_y])
        y_norms = norms(y, distance, False)
    first, last = runs(sorted_x, sorted_y)
    col_first, col_last = (first, last) if self_case else runs(sorted_y, sorted_x)
    return Sides(
        x,
        y,
        x_norms,
        y_norms,
        first,
        last,
        col_first,
        col_last,
        order_x,
        order_y,
        sorted_x,
        sorted_y,
        self_case,
        distance,
        precision,
        features,
    )


def centre(rows: Tensor) -> Tensor:
    """An offset (D,) that all rows can lose without rounding, so that near rows stay as near.

    Where all values lie within [c/2, 2c] the difference to c is exact (Sterbenz). Elsewhere the
    offset is 0, and the values spread about as far as they are from the origin.
    """
    if rows.shape[0] == 0:
        return rows.new_zeros(rows.shape[1])
    low, high = rows.aminmax(dim=0)
    middle = torch.lerp(low, high, 0.5)
    # Values of one sign, the largest less than three times the smallest; false for what is not
    # finite.
    return torch.where(high - low < middle.abs(), middle, 0)


def norms(rows: Tensor, distance: str, anchors: bool) -> Tensor:
    """The part (B,) of d that a row (B, Dp) brings along, see `Sides`."""
    if distance in ("euclidean", "sqeuclidean"):
        return rows.square().sum(1)
    return rows.new_full((rows.shape[0],), float(anchors and distance == "cosine"))


def unpacked(sides: Sides, grad: Tensor, raw: Tensor, unit: bool, references: bool) -> Tensor:
    """The gradient at the caller's rows ``raw`` (B, D), given that at packed rows (B, Dp)."""
    order = sides.order_y if references else sides.order_x
    found = torch.empty((raw.shape[0], sides.features), dtype=grad.dtype, device=grad.device)
    found[order] = grad[:, : sides.features]
    return _through_unit(raw.detach().to(grad.dtype), found) if unit else found


def _ready(rows: Tensor, unit: bool) -> Tensor:
    rows = rows.detach().to(compute_dtype(rows.dtype))
    return _over(rows, _lengths(rows).clamp(min=_SHORT)) if unit else rows


def _lengths(rows: Tensor) -> Tensor:
    """(B, 1) float64: the squares of float32 numbers may be too large or too small for float32."""
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)


def _over(rows: Tensor, lengths: Tensor) -> Tensor:
    """Rows (B, D) over float64 lengths (B, 1), without a float64 table of float32 rows."""
    return torch.div(rows, lengths, out=torch.empty_like(rows))


def _through_unit(rows: Tensor, grad: Tensor) -> Tensor:
    """The gradient at rows (B, D), given that at `_ready` ones of unit length."""
    lengths = _lengths(rows)
    divisors = lengths.clamp(min=_SHORT)
    unit = _over(rows, divisors)
    # A row too short to be brought to unit length is divided by a constant.
    along = (unit * grad).sum(1, keepdim=True).masked_fill_(lengths < _SHORT, 0)
    return _over(torch.addcmul(grad, unit, along, value=-1), divisors)


def _padded(rows: Tensor) -> Tensor:
    missing = -rows.shape[1] % WIDTH
    return F.pad(rows, (0, missing)) if missing else rows.contiguous()


def runs(labels: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the end (B,) of the run of each label among sorted ones."""
    first = torch.searchsorted(others, labels, out_int32=True)
    return first, torch.searchsorted(others, labels, right=True, out_int32=True)
