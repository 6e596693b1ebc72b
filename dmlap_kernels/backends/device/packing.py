"""Rows in label order, ready for kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels.backends.precision import matmul_precision
from dmlap_kernels.match import Match
from dmlap_kernels.problem import PairProblem, PairSpec, compute_dtype

# Rows shorter than this are not brought to unit length, as in torch.nn.functional.normalize.
_SHORT = 1e-12
# Kernels read features padded with zeros to a multiple of this.
TILE_WIDTH = 16


class Lengths(NamedTuple):
    """Of rows that were brought to unit length, in the order of the caller: how long they were and
    what they were divided by, (B, 1) float64; and the rows (B, D) of unit length, None where they
    are not kept."""

    lengths: Tensor
    divisors: Tensor
    rows: Tensor | None


class Sides(NamedTuple):
    """The two sides of a pair problem as kernels read them; all tensors contiguous on the device.

    Attributes:
        x: (B, Dp) anchors in stable label order, in the dtype of the computation, float32 for
            kernels; of unit length where the loss asks for it, less the `centre` for (sq)euclidean;
            features padded with zeros to a multiple of 16 for kernels.
        y: (N, Dp) references likewise, less the same centre; ``x`` itself in the self case.
        x_norms, y_norms: (B,) and (N,) a and b of that dtype such that a + b - 2 x.y is the squared
            distance; for cosine and dot, whose d is a + b - x.y, they are 1 or 0 and 0, or left out
            (0,) where rows are not in label order. A column with b = inf does not exist: its d is
            inf, and it is in no run.
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
        in_label_order: whether rows are; else they are in the order of the caller, and all runs and
            orders above are empty. Only for those who compare labels.
        lengths_x, lengths_y: `Lengths` of the rows; None where their lengths are as they were, and
            in the self case the second.
        partial: whether some columns do not exist.
        match: which pairs are positive, where not those of equal labels; rows are then in the order
            of the caller. Only for those who compare labels.
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
    in_label_order: bool = True
    lengths_x: Lengths | None = None
    lengths_y: Lengths | None = None
    partial: bool = False
    match: Match | None = None

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

    @property
    def numbers(self) -> Tensor:
        """(B,) int64, what an anchor's random draws are keyed by: its index among the references if
        it is one, so that a batch and a part of it compared with all of it draw alike; else its
        row."""
        if self.itself is None or self.columns == 0:
            return self.order_x
        own = self.order_y[self.itself.clamp(min=0).long()]
        return torch.where(self.itself >= 0, own, self.order_x)

    def _itself_within(self) -> Tensor:
        """(B,) int64, 1 where the column that is the anchor itself has the anchor's label."""
        assert self.itself is not None
        return ((self.itself >= self.first) & (self.itself < self.last)).long()

    def swapped(self) -> Sides:
        """Anchors and references exchanged; the same in the self case, unless pairs are matched."""
        if self.self_case and self.match is None:
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
            lengths_x=self.lengths_y,
            lengths_y=self.lengths_x,
            match=None if self.match is None else self.match.transposed(),
        )

    def from_caller(self, rows: Tensor) -> Tensor:
        """Rows (B, ...) of anchors in the caller's order, in the order of the sides."""
        return rows[self.order_x] if self.in_label_order else rows

    def to_caller(self, rows: Tensor, references: bool = False) -> Tensor:
        """Rows (B, ...) of anchors, or (N, ...) of references, in the caller's order."""
        if not self.in_label_order:
            return rows
        order = self.order_y if references else self.order_x
        return torch.empty_like(rows).index_copy_(0, order, rows)


def pack(
    spec: PairSpec, problem: PairProblem, in_label_order: bool = True, width: int = TILE_WIDTH
) -> Sides:
    """The sides of a loss call, whose features are padded to a multiple of ``width``."""
    precision = spec.precision or matmul_precision()
    labels = (problem.labels, problem.ref_labels)
    how = spec.distance, spec.normalize, precision, in_label_order, width
    sides = pack_rows(problem.x, problem.y, labels, *how)
    if spec.match is not None:
        sides = sides._replace(match=spec.match)
    if problem.self_index is None:
        return sides
    return sides._replace(itself=_packed_columns(sides, problem.self_index))


def _packed_columns(sides: Sides, indices: Tensor) -> Tensor:
    """Indices (B,) of the caller's references as columns, in the order of the anchors, int32.

    -1 of what is no index of a reference.
    """
    count = sides.columns
    exists = (indices >= 0) & (indices < count)
    if not sides.in_label_order:
        return torch.where(exists, indices, -1).int()
    column = torch.arange(count + 1, dtype=torch.int32, device=indices.device)
    column_of = torch.empty_like(column)
    column_of[sides.order_y] = column[:count]
    column_of[count] = -1
    return column_of[torch.where(exists, indices, count)][sides.order_x]


def pack_rows(
    x: Tensor,
    y: Tensor | None,
    labels: tuple[Tensor, Tensor | None],
    distance: str,
    normalize: bool,
    precision: str,
    in_label_order: bool = True,
    width: int = TILE_WIDTH,
    each_by_itself: bool = False,
) -> Sides:
    """The sides of anchors (B, D) and references (N, D), or None, with their labels.

    A row that is not finite may make others so, which does not matter to a loss, unless rows are to
    be ``each_by_itself``.
    """
    self_case, features = y is None, x.shape[1]
    unit = normalize or distance == "cosine"
    x, lengths_x = _ready(x, unit, in_label_order)
    y, lengths_y = (None, None) if y is None else _ready(y, unit, in_label_order)
    if distance in ("euclidean", "sqeuclidean"):
        middle, exact = centre(x if y is None else torch.cat((x, y)))
        if each_by_itself:
            middle = torch.where(exact > 0, middle, 0)
        x = less(x, middle, exact)
        y = None if y is None else less(y, middle, exact)
    x, labels_x, order_x = _ordered(x, labels[0], in_label_order, width)
    x_norms = y_norms = x.new_empty(0)
    varied = in_label_order or distance in ("euclidean", "sqeuclidean")
    if varied:
        x_norms = norms(x, distance, True)
        y_norms = x_norms if distance != "cosine" else norms(x, distance, False)
    if y is None or labels[1] is None:
        y, labels_y, order_y = x, labels_x, order_x
    else:
        y, labels_y, order_y = _ordered(y, labels[1], in_label_order, width)
        y_norms = norms(y, distance, False) if varied else y_norms
    first = last = col_first = col_last = order_x
    if in_label_order:
        first, last = runs(labels_x, labels_y)
        col_first, col_last = (first, last) if self_case else runs(labels_y, labels_x)
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
        labels_x,
        labels_y,
        self_case,
        distance,
        precision,
        features,
        in_label_order=in_label_order,
        lengths_x=lengths_x,
        lengths_y=lengths_y,
    )


def _ordered(
    rows: Tensor, labels: Tensor, in_label_order: bool, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Padded rows, their labels and their order, which is empty where it stays."""
    if not in_label_order:
        return _padded(rows, width), labels, labels.new_empty(0)
    order = torch.argsort(labels, stable=True)
    return _padded(rows[order], width), labels[order], order


def centre(rows: Tensor) -> tuple[Tensor, Tensor]:
    """An offset (D,), and in which features all rows can lose it without rounding, so that near
    rows stay as near.

    Where all values lie within [c/2, 2c] the difference to c is exact (Sterbenz). Elsewhere the
    values spread about as far as they are from the origin.
    """
    if rows.shape[0] == 0:
        nothing = rows.new_zeros(rows.shape[1])
        return nothing, nothing
    low, high = rows.aminmax(dim=0)
    middle = torch.lerp(low, high, 0.5)
    # Values of one sign, the largest less than three times the smallest; false for what is not
    # finite.
    return middle, high - low < middle.abs()


def less(rows: Tensor, middle: Tensor, exact: Tensor) -> Tensor:
    """Rows (B, D) less a `centre`, where that is exact."""
    return torch.addcmul(rows, middle, exact, value=-1)


def norms(rows: Tensor, distance: str, anchors: bool) -> Tensor:
    """The part (B,) of d that a row (B, Dp) brings along, see `Sides`."""
    if distance in ("euclidean", "sqeuclidean"):
        return rows.square().sum(1)
    return rows.new_full((rows.shape[0],), float(anchors and distance == "cosine"))


def unpacked(
    sides: Sides, grad: Tensor, raw: Tensor, references: bool, nonfinite: Tensor
) -> Tensor:
    """The gradient at the caller's rows ``raw`` (B, D), given that at packed rows (B, Dp); plus a
    number (), 0 or NaN."""
    lengths = sides.lengths_y if references else sides.lengths_x
    found = sides.to_caller(grad[:, : sides.features], references)
    if lengths is None:
        return found + nonfinite
    return _through_unit(raw.detach().to(grad.dtype), lengths, found, nonfinite)


def _ready(rows: Tensor, unit: bool, in_label_order: bool) -> tuple[Tensor, Lengths | None]:
    rows = rows.detach().to(compute_dtype(rows.dtype))
    if not unit:
        return rows, None
    # The squares of float32 numbers may be too large or too small for float32.
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
    divisors = length.clamp(min=_SHORT)
    rows = _over(rows, divisors)
    # Rows that change their order would be kept twice.
    return rows, Lengths(length, divisors, None if in_label_order else rows)


def _over(rows: Tensor, lengths: Tensor) -> Tensor:
    """Rows (B, D) over float64 lengths (B, 1), without a float64 table of float32 rows."""
    return torch.div(rows, lengths, out=torch.empty_like(rows))


def _through_unit(rows: Tensor, lengths: Lengths, grad: Tensor, nonfinite: Tensor) -> Tensor:
    """The gradient at rows (B, D), given that at `_ready` ones of unit length."""
    unit = _over(rows, lengths.divisors) if lengths.rows is None else lengths.rows
    # A row too short to be brought to unit length is divided by a constant.
    along = (unit * grad).sum(1, keepdim=True)
    along = torch.addcmul(nonfinite, along, lengths.lengths >= _SHORT)
    return _over(torch.addcmul(grad, unit, along, value=-1), lengths.divisors)


def _padded(rows: Tensor, width: int) -> Tensor:
    missing = -rows.shape[1] % width
    return F.pad(rows, (0, missing)) if missing else rows.contiguous()


def runs(labels: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the end (B,) of the run of each label among sorted ones."""
    first = torch.searchsorted(others, labels, out_int32=True)
    return first, torch.searchsorted(others, labels, right=True, out_int32=True)
