"""What decides which negative is drawn: one over the density of distances between unit rows, and
random numbers that are the same wherever they are asked for."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class Density(NamedTuple):
    """One over the density of distances between unit rows: the squared distance that counts at
    least, that from which on nothing is drawn, and two exponents."""

    low: float
    high: float
    closeness: float
    farness: float

    @staticmethod
    def of(cutoff: float, beyond: float, features: int) -> Density:
        return Density(cutoff**2, beyond**2, (2 - features) / 2, (3 - features) / 2)


@triton.jit
def squares_drawn(d, negative, density, how: tl.constexpr):
    """Squares of distances as they count, float64, and which of the negatives may be drawn."""
    squared = d.to(tl.float64)
    if how.distance == "euclidean":
        squared = squared * squared
    elif how.distance == "cosine":
        squared = tl.maximum(2 * squared, 0.0)
    clipped = tl.where(squared > density.low, squared, density.low)
    possible = negative & (squared < density.high) & (clipped < 4) & (clipped > 0)
    return clipped, possible


@triton.jit
def log_weight(squared, possible, density):
    """log of one over the density at squares (float64); -inf where nothing is possible."""
    squared = tl.where(possible, squared, 1.0)
    weight = density.closeness * tl.log(squared) + density.farness * tl.log(1 - squared / 4)
    return tl.where(possible, weight, float("-inf"))


def mixed(seed: int) -> int:
    """`mixed_words` of a number on the host, as int64."""
    mask = (1 << 64) - 1
    z = (seed + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    z ^= z >> 31
    return z - (1 << 64) if z >> 63 else z


@triton.jit
def mixed_words(z):
    """The finaliser of splitmix64; int64 that wraps around stands for uint64."""
    z = z - 7046029254386353131
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


@triton.jit
def uniform(word, rank):
    """The random numbers, of [0, 1) in float64, of positives of such ranks of an anchor's word."""
    word = mixed_words(word ^ rank)
    return ((word >> 11) & 0x1FFFFFFFFFFFFF).to(tl.float64) * 1.1102230246251565e-16
