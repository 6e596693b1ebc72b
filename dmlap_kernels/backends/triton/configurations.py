"""How kernels are launched: block sizes, warps and stages as data. Nothing is tuned at a call."""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

import torch

from dmlap_kernels.backends.device.packing import Sides

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Of a thread, at most: unless told, ptxas spills a few to fit more programs on a multiprocessor.
REGISTERS = 255


class Launch(NamedTuple):
    """Rows, columns and features of a tile; warps of a program and stages of its pipeline; features
    of a gradient that a program holds, at most, if it does; registers of a thread, at most."""

    BM: int
    BN: int
    BK: int
    warps: int
    stages: int
    BD: int = 0
    registers: int = REGISTERS

    @property
    def options(self) -> dict[str, int]:
        """As Triton takes them."""
        return {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": self.registers}

    def held(self, features: int) -> int:
        """Features (a power of two, at least 16) of a gradient that one program holds, or some."""
        return min(self.BD, max(16, 1 << (features - 1).bit_length()))


# Neighbours that a program keeps on chip; beyond, blocks of distances are written, and sorted.
NEIGHBOURS_ON_CHIP = 128
# Of these kernels a tile has as many columns as neighbours are kept.
_NEAREST = {
    "nearest_16": Launch(32, 16, 32, 4, 3),
    "nearest_32": Launch(32, 32, 32, 4, 3),
    "nearest_64": Launch(16, 64, 32, 4, 3),
    "nearest_128": Launch(16, 128, 32, 4, 3),
}
# Chosen so that no chip from sm_80 on runs out of registers or shared memory; not measured.
LAUNCHES = _NEAREST | {
    "extremes": Launch(64, 64, 16, 8, 3),
    # What tiles leave their columns, besides their rows, takes registers.
    "hinge_sums": Launch(64, 32, 32, 8, 3),
    "log_sums": Launch(64, 32, 32, 8, 3),
    "pair_terms": Launch(64, 32, 32, 8, 3),
    # Recomputed pairs, which products do not have, take registers.
    "gradient": Launch(32, 16, 32, 8, 2, 128),
    "gradient_of_products": Launch(64, 32, 32, 8, 2, 128),
    # For rows of more features than a program of the above holds. A tile of weights is one of a
    # product, of BM rows and BK columns, and holds whole ones of recomputed pairs.
    "weights": Launch(64, 32, 32, 8, 3),
    "recomputed": Launch(32, 16, 32, 8, 2, 128),
    "product": Launch(64, 128, 32, 8, 3),
    # Windows of positives. What has no columns goes pair by pair.
    "positive_distances": Launch(64, 0, 64, 4, 2),
    "semihard": Launch(32, 64, 32, 4, 2),
    "draw": Launch(16, 32, 32, 4, 2),
    "mined_terms": Launch(32, 0, 32, 4, 2),
    # Larger tiles of these two would spill.
    "window_sums": Launch(16, 32, 32, 4, 2),
    "window_gradient": Launch(16, 32, 32, 4, 1, 64),
    # Columns are classes.
    "soft_triple": Launch(16, 32, 32, 4, 1, 64),
    # Rows are classes, too.
    "class_scores": Launch(16, 32, 32, 4, 2),
    "nearest_blocks": Launch(32, 64, 32, 4, 3),
}
# From sm_90 on, products of 64 rows are those of warp groups, which leave more of the registers.
_FROM_90 = {"extremes": Launch(64, 64, 32, 8, 3), "gradient": Launch(64, 16, 16, 8, 2, 128)}
# Small enough for the interpreter, and for several tiles in small tests; of the kernels whose tiles
# are many, larger ones.
_INTERPRETED = Launch(16, 16, 16, 4, 1, 32)
_INTERPRETED_LARGER = _NEAREST | dict.fromkeys(
    (
        "positive_distances",
        "semihard",
        "draw",
        "mined_terms",
        "window_sums",
        "window_gradient",
        "nearest_blocks",
    ),
    Launch(32, 32, 32, 4, 1, 32),
)
# Panels: bytes of one, at most, unless a row takes more; features from which on products by the
# vendor's library are expected to be worth their way through memory; rows of a program that makes
# formulas, and those that the one program which reduces them takes at a time.
PANEL_BYTES = 64 << 20
PANEL_FEATURES = 32
ROWS_OF_FORMULAS = 16 if INTERPRETED else 128
ROWS_REDUCED = 32 if INTERPRETED else 1024
# Of `panel_near` the features of a product are the rows of a mark, which are those of a block of
# weights. So many programs fit a multiprocessor, and hide the way to the panel.
_RESIDENT = 4
_PANELS = {
    "panel_sums": Launch(16, 64, 0, 4, 1, registers=128),
    "panel_positives": Launch(16, 64, 0, 4, 1, registers=128),
    "panel_extremes": Launch(16, 64, 0, 4, 1, registers=128),
    "panel_statistics": Launch(16, 64, 0, 4, 1, registers=168),
    "panel_weights": Launch(32, 64, 0, 4, 1, registers=128),
    # An anchor and two columns: one program sees all columns.
    "panel_of_mined": Launch(16, 1 << 30, 64, 4, 1),
    # References, and anchors whose mined ones they may be.
    "swapped": Launch(16, 128, 0, 4, 1, 64),
    "panel_near": Launch(16, 32, 32, 4, 1, 64),
    # Columns are classes, whose centres come one after the other: few rows, for many programs.
    "centres": Launch(4, 64, 0, 4, 1),
    # A row.
    "angular": Launch(1, 512, 0, 4, 1),
    # Some positives of an anchor.
    "triplets": Launch(4, 256, 0, 4, 1),
    "triplet_pairs": Launch(16, 64, 0, 4, 1),
    # Groups of references; some positives of an anchor, and the references of a group.
    "shares": Launch(16, 32, 0, 4, 1),
    "drawn": Launch(4, 32, 0, 4, 1),
    # Pairs of two log-sums; down the columns of a panel.
    "lifted": Launch(4, 128, 0, 4, 1),
    "lifted_columns": Launch(32, 32, 0, 4, 1),
    "rows": Launch(16, 0, 64, 4, 2),
    "partners": Launch(16, 128, 0, 4, 1),
    # Few rows, for many programs; as many columns as neighbours are kept.
    "nearest": Launch(8, 64, 0, 4, 1),
    "nearest_128": Launch(8, 128, 0, 4, 1),
}
_INTERPRETED_PANELS = {
    "panel_sums": Launch(16, 32, 0, 4, 1),
    "panel_positives": Launch(16, 32, 0, 4, 1),
    "panel_extremes": Launch(16, 32, 0, 4, 1),
    "panel_statistics": Launch(16, 32, 0, 4, 1),
    "panel_weights": Launch(16, 32, 0, 4, 1),
    "panel_of_mined": Launch(16, 1 << 30, 32, 4, 1),
    "swapped": Launch(16, 16, 0, 4, 1, 32),
    "panel_near": Launch(16, 16, 16, 4, 1, 32),
    "centres": Launch(16, 16, 0, 4, 1),
    "angular": Launch(1, 16, 0, 4, 1),
    "triplets": Launch(4, 16, 0, 4, 1),
    "triplet_pairs": Launch(16, 32, 0, 4, 1),
    "shares": Launch(2, 16, 0, 4, 1),
    "drawn": Launch(4, 16, 0, 4, 1),
    "lifted": Launch(16, 16, 0, 4, 1),
    "lifted_columns": Launch(16, 16, 0, 4, 1),
    "rows": Launch(16, 0, 32, 4, 1),
    "partners": Launch(16, 16, 0, 4, 1),
    "nearest": Launch(8, 64, 0, 4, 1),
    "nearest_128": Launch(8, 128, 0, 4, 1),
}
# Chips whose tensor cores make six products of bfloat16 in less time than their other units take
# for one of float32: 312 against 19.5 TFLOP/s of an A100, 990 against 67 of an H100. Those of other
# chips make about twice as many.
_SPLITTING = ((8, 0), (9, 0), (10, 0), (10, 3))
# Programs for each multiprocessor that a launch aims at by splitting its columns.
_WAVES = 2
_MOST_SPLITS = 64
# The same of `semihard`, whose parts meet in atomic operations.
_MOST_SEMIHARD_SPLITS = 16
# Parts of the rows in the self case, of which pairs make programs: they fill a GPU, and what is
# kept of a row and all parts stays below twice what a row of 128 features takes.
_MOST_GROUPS = 3 if INTERPRETED else 32
# Positives of an anchor that a program takes; those that a window has at least; positive pairs that
# the buffers of a window hold, about.
POSITIVES = 4 if INTERPRETED else 16
LEAST_WINDOW = 8 if INTERPRETED else 64
# Programs along a second axis of a grid that a GPU takes.
MOST_PROGRAMS = 65535
_WINDOW_PAIRS = 1 if INTERPRETED else 2**22
# Numbers of a block of the search for more neighbours than are kept on chip.
_BLOCK = 1 << 12 if INTERPRETED else 1 << 23


def launch_of(kernel: str, sides: Sides) -> Launch:
    if INTERPRETED:
        return _INTERPRETED_LARGER.get(kernel, _INTERPRETED)
    if capability_of(sides.x.device) >= (9, 0):
        return _FROM_90.get(kernel, LAUNCHES[kernel])
    return LAUNCHES[kernel]


@functools.cache
def capability_of(device: torch.device) -> tuple[int, int]:
    """Lowest of those that are served where the device has none."""
    return (8, 0) if device.type != "cuda" else torch.cuda.get_device_capability(device)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 6  # as many as make the interpreter split small problems
    return torch.cuda.get_device_properties(device).multi_processor_count


def splits_products(device: torch.device, precision: str) -> bool:
    """Whether products of panels are those of rows that are split in three."""
    return device.type == "cuda" and precision == "highest" and capability_of(device) in _SPLITTING


def panel_launch(kernel: str) -> Launch:
    return (_INTERPRETED_PANELS if INTERPRETED else _PANELS)[kernel]


def row_launch() -> Launch:
    return panel_launch("rows")


def panels_serve(anchors: int, columns: int, features: int) -> bool:
    """Whether a problem goes by panels, where its loss can; else products are made in kernels."""
    return anchors > 0 and columns > 0 and features >= PANEL_FEATURES


def row_floats(columns: int) -> int:
    """Floats between rows of a panel, as `panel_kernels.row_stride` has them."""
    return -(-columns // 16) * 16


def one_panel_serves(rows: int, columns: int, k: int) -> bool:
    """Whether a search for so many of each row goes by all products as one panel."""
    return 0 < 4 * rows * row_floats(columns) <= PANEL_BYTES and k <= NEIGHBOURS_ON_CHIP


def panel_height(columns: int) -> int:
    """Rows of a panel, whole blocks."""
    block = panel_launch("panel_weights").BM
    return max(1, PANEL_BYTES // (4 * block * columns)) * block


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


def panel_split(tiles: int, programs: int, device: torch.device) -> tuple[int, int]:
    """As `split`, for kernels over panels, of which all programs run at once."""
    most = _RESIDENT * _multiprocessors(device) // max(1, programs)
    span = -(-tiles // max(1, min(most, tiles, _MOST_SPLITS)))
    return -(-tiles // span), span


def semihard_splits(sides: Sides, launch: Launch) -> tuple[int, int]:
    """As `splits_of`."""
    tiles = -(-sides.columns // launch.BN)
    span = -(-tiles // _MOST_SEMIHARD_SPLITS)
    return -(-tiles // span), span * launch.BN


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


def window_of(sides: Sides) -> int:
    """Positives of each anchor in a window, a multiple of those that a program takes."""
    wanted = min(sides.columns, _WINDOW_PAIRS // max(1, sides.anchors), MOST_PROGRAMS * POSITIVES)
    return -(-max(LEAST_WINDOW, wanted) // POSITIVES) * POSITIVES


def block_of(sides: Sides, k: int, launch: Launch) -> tuple[int, int]:
    """Rows and columns of a block of the search for k neighbours."""
    columns = min(sides.columns, max(2 * k, 4 * launch.BN))
    return max(launch.BM, _BLOCK // (k + columns)), columns
