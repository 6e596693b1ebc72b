"""Distances between rows, and which pairs exist."""

from __future__ import annotations

import torch
from torch import Tensor


def safe_sqrt(squares: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0 (autograd's own is 0 * inf = NaN)."""
    is_zero = squares == 0
    root = torch.where(is_zero, torch.ones_like(squares), squares).sqrt()
    return torch.where(is_zero, torch.zeros_like(root), root)


def normalize_rows(x: Tensor) -> Tensor:
    """Rows divided by max(norm, 1e-12), as `torch.nn.functional.normalize`."""
    norms = safe_sqrt(x.square().sum(dim=1, keepdim=True))
    return x / norms.clamp_min(1e-12)


def pair_distances(
    x: Tensor, y: Tensor, *, distance: str = "euclidean", normalize: bool = False
) -> Tensor:
    """Distances (B, N) between the rows of x (B, D) and y (N, D); "dot" is minus the product."""
    if normalize or distance == "cosine":
        x, y = normalize_rows(x), normalize_rows(y)
    return distances_as_they_are(x, y, distance)


def distances_as_they_are(x: Tensor, y: Tensor, distance: str) -> Tensor:
    """`pair_distances` of rows that are already normalised where the distance wants it.

    A row too short to be normalised would be longer the second time.
    """
    if distance in ("cosine", "dot"):
        products = (x[:, None, :] * y[None, :, :]).sum(dim=2)
        return 1 - products if distance == "cosine" else -products
    squares = (x[:, None, :] - y[None, :, :]).square().sum(dim=2)
    return squares if distance == "sqeuclidean" else safe_sqrt(squares)


def pair_masks(labels: Tensor, ref_labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which pairs are positive and which negative; (i, i) is neither in the self case."""
    others = labels if ref_labels is None else ref_labels
    equal = labels[:, None] == others[None, :]
    if ref_labels is None:
        exists = ~torch.eye(len(labels), dtype=torch.bool)
        return equal & exists, ~equal & exists
    return equal, ~equal
