"""What the candidates of a comparison are given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLES_PER_CLASS = 4


class Absent(Exception):
    """A candidate that cannot run here, and why."""


@dataclass(frozen=True)
class Batch:
    """Rows (B, D) that need a gradient, labels (B,), and proxies where a loss has them.

    Proxies (C K, D) need a gradient too; the K proxies of a class lie together.
    """

    x: Tensor
    labels: Tensor
    classes: int
    proxies: Tensor | None = None
    proxy_labels: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The positional arguments of a loss."""
        if self.proxies is None or self.proxy_labels is None:
            return self.x, self.labels
        return self.x, self.labels, self.proxies, self.proxy_labels

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return (self.x,) if self.proxies is None else (self.x, self.proxies)

    def pairs(self) -> tuple[int, int]:
        """How many ordered pairs of rows are positive, and how many negative."""
        rows = len(self.x)
        counts = torch.bincount(self.labels)
        equal = int((counts * counts).sum())
        return equal - rows, rows * rows - equal

    def triplets(self) -> int:
        counts = torch.bincount(self.labels)
        return int((counts * (counts - 1) * (len(self.x) - counts)).sum())


def make_batch(
    rows: int, features: int, *, proxies_per_class: int = 0, classes: int | None = None
) -> Batch:
    """Clustered points in no order, four samples a class unless ``classes`` says how many."""
    g = torch.Generator().manual_seed(rows + features)
    classes = classes or -(-rows // SAMPLES_PER_CLASS)
    labels = torch.arange(rows) * classes // rows
    centres = torch.randn(classes, features, generator=g)
    points = 0.5 * centres[labels] + torch.randn(rows, features, generator=g)
    order = torch.randperm(rows, generator=g)
    x, labels = points[order].requires_grad_(), labels[order]
    if not proxies_per_class:
        return Batch(x, labels, classes)
    names = torch.arange(classes).repeat_interleave(proxies_per_class)
    noise = torch.randn(len(names), features, generator=g)
    proxies = (0.5 * centres[names] + noise).requires_grad_()
    return Batch(x, labels, classes, proxies, names)
