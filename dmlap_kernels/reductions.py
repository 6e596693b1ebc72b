"""What is made of ``reduction="none"`` beyond a mean or a sum."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlap_kernels import checks
from dmlap_kernels.backends.device.terms import add_rows

__all__ = ["ClassMeans", "per_class_mean"]


class ClassMeans(NamedTuple):
    """Of each class its label (C,) int64, the mean of its losses (C,), and how many there are (C,)
    int64."""

    classes: Tensor
    means: Tensor
    counts: Tensor


def per_class_mean(losses: Tensor, labels: Any, num_classes: int | None = None) -> ClassMeans:
    """The mean of the losses of each class, in O(B) memory; differentiable in the losses.

    ``per_class_mean(losses, labels).means.mean()`` counts every class of a batch alike, however
    many rows it has.

    Args:
        losses: (B,) floats, what a loss returns with ``reduction="none"``. The mean counts the
            zeros of anchors that have no term: leave them out first where they should not.
        labels: (B,) or (B, 1), as the loss took them.
        num_classes: None for the classes present in ascending order, whose number is read from the
            device; else classes 0..num_classes - 1, of which those without rows have a mean of 0.
            Labels beyond them are left out.

    Returns:
        (classes, means, counts), of (C,) each: int64, the dtype of the losses, int64.

    Raises:
        ValueError, TypeError: an argument is not as above.

    Example:
        >>> import torch
        >>> from dmlap_kernels import fused_triplet_loss, per_class_mean
        >>> embeddings = torch.randn(8, 16, requires_grad=True)
        >>> labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
        >>> losses = fused_triplet_loss(embeddings, labels, reduction="none")
        >>> found = per_class_mean(losses, labels)
        >>> found.counts.tolist()
        [6, 2]
        >>> found.means.mean().backward()
    """
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        raise TypeError(f"losses must be a floating tensor, got {checks.describe(losses)}")
    if losses.ndim != 1:
        raise ValueError(f"losses must be (B,), got {checks.describe(losses)}")
    labels = checks.labels("labels", labels, losses, "losses")
    if num_classes is None:
        checks.with_data("losses", losses)
        classes, at = torch.unique(labels, return_inverse=True)
        counted = losses
    else:
        most = checks.count("num_classes", num_classes, minimum=1, maximum=2**31, why="2^31")
        classes = torch.arange(most, device=losses.device)
        known = (labels >= 0) & (labels < most)
        # Others go to a class of their own, which is dropped.
        at = torch.where(known, labels, most)
        counted = torch.where(known, losses, 0)
    size = len(classes) + (num_classes is not None)
    real = torch.float64 if losses.dtype == torch.float64 else torch.float32
    sums = add_rows(losses.new_zeros(size, dtype=real), at, counted.to(real))
    counts = add_rows(at.new_zeros(size), at, torch.ones_like(at))
    means = (sums / counts.clamp(min=1)).to(losses.dtype)
    return ClassMeans(classes, means[: len(classes)], counts[: len(classes)])
