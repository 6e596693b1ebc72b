"""Negatives drawn with weights: one over the density of distances between unit rows."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels.backends.device.sweeps import Triplets
from dmlap_kernels.backends.panels.panel import Panel


@torch.no_grad()
def running_weights(panel: Panel, triplets: Triplets) -> Tensor:
    """Running sums (b, N) float64 of the weights of negatives.

    Divided by the largest weight of each anchor, so that they do not vanish in many dimensions.
    """
    log_weight = log_weights(panel, triplets)
    top = log_weight.amax(1, keepdim=True)
    return log_weight.sub_(torch.where(top > -torch.inf, top, 0)).exp_().cumsum_(1)


@torch.no_grad()
def log_weights(panel: Panel, triplets: Triplets) -> Tensor:
    """(b, N) float64, -inf of pairs that are never drawn."""
    d, features = panel.d.double(), panel.sides.features
    if panel.distance == "cosine":
        d = (2 * d).clamp_(min=0).sqrt_()
    elif panel.distance == "sqeuclidean":
        d = d.sqrt()
    c = d.clamp(min=triplets.cutoff)
    log_weight = (2 - features) * c.log() - (features - 3) / 2 * (1 - c.square_() / 4).log_()
    impossible = panel.alike | ~log_weight.isfinite() | (d >= triplets.beyond)
    return log_weight.masked_fill_(impossible, -torch.inf)


def draw(running: Tensor, u: Tensor) -> Tensor:
    """The first columns (b, k) whose running sums (b, N) exceed the shares u (b, k) of totals."""
    total = running[:, -1:].contiguous()
    found = torch.searchsorted(running, u * total, right=True)
    # Rounding may make u * total the total itself, which no running sum exceeds.
    return torch.minimum(found, torch.searchsorted(running, total))


def numbers_of(panel: Panel, triplets: Triplets, rows: Tensor, rank: Tensor) -> Tensor:
    """The random numbers of the positives of such ranks of rows of the panel."""
    anchors = panel.sides.numbers[panel.at]
    return uniform01(triplets.seed, anchors[rows], rank)


def uniform01(seed: int | Tensor, anchor: Tensor, rank: Tensor) -> Tensor:
    """Counter-based random numbers in [0, 1), float64: the same for equal arguments everywhere."""
    if isinstance(seed, Tensor):
        z = seed.to(anchor.device, torch.int64)
    else:
        z = torch.full((), seed, dtype=torch.int64, device=anchor.device)
    for counter in (None, anchor, rank):
        z = _splitmix64(z if counter is None else z ^ counter)
    return _shifted(z, 11).double() * 2.0**-53


def _splitmix64(z: Tensor) -> Tensor:
    """The finaliser of splitmix64 on unsigned 64-bit numbers, held as int64 that wrap around."""
    z = z + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
