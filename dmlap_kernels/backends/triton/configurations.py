"""How kernels are launched: block sizes, warps and stages as data. Nothing is tuned at a call."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from dmlap_kernels.backends.device.packing import Sides
from dmlap_kernels.backends.triton.tile import INTERPRETED

# Of a thread, at most: unless told, ptxas spills a few to fit more programs on a multiprocessor.
REGISTERS = 255


class Launch(NamedTuple):
    """Rows, columns and features of a tile; warps of a program and stages of its pipeline."""

    BM: int
    BN: int
    BK: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """As Triton takes them."""
        return {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": REGISTERS}


# Chosen so that no chip from sm_80 on runs out of registers or shared memory; not measured.
LAUNCHES = {
    "extremes": Launch(64, 64, 16, 8, 3),
    # What tiles leave their columns, besides their rows, takes registers.
    "hinge_sums": Launch(64, 32, 32, 8, 3),
    "log_sums": Launch(64, 32, 32, 8, 3),
    "pair_terms": Launch(64, 32, 32, 8, 3),
    # Near pairs, which products do not have, take registers.
    "gradient": Launch(32, 16, 32, 8, 2),
    "gradient_of_products": Launch(64, 32, 32, 8, 2),
    # For rows of more features than a program of the above holds. A tile of weights is one of a
    # product, of BM rows and BK columns, and holds whole ones of near pairs.
    "weights": Launch(64, 32, 32, 8, 3),
    "near": Launch(32, 16, 32, 8, 2),
    "product": Launch(64, 128, 32, 8, 3),
}
# From sm_90 on, products of 64 rows are those of warp groups, which leave more of the registers.
_FROM_90 = {"extremes": Launch(64, 64, 32, 8, 3), "gradient": Launch(64, 16, 16, 8, 2)}
# Small enough for the interpreter, and for several tiles in small tests.
_INTERPRETED = Launch(16, 16, 16, 4, 1)
# Programs for each multiprocessor that a launch aims at by splitting its columns.
_WAVES = 2
_MOST_SPLITS = 64
# Parts of the rows in the self case, of which pairs make programs: they fill a GPU, and what is
# kept of a row and all parts stays below twice what a row of 128 features takes.
_MOST_GROUPS = 3 if INTERPRETED else 32


def launch_of(kernel: str, sides: Sides) -> Launch:
    if INTERPRETED:
        return _INTERPRETED
    if capability_of(sides.x.device) >= (9, 0):
        return _FROM_90.get(kernel, LAUNCHES[kernel])
    return LAUNCHES[kernel]


@functools.cache
def capability_of(device: torch.device) -> tuple[int, int]:
    """Lowest of those that are served where the device has none."""
    return (8, 0) if device.type == "cpu" else torch.cuda.get_device_capability(device)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type == "cpu":
        return 6  # as many as make the interpreter split small problems
    return torch.cuda.get_device_properties(device).multi_processor_count


def splits_of(sides: Sides, launch: Launch) -> tuple[int, int]:
    """Parts into which the columns are cut, and the columns of a part, a multiple of the tile's."""
    row_blocks = -(-sides.anchors // launch.BM)
    parts, span = split(-(-sides.columns // launch.BN), row_blocks, sides.x.device)
    return parts, span * launch.BN


def split(tiles: int, programs: int, device: torch.device) -> tuple[int, int]:
    """Parts into which tiles are cut, and the tiles of one; ``programs`` run for each part."""
    wanted = -(-_WAVES * _multiprocessors(device) // max(1, programs))
    parts = min(wanted, max(1, tiles), _MOST_SPLITS)
    span = -(-max(1, tiles) // parts)
    return -(-max(1, tiles) // span), span


def groups_of(sides: Sides, launch: Launch) -> tuple[int, int]:
    """Groups into which the rows of the self case are cut, and the rows of one, whole tiles."""
    tile = max(launch.BM, launch.BN)  # one is a multiple of the other
    tiles = max(1, -(-sides.anchors // tile))
    length = -(-tiles // min(tiles, _MOST_GROUPS))
    return -(-tiles // length), length * tile


def panel_of(sides: Sides) -> int:
    """Rows of a panel, whole tiles, whose weights take 64 MiB, or as much as the columns."""
    tile = launch_of("weights", sides).BM
    rows = max(2**24 // max(1, sides.columns), sides.x.shape[1])
    return 2 * tile if INTERPRETED else -(-rows // tile) * tile


def width_of(features: int) -> int:
    """Features (a power of two, at least 16) of a gradient that one program holds, or some."""
    most = 32 if INTERPRETED else 128
    return min(most, max(16, 1 << (features - 1).bit_length()))
