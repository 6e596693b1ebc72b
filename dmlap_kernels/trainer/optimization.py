"""Optimizers by name, and learning rates as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

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
    except (TypeError, ValueError) as error:
        raise ValueError(f"optimizer_options do not suit optimizer {name!r}: {error}") from error


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
