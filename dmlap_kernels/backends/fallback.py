"""What is said, once a process, where ``auto`` passes over the kernels that belong to a device."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

# The kernels made for a type of device; all other types have plain PyTorch alone.
KERNELS = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}
_PACKAGE = str(Path(__file__).parents[1])


class FallbackWarning(UserWarning):
    """Calls run on another backend than the one made for their device; the message says why.

    ``warnings.filterwarnings("ignore", category=dmlap_kernels.FallbackWarning)`` silences it,
    ``"error"`` in the place of ``"ignore"`` makes it an error.
    """


class Reasons(dict[str, str | None]):
    """Why each backend does not run here, None where it does; asked when it is looked up, because
    some import a compiler to tell."""

    def __init__(self, ask: Callable[[str], str | None]) -> None:
        super().__init__()
        self._ask = ask

    def __missing__(self, name: str) -> str | None:
        self[name] = self._ask(name)
        return self[name]


def passed_over(
    device_type: str, order: Sequence[str], taken: str, reasons: Mapping[str, str | None]
) -> list[str]:
    """The backends whose absence is worth a word, of those that do not run here.

    Args:
        device_type: of the tensors.
        order: backends by name, as ``auto`` tries them.
        taken: the one that it takes.
        reasons: for each backend why it does not run on this machine, None where it does.
    """
    earlier = [name for name in order[: order.index(taken)] if reasons[name]]
    kernels = KERNELS.get(device_type, ())
    if taken not in kernels and all(reasons[name] for name in kernels):
        earlier += [name for name in kernels if name not in earlier]
    return earlier


def tell(
    device_type: str,
    names: Sequence[str],
    taken: str,
    reasons: Mapping[str, str | None],
    failed: Mapping[str, str] | None = None,
    call: str = "",
) -> None:
    """Warn, the first time it is about such a device and such backends.

    Args:
        device_type, taken, reasons: as in `passed_over`.
        names: its answer.
        failed: what differed in the self-checks of backends that run.
        call: what failed them, in words.
    """
    failed = failed or {}
    about = (device_type, *names, *((*failed, call) if failed else ()))
    if not (names or failed) or about in _told or torch.compiler.is_dynamo_compiling():
        return
    why = [f"{name!r}: {reasons[name]}" for name in names if name not in failed]
    if failed:
        head = f"{call} on {device_type} is served by the backend {taken!r}, because kernels "
        head += "that come before it failed their self-check there (DMLAP_SELFCHECK=0 switches "
        head += "it off) or do not run: "
        why = [f"{name!r} failed: {what}" for name, what in failed.items()] + why
    else:
        head = f"tensors on {device_type} are served by the backend {taken!r}, slower than the "
        head += "kernels made for them, which do not run here: "
    warnings.warn(head + "; ".join(why), FallbackWarning, stacklevel=_level())
    _told.add(about)


_told: set[tuple[Any, ...]] = set()


def _level() -> int:
    """How far up the caller of this package is, seen from `tell`."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level
