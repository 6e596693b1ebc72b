"""What a forward pass depends on besides its inputs, kept to run the same pass again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def module_of(encoder: Callable[..., Any]) -> nn.Module:
    """The module that ``encoder`` is, or is a method of.

    Raises:
        TypeError: it is neither.
    """
    owner = encoder if isinstance(encoder, nn.Module) else getattr(encoder, "__self__", None)
    if not isinstance(owner, nn.Module):
        raise TypeError(
            f"encoder must be a torch.nn.Module or a method of one, got {type(encoder).__name__}"
        )
    return owner


class Autocast:
    """The autocast settings at the time it is made, of the CPU and of every other device used."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        kinds = sorted({"cpu", *(device.type for device in devices)} - {"meta"})
        self._settings = [
            (
                kind,
                torch.get_autocast_dtype(kind),
                torch.is_autocast_enabled(kind),
                torch.is_autocast_cache_enabled(),
            )
            for kind in kinds
            if torch.amp.is_autocast_available(kind)
        ]

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """The same settings, with no casts of weights left from before or for afterwards.

        A cast that was kept without a graph would cut the weight off from its gradient.
        """
        with contextlib.ExitStack() as stack:
            for kind, dtype, enabled, cache in self._settings:
                context = torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=cache)
                stack.enter_context(context)
            torch.clear_autocast_cache()
            try:
                yield
            finally:
                torch.clear_autocast_cache()

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """No autocast on these devices."""
        with contextlib.ExitStack() as stack:
            for kind, dtype, _, _ in self._settings:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=False))
            yield


class RandomState:
    """The state of torch's generators, of the CPU and of ``devices``, at the time it is made."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._cpu = torch.get_rng_state()
        self._others: list[tuple[torch.device, Tensor]] = []
        for device in devices:
            if device.type not in ("cpu", "meta"):
                module = torch.get_device_module(device)
                here = () if device.type == "mps" else (device,)
                self._others.append((device, module.get_rng_state(*here)))

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        for device, state in self._others:
            here = () if device.type == "mps" else (device,)
            torch.get_device_module(device).set_rng_state(state, *here)


class Buffers:
    """The buffers of a module as they are at the time it is made."""

    # Larger ones are compared, to be forgotten where nothing wrote to them.
    _LARGE = 1 << 20

    def __init__(self, module: nn.Module) -> None:
        self._kept = [
            (owner, name, buffer, buffer.detach().clone())
            for owner in module.modules()
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]

    def without_constants(self) -> Buffers:
        """Forget large buffers that are as they were.

        Their version counters do not tell: batch normalisation leaves those alone.
        """
        self._kept = [
            (owner, name, buffer, value)
            for owner, name, buffer, value in self._kept
            if value.nbytes < self._LARGE
            or owner._buffers.get(name) is not buffer
            or not torch.equal(buffer, value)
        ]
        return self

    def restore(self) -> None:
        for owner, name, buffer, value in self._kept:
            # Past the version counter: a graph may hold the buffer without using its values.
            buffer.data.copy_(value)
            owner._buffers[name] = buffer


class Modes:
    """Whether each part of a module is in training mode, at the time it is made."""

    def __init__(self, module: nn.Module) -> None:
        self._modes = [(part, part.training) for part in module.modules()]

    def restore(self) -> None:
        # Part by part: `train` would change all that is below.
        for part, training in self._modes:
            part.training = training


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """``module`` in evaluation mode; afterwards every part is again in the mode it was in."""
    modes = Modes(module)
    module.eval()
    try:
        yield
    finally:
        modes.restore()
