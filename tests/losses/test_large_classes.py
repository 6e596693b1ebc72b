"""Triplets of two classes only: half of the batch are positives, and a cube of triplets.

The formula here sorts and searches instead of writing the cube down; it is itself held against the
reference on a small batch.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dmlap_kernels import fused_triplet_loss
from tests import reference

MINING = pytest.mark.parametrize("mining", ["semihard", "all"])
MARGIN = 0.3


def draw(rows: int, features: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(rows)
    labels = torch.randint(0, 2, (rows,), generator=g)
    x = torch.randn(rows, features, generator=g, dtype=torch.float64)
    return x + labels[:, None], labels


def sums_per_anchor(
    x: Tensor, labels: Tensor, mining: str, anchors: range
) -> tuple[Tensor, Tensor]:
    """Sum of the hinges of each of these anchors [A], and how many triplets it has."""
    sums, counts = [], []
    for i in anchors:
        d = torch.cdist(x[i : i + 1], x, compute_mode="donot_use_mm_for_euclid_dist")[0]
        own = labels == labels[i]
        own[i] = False
        d_ap, d_an = d[own], d[labels != labels[i]].sort().values
        if mining == "semihard":
            place = torch.searchsorted(d_an.detach(), d_ap.detach(), right=True)
            chosen = d_an[place.clamp_max(len(d_an) - 1)]
            sums.append((d_ap - chosen + MARGIN).clamp_min(0).sum())
            counts.append(len(d_ap))
        else:
            below = torch.cat([d_an.new_zeros(1), d_an.cumsum(0)])
            active = torch.searchsorted(d_an.detach(), d_ap.detach() + MARGIN)
            sums.append((active * (d_ap + MARGIN) - below[active]).sum())
            counts.append(len(d_ap) * len(d_an))
    return torch.stack(sums), torch.tensor(counts)


@MINING
def test_the_searching_formula_is_the_reference(mining: str) -> None:
    x, labels = draw(40, 3)
    sums, counts = sums_per_anchor(x, labels, mining, range(40))
    truth = reference.loss(
        f"triplet_{mining}", x, labels, margin=MARGIN, reduction="none", distance="euclidean"
    )
    torch.testing.assert_close(sums / counts, truth)


@MINING
def test_two_classes_of_a_thousand(mining: str, native: str) -> None:
    """Value and gradient; the gradient of the formula is taken for a few anchors."""
    x, labels = draw(2_048, 6)
    few = range(0, 2_048, 128)
    leaf = x.clone().requires_grad_()
    sums, counts = sums_per_anchor(leaf, labels, mining, few)
    truth = sums / counts
    upstream = torch.zeros(2_048, dtype=torch.float64)
    upstream[list(few)] = torch.linspace(-1, 1, len(few), dtype=torch.float64)
    truth.backward(upstream[list(few)])
    options = {"margin": MARGIN, "mining": mining, "backend": native}
    ours = x.clone().requires_grad_()
    value = fused_triplet_loss(ours, labels, reduction="none", **options)
    value.backward(upstream)
    torch.testing.assert_close(value[list(few)].detach(), truth.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.grad, leaf.grad, rtol=1e-7, atol=1e-10)
    mean = fused_triplet_loss(x, labels, **options)
    torch.testing.assert_close(mean, value.detach().mean(), rtol=1e-2, atol=0.0)


@MINING
def test_two_classes_of_four_thousand(mining: str, native: str) -> None:
    """A hundred billion triplets of float32 points, forward and backward: more than 32 bits count,
    and of each anchor more than 24."""
    x, labels = draw(8_192, 3)
    few = range(0, 8_192, 1_024)
    rounded = x.float()
    sums, counts = sums_per_anchor(rounded.double(), labels, mining, few)
    leaf = rounded.requires_grad_()
    value = fused_triplet_loss(
        leaf, labels, margin=MARGIN, mining=mining, reduction="none", backend=native
    )
    torch.testing.assert_close(value[list(few)].double(), sums / counts, rtol=1e-4, atol=1e-5)
    value.sum().backward()
    assert leaf.grad.isfinite().all()
    # Moving all points changes nothing.
    assert leaf.grad.double().sum(0).abs().max() < 1e-3 * leaf.grad.abs().sum()
