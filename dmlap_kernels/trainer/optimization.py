"""Optimizers by name, and learning rates as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# Groups of parameters as `torch.optim` takes them: the encoder's, then the loss's own if any.
Groups = list[dict[str, Any]]
OptimizerFactory = Callable[[Groups], torch.optim.Optimizer]
# The learning rate of a step, counted from 0.
Schedule = Callable[[int], float]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


# In a group: its learning rate as a multiple of the schedule's.
RATE_FACTOR = "rate_factor"


def parameter_groups(
    encoder: list[nn.Parameter], loss: list[nn.Parameter], loss_rate: float
) -> Groups:
    """The encoder's parameters, and those of the loss with a learning rate of their own."""
    groups: Groups = [{"params": encoder}]
    return [*groups, {"params": loss, RATE_FACTOR: loss_rate}] if loss else groups


def build_optimizer(
    name: str, parameters: Groups, rate: float, options: dict[str, Any]
) -> torch.optim.Optimizer:
    """The optimizer of that name.

    Raises:
        ValueError: it does not take these options.
    """
    keywords: dict[str, Any] = {"foreach": True, **options, "lr": rate}
    try:
        return OPTIMIZERS[name](parameters, **keywords)
    # Whatever torch makes of them: an IndexError of betas that are too few, for example.
    except Exception as error:
        raise ValueError(f"optimizer_options do not suit optimizer {name!r}: {error}") from error


class LearningRates:
    """Sets the learning rate of every group of an optimizer, step by step.

    A schedule of ours scales the rate that a group was made with, which is its peak. One of the
    caller's own says the rate of the first group, and the others keep their ratio to it. Groups
    with a `RATE_FACTOR` get that multiple; groups without a rate are left alone.

    Args:
        optimizer: with its groups as they were made.
        schedule: a name in `SCHEDULES`, or a function.
        total: steps of the run.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, schedule: str | Schedule, total: int
    ) -> None:
        self._optimizer, self._schedule, self._total = optimizer, schedule, total
        rates = [group.get("lr") for group in optimizer.param_groups]
        self._own = [None if rate is None else float(rate) for rate in rates]
        first = next((rate for rate in self._own if rate is not None), 0.0)
        if not isinstance(schedule, str) and not first and any(self._own):
            raise ValueError(
                "optimizer must give its first group a learning rate above 0, for a schedule to "
                f"scale the others, got {rates}"
            )
        self._first = first

    def set(self, step: int) -> float:
        """Set the rates of ``step``; that of the first group without its factor."""
        schedule = self._schedule
        given = None if isinstance(schedule, str) else checked_rate(schedule, step)
        found = []
        for group, own in zip(self._optimizer.param_groups, self._own, strict=False):
            if own is None:
                continue
            if given is None:
                rate = SCHEDULES[str(schedule)](step, self._total, own)
            else:
                rate = given if own == self._first else given * own / self._first
            found.append(rate)
            value = rate * group.get(RATE_FACTOR, 1.0)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(value)
            else:
                group["lr"] = value
        return found[0] if found else 0.0


def checked_rate(schedule: Schedule, step: int) -> float:
    """``schedule(step)``, if it is a finite number of at least 0; else TypeError or ValueError."""
    if not callable(schedule):
        raise TypeError(
            "schedule must be a function from the step (0, 1, ...) to a learning rate, got "
            f"{type(schedule).__name__}"
        )
    rate: Any = schedule(step)
    if getattr(rate, "ndim", None) == 0:
        rate = rate.item()
    if isinstance(rate, bool) or not isinstance(rate, (int, float)):
        raise TypeError(f"schedule must return a number, got {rate!r} for step {step}")
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(
            f"schedule must return finite rates of at least 0, got {rate} for step {step}"
        )
    return float(rate)


def one_cycle(step: int, total: int, peak: float) -> float:
    """Learning rate of ``step``: cosine up from peak / 25 over 30 % of the steps, then down to 0.

    (L. N. Smith, arXiv 1708.07120, with cosines.)
    """
    rise = 0.3 * total
    if step < rise:
        low, progress = peak / 25, step / rise
    else:
        low, progress = 0.0, 1 - (step - rise) / (total - rise)
    return low + (peak - low) * (1 - math.cos(math.pi * progress)) / 2


def cosine(step: int, total: int, peak: float) -> float:
    """Learning rate of ``step``: half a cosine from the peak down to 0 (arXiv 1608.03983)."""
    return peak * (1 + math.cos(math.pi * step / total)) / 2


def constant(step: int, total: int, peak: float) -> float:
    """The peak, at every step."""
    return peak


SCHEDULES = {"one_cycle": one_cycle, "cosine": cosine, "constant": constant}
# Those whose rates do not depend on the number of steps: a run of them can be prolonged.
WITHOUT_END = ("constant",)
