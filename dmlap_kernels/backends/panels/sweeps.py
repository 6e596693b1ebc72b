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
from dmlap_kernels.backends.panels import angular, search, soft_triple, triplets, weights
from dmlap_kernels.backends.panels.exponents import exponent_of, lifted, log_sum
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

    def hinge_sums(
        self, sides: Sides, positive_bound: Tensor, negative_bound: Tensor, squared: bool
    ) -> HingeSums:
        def body(panel: Panel, low: Tensor, high: Tensor) -> Sequence[Tensor]:
            pull = (panel.d - low[:, None]).masked_fill_(panel.unlike, 0).relu_()
            push = (high[:, None] - panel.d).masked_fill_(panel.alike, 0).relu_()
            hinges = pull.sum(1), push.sum(1)
            totals = hinges
            if squared:
                totals = pull.square().sum(1), push.square().sum(1)
            return *totals, *hinges, pull.count_nonzero(1), push.count_nonzero(1)

        return HingeSums(*self.panels.each(sides, body, (positive_bound, negative_bound)))

    def logistic_sums(self, sides: Sides, positive: Exponent, negative: Exponent) -> Tensor:
        def body(panel: Panel, *numbers: float) -> Sequence[Tensor]:
            pull = exponent_of(Exponent(*numbers[:4]), panel.d)  # type: ignore[arg-type]
            push = exponent_of(Exponent(*numbers[4:]), panel.d)  # type: ignore[arg-type]
            e = torch.where(panel.unlike, push.masked_fill_(panel.alike, -torch.inf), pull)
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
            unlike, alike = panel.unlike, panel.alike
            if above is not None and below is not None:
                unlike = unlike | (panel.d <= above[:, None])
                alike = alike | (panel.d >= below[:, None])
            push = exponent_of(Exponent(*numbers[4:]), panel.d)  # type: ignore[arg-type]
            found = [log_sum(push.masked_fill_(alike, -torch.inf))]
            if read == ("neg_lse",):
                return found
            pull = exponent_of(Exponent(*numbers[:4]), panel.d)  # type: ignore[arg-type]
            if "exponent_sum" in read:
                found.append(torch.where(unlike, 0, pull).sum(1))
            return [log_sum(pull.masked_fill_(unlike, -torch.inf)), *found]

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
    ) -> PairTerms:
        def body(panel: Panel, own: Tensor, other: Tensor | None, *numbers: float) -> Any:
            e = exponent_of(Exponent(*numbers), panel.d)  # type: ignore[arg-type]
            if kind == "lifted":
                assert other is not None
                value, _, by_neg_lse = lifted(e, own[:, None], other, panel.unlike)
            else:
                e = (e + own[:, None]).masked_fill_(panel.unlike, -torch.inf)
                value, by_neg_lse = softplus(e), e.detach().sigmoid()
            found = (
                by_neg_lse.sum(1) if weight_of_columns is None else by_neg_lse @ weight_of_columns
            )
            return value.sum(1), value.count_nonzero(1), found

        whole = neg_lse_of_columns, *exponent
        return PairTerms(*self.panels.each(sides, body, (neg_lse,), whole))

    def gradient(self, sides: Sides, pair_gradient: PairGradient) -> Both:
        sums = Gradients(sides)
        for panel in self.panels.of(sides):
            sums.add(panel, weights.of(panel, pair_gradient))
        return sums.x, sums.y

    def triplet_sums(self, sides: Sides, triplets_: Triplets) -> Tensor:
        return triplets.sums(self.panels, sides, triplets_)

    def triplet_gradient(self, sides: Sides, triplets_: Triplets, weight: Tensor) -> Both:
        sums = Gradients(sides)
        triplets.add_gradient(self.panels, sums, sides, triplets_, weight)
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
        return search.nearest(self.panels, sides, k)

    def class_scores(
        self, sides: Sides, thresholds: Tensor, ends_x: Tensor, ends_y: Tensor
    ) -> tuple[Tensor, Tensor]:
        return search.class_scores(self.panels, sides, thresholds, ends_x, ends_y)


def _extremes(panel: Panel) -> Sequence[Tensor]:
    positive, p = panel.d.masked_fill(panel.unlike, -torch.inf).max(1)
    negative, n = panel.d.masked_fill(panel.alike, torch.inf).min(1)
    p.masked_fill_(panel.unlike.all(1), -1)
    n.masked_fill_(panel.alike.all(1), -1)
    return positive, p, negative, n


def _sums_and_extremes(panel: Panel) -> Sequence[Tensor]:
    sums = (torch.where(mask, 0, panel.d).sum(1) for mask in (panel.unlike, panel.alike))
    return *_extremes(panel), *sums
