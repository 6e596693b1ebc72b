"""Launches of kernels in little time.

At each launch Triton looks at every argument, to find the kernel that was compiled for such ones:
20 to 100 microseconds, which is more than the kernels of a small batch take. A step is half of that
if it asks once what its arguments are like, and goes by what Triton answered when such a step ran
before. Pointers then go as numbers, so that nobody asks the driver what they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver

ALIGNED = 128  # bytes, to which a piece of a buffer is


class Piece(NamedTuple):
    """Of a buffer: its first byte, and the tensor it is."""

    begin: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size


class Launch(NamedTuple):
    """The grid, the arguments after the pointers, and the options of the compiler."""

    grid: tuple[int, int, int]
    others: tuple[Any, ...]
    options: dict[str, int]


class Layout:
    """How a buffer is cut into pieces."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.floats = 0

    def add(self, *shape: int, dtype: torch.dtype = torch.float32) -> int:
        """A piece, by its number."""
        piece = Piece(4 * self.floats, shape, dtype)
        self.pieces.append(piece)
        self.floats += -(-piece.bytes // ALIGNED) * (ALIGNED // 4)
        return len(self.pieces) - 1

    def addresses(self, buffer: Tensor) -> list[Any]:
        """Of the pieces of a float32 buffer."""
        base = buffer.data_ptr()
        return [base + piece.begin for piece in self.pieces]

    def tensors(self, buffer: Tensor) -> list[Any]:
        found = []
        for begin, shape, dtype in self.pieces:
            size = Piece(begin, shape, dtype).bytes
            piece = buffer[begin // 4 : (begin + size + 3) // 4].view(dtype)
            found.append(piece[: size // dtype.itemsize].view(shape))
        return found


class Launcher:
    """The launches of a half of a step: by Triton, unless ``known`` has what was compiled for a
    half whose arguments are of the same kinds.

    ``known`` is empty, or has the kernel of every place in the half.
    """

    def __init__(self, known: dict[Any, Any]) -> None:
        self.known, self.found = known, dict[Any, Any]()
        # A profiler that wants to hear of launches hears of them from Triton.
        self.fast = bool(known) and not any(map(_listens, _hooks()))
        self.stream = None
        if self.fast:
            self.stream = driver.active.get_current_stream(driver.active.get_current_device())

    def pieces(self, layout: Layout, buffer: Tensor) -> list[Any]:
        """As kernels take them."""
        return layout.addresses(buffer) if self.fast else layout.tensors(buffer)

    def pointer(self, tensor: Tensor, first: int = 0) -> Any:
        """Of a tensor from element ``first`` on, of 4 bytes each if that is not 0."""
        if self.fast:
            return tensor.data_ptr() + 4 * first
        return tensor[first:] if first else tensor

    def __call__(self, place: Any, kernel: Any, launch: Launch, *first: Any) -> None:
        """
        Args:
            place: of the launch in the half.
            kernel: a Triton function.
            launch: what of it is the same in every step of a kind.
            first: the first arguments: pointers, as this launcher has them.
        """
        if self.fast:
            run, function, metadata = self.known[place]
            none = None, None, None  # what a profiler is told, and by what
            run(*launch.grid, self.stream, function, metadata, *none, *first, *launch.others)
        else:
            self.found[place] = kernel[launch.grid](*first, *launch.others, **launch.options)

    def done(self) -> None:
        """The half has been launched."""
        # The interpreter compiles nothing.
        if not self.known and all(hasattr(one, "function") for one in self.found.values()):
            for place, one in self.found.items():
                self.known[place] = one.run, one.function, one.packed_metadata


def _hooks() -> tuple[Any, Any]:
    return knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook


def _listens(hook: Any) -> bool:
    """A function or None, of newer Triton a chain of functions."""
    return bool(getattr(hook, "calls", hook))
