"""The B x B code that people write: the naive side of every comparison."""

from __future__ import annotations

import torch
from torch import Tensor


def triplet(x: Tensor, labels: Tensor, margin: Tensor) -> Tensor:
    """Batch-hard triplet loss, every anchor with a positive and a negative."""
    d = torch.cdist(x, x)
    same = labels[:, None] == labels
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    farthest = d.masked_fill(~same | itself, -torch.inf).amax(1)
    closest = d.masked_fill(same, torch.inf).amin(1)
    return (farthest - closest + margin).relu().mean()


def contrastive(x: Tensor, labels: Tensor, neg_margin: Tensor) -> Tensor:
    """Mean over positive pairs plus mean over negative pairs."""
    d = torch.cdist(x, x)
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    pull = (d * positive).sum() / positive.sum()
    push = ((neg_margin - d).relu() * ~same).sum() / (~same).sum()
    return pull + push


def nearest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """k nearest other rows."""
    d = torch.cdist(x, x)
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    found = d.masked_fill(itself, torch.inf).topk(k, largest=False)
    return found.values, found.indices


def hard_classes(x: Tensor, k: int, margin: Tensor) -> tuple[Tensor, Tensor]:
    """k hardest other classes of each class, one representative a class."""
    d = torch.cdist(x, x)
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    hardest = (margin - d).relu().masked_fill(itself, -1.0).topk(k)
    return hardest.values, hardest.indices
