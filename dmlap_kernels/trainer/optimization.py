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


_FUSED = ("adam", "adamw", "sgd")

# In a group: its learning rate as a multiple of the schedule's.
RATE_FACTOR = "rate_factor"


def parameter_groups(
    encoder: nn.Module,
    loss: list[nn.Parameter],
    loss_rate: float,
    *,
    backbone_rate: float = 1.0,
    decays: bool = False,
) -> Groups:
    """The encoder's parameters that are learned, and those of the loss at a rate of their own.

    Args:
        encoder: its parameters that require no gradient are left out.
        loss: parameters of the loss.
        loss_rate: their learning rate, as a multiple of the schedule's.
        backbone_rate: that of all of the encoder but its ``head``, which then must be a module of
            that name.
        decays: the optimizer decays weights: those of fewer than two dimensions (scales and shifts
            of norms, biases) are put into groups without decay.

    Raises:
        ValueError: ``backbone_rate`` of an encoder without a head, or one that is all head.
    """
    learned = [(n, p) for n, p in encoder.named_parameters() if p.requires_grad]
    parts = [(learned, 1.0)]
    if backbone_rate != 1:
        head = [(n, p) for n, p in learned if n.partition(".")[0] == "head"]
        backbone = [(n, p) for n, p in learned if n.partition(".")[0] != "head"]
        if not head or not backbone:
            raise ValueError(
                "backbone_rate needs an encoder whose last layer is called head and which learns "
                f"more than that, got {type(encoder).__name__}"
            )
        parts = [(head, 1.0), (backbone, backbone_rate)]
    groups: Groups = []
    for members, factor in parts:
        rate = {} if factor == 1 else {RATE_FACTOR: factor}
        plain = [p for _, p in members if decays and p.ndim < 2]
        weights = [p for _, p in members if not decays or p.ndim >= 2]
        groups += [{"params": weights, **rate}] if weights else []
        groups += [{"params": plain, "weight_decay": 0.0, **rate}] if plain else []
    return [*groups, {"params": loss, RATE_FACTOR: loss_rate}] if loss else groups


def decays_weights(name: str, options: dict[str, Any]) -> bool:
    """Whether the optimizer of that name decays weights: AdamW does unless it is told not to."""
    return bool(options.get("weight_decay", name == "adamw"))


def freeze(encoder: nn.Module, prefixes: tuple[str, ...]) -> None:
    """Parameters under these names learn nothing, and modules under them stay in evaluation mode.

    Args:
        encoder: changed in place.
        prefixes: names of modules or parameters, such as ``("backbone.conv_stem",)``.

    Raises:
        ValueError: nothing in the encoder has that name.
    """
    for prefix in prefixes:
        found = False
        for name, module in encoder.named_modules():
            if _under(name, prefix):
                module.training, found = False, True
        for name, parameter in encoder.named_parameters():
            if _under(name, prefix):
                found = True
                parameter.requires_grad_(False)
        if not found:
            names = sorted(
                {name for name, _ in encoder.named_modules() if name.count(".") < 2} - {""}
            )
            raise ValueError(
                f"freeze must name parts of the encoder, such as {', '.join(names[:6])}, got "
                f"{prefix!r}"
            )


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def build_optimizer(
    name: str, parameters: Groups, rate: float, options: dict[str, Any]
) -> torch.optim.Optimizer:
    """The optimizer of that name: fused on CUDA where PyTorch has that, else by ``foreach``,
    unless the options say which.

    Raises:
        ValueError: it does not take these options.
    """
    kinds = {p.device.type for group in parameters for p in group["params"]}
    how = "fused" if kinds == {"cuda"} and name in _FUSED else "foreach"
    chosen = {"fused", "foreach"} & options.keys()
    keywords: dict[str, Any] = {**({} if chosen else {how: True}), **options, "lr": rate}
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

    Attributes:
        share: the rate that `set` has set last, over its peak, 1 at most.
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
        self.share = 1.0

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
        rate = found[0] if found else 0.0
        self.share = min(1.0, rate / self._first) if self._first else 1.0
        return rate


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
