"""The primitives of `dmlap_kernels.backends.device.sweeps` in plain PyTorch, panel by panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.device.sweeps import (
    Both,
    Exponent,
    Extremes,
    HingeSums,
    LogSums,
    PairGradient,
    PairTerms,
    Triplets,
)
from dmlap_kernels.backends.device.terms import softplus
from dmlap_kernels.backends.panels import (
    angular,
    pair_weights,
    panel_search,
    panel_triplets,
    soft_triple,
)
from dmlap_kernels.backends.panels.exponents import (
    exponent_of,
    lifted,
    lifted_by_neg_lse,
    log_sum,
)
from dmlap_kernels.backends.panels.gradients import Gradients
from dmlap_kernels.backends.panels.panel import Panel, Panels


class PanelSweeps:
    """See `dmlap_kernels.backends.device.sweeps.Sweeps`. One for each call, which may keep its
    panels for its backward half."""

    def __init__(self) -> None:
        self.panels = Panels()

    def extremes(self, sides: Sides, sums: bool) -> Extremes:
        found = self.panels.each(sides, _sums_and_extremes if sums else _extremes)
        return Extremes(*found, *(() if sums else (None, None)))

    def nearest_pairs(self, sides: Sides, negative_above: Tensor | None = None) -> Extremes:
        positive, p, negative, n = self.panels.each(sides, _nearest_pairs, (negative_above,))
        return Extremes(positive, p, negative, n, None, None)

    def hinge_sums(
        self,
        sides: Sides,
        positive_bound: Tensor,
        negative_bound: Tensor,
        squared: bool,
        read: tuple[str, ...] = HingeSums._fields,
    ) -> HingeSums:
        def body(panel: Panel, low: Tensor, high: Tensor) -> Sequence[Tensor]:
            pull = panel.positives_of(panel.d - _column(low), 0).relu_()
            push = (_column(high) - panel.d).masked_fill_(panel.alike, 0).relu_()
            totals = hinges = pull.sum(1), push.sum(1)
            if squared:
                totals = pull.square().sum(1), push.square().sum(1)
            if not active:
                return *totals, *hinges
            return *totals, *hinges, pull.count_nonzero(1), push.count_nonzero(1)

        active = "positive_active" in read
        bounds = positive_bound, negative_bound
        rows = bounds if isinstance(positive_bound, Tensor) and positive_bound.ndim else ()
        found = self.panels.each(sides, body, rows, () if rows else bounds)
        return HingeSums(*found, *(() if active else found[:2]))

    def logistic_sums(self, sides: Sides, positive: Exponent, negative: Exponent) -> Tensor:
        def body(panel: Panel, *numbers: float) -> Sequence[Tensor]:
            pull = exponent_of(Exponent(*numbers[:4]), panel.d)  # type: ignore[arg-type]
            push = exponent_of(Exponent(*numbers[4:]), panel.d)  # type: ignore[arg-type]
            e = panel.set_left_out(torch.where(panel.alike, pull, push), -torch.inf)
            return (softplus(e).sum(1),)

        return self.panels.each(sides, body, whole=(*positive, *negative))[0]

    def log_sums(
        self,
        sides: Sides,
        positive: Exponent,
        negative: Exponent,
        positive_above: Tensor | None = None,
        negative_below: Tensor | None = None,
        read: tuple[str, ...] = LogSums._fields,
    ) -> LogSums:
        def body(panel: Panel, above: Tensor | None, below: Tensor | None, *numbers: float) -> Any:
            alike = panel.alike
            if below is not None:
                alike = alike | (panel.d >= below[:, None])
            push = pull = exponent_of(Exponent(*numbers[4:]), panel.d)  # type: ignore[arg-type]
            if read == ("neg_lse",):
                return [log_sum(push.masked_fill_(alike, -torch.inf))]
            if negative is not positive:
                pull = exponent_of(Exponent(*numbers[:4]), panel.d)  # type: ignore[arg-type]
            # Another tensor, as ``pull`` may be the same.
            found = [log_sum(push.masked_fill(alike, -torch.inf))]
            if "exponent_sum" in read:
                found.append(panel.positives_of(pull, 0).sum(1))
            pull = panel.positives_of(pull, -torch.inf)
            if above is not None:
                pull.masked_fill_(panel.d <= above[:, None], -torch.inf)
            return [log_sum(pull), *found]

        rows = positive_above, negative_below
        found = self.panels.each(sides, body, rows, (*positive, *negative))
        # What nobody reads is some tensor.
        return LogSums(found[0], found[min(1, len(found) - 1)], found[-1])

    def pair_terms(
        self,
        sides: Sides,
        kind: str,
        exponent: Exponent,
        neg_lse: Tensor,
        neg_lse_of_columns: Tensor | None = None,
        weight_of_columns: Tensor | None = None,
        read: tuple[str, ...] = PairTerms._fields,
    ) -> PairTerms:
        def body(panel: Panel, own: Tensor, other: Tensor | None, *numbers: float) -> Any:
            exponent, column = Exponent(*numbers), own[:, None]  # type: ignore[arg-type]
            if kind == "lifted":
                assert other is not None
                e = exponent_of(exponent, panel.d)
                e = panel.positives_of(e, -torch.inf)
                hinge, both = lifted(e, column, other)
                with torch.no_grad():
                    by_neg_lse = lifted_by_neg_lse(hinge, column, both)
                value = hinge if read == ("by_neg_lse",) else hinge.square() / 2
            else:
                e = panel.positives_of(exponent_of(exponent, panel.d, column), -torch.inf)
                value, by_neg_lse = softplus(e), e.detach().sigmoid()
            found = (
                by_neg_lse.sum(1) if weight_of_columns is None else by_neg_lse @ weight_of_columns
            )
            if read == ("by_neg_lse",):
                return (found, found)
            if "nonzero" not in read:
                return value.sum(1), found
            return value.sum(1), found, value.count_nonzero(1)

        whole = neg_lse_of_columns, *exponent
        total, by_neg_lse, *nonzero = self.panels.each(sides, body, (neg_lse,), whole)
        return PairTerms(total, nonzero[0] if nonzero else total, by_neg_lse)

    def count_positives(self, sides: Sides) -> Tensor:
        """`Panels.count_positives`, for sides that have no runs to count them by."""
        return self.panels.count_positives(sides)

    def gradient(self, sides: Sides, pair_gradient: PairGradient) -> Both:
        sums = Gradients(sides)
        for panel in self.panels.of(sides):
            sums.add(panel, pair_weights.of(panel, pair_gradient))
        return sums.x, sums.y

    def triplet_sums(self, sides: Sides, triplets_: Triplets) -> Tensor:
        return panel_triplets.sums(self.panels, sides, triplets_)

    def triplet_gradient(self, sides: Sides, triplets_: Triplets, weight: Tensor) -> Both:
        sums = Gradients(sides)
        panel_triplets.add_gradient(self.panels, sums, sides, triplets_, weight)
        return sums.x, sums.y

    def angular_terms(self, sides: Sides, tangent: float) -> Tensor:
        return angular.terms(self.panels, sides, tangent)

    def angular_gradient(self, sides: Sides, tangent: float, weight: Tensor) -> Both:
        sums = Gradients(sides)
        angular.add_gradient(self.panels, sums, sides, tangent, weight)
        return sums.x, sums.y

    def soft_triple(self, sides: Sides, la: float, gamma: float, margin: float) -> Tensor:
        return soft_triple.terms(self.panels, sides, la, gamma, margin)

    def soft_triple_gradient(
        self, sides: Sides, la: float, gamma: float, margin: float, kept: Tensor, weight: Tensor
    ) -> Both:
        sums = Gradients(sides)
        for panel in self.panels.of(sides):
            sums.add(panel, soft_triple.weights(panel, la, gamma, margin, kept, weight))
        return sums.x, sums.y

    def nearest(self, sides: Sides, k: int) -> tuple[Tensor, Tensor]:
        return panel_search.nearest(self.panels, sides, k)

    def class_scores(
        self, sides: Sides, thresholds: Tensor, ends_x: Tensor, ends_y: Tensor
    ) -> tuple[Tensor, Tensor]:
        return panel_search.class_scores(self.panels, sides, thresholds, ends_x, ends_y)


def _column(bound: Any) -> Any:
    """A bound of each row of a panel, or one number of all."""
    return bound[:, None] if isinstance(bound, Tensor) and bound.ndim else bound


def _extremes(panel: Panel) -> Sequence[Tensor]:
    positive, p = panel.positives_of(panel.d, -torch.inf).max(1)
    negative, n = panel.d.masked_fill(panel.alike, torch.inf).min(1)
    p.masked_fill_(positive == -torch.inf, -1)
    n.masked_fill_(panel.alike.all(1), -1)
    return positive, p, negative, n


def _nearest_pairs(panel: Panel, above: Tensor | None) -> Sequence[Tensor]:
    positive, p = panel.positives_of(panel.d, torch.inf).min(1)
    left_out = panel.alike if above is None else panel.alike | (panel.d <= above[:, None])
    negative, n = panel.d.masked_fill(left_out, torch.inf).min(1)
    p.masked_fill_(panel.unlike.all(1), -1)
    n.masked_fill_(left_out.all(1), -1)
    return positive, p, negative, n


def _sums_and_extremes(panel: Panel) -> Sequence[Tensor]:
    sums = (torch.where(mask, 0, panel.d).sum(1) for mask in (panel.unlike, panel.alike))
    return *_extremes(panel), *sums
