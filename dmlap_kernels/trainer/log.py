"""What a run tells of its steps, to observers and in its history.

The numbers of a step stay on the device until they are asked for: reading one of them waits for
everything that the device has been given to do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dmlap_kernels.problem import PairStats
from dmlap_kernels.trainer.batches import Batch

# Steps whose numbers a device may hold.
_HELD = 20


class Observer(Protocol):
    """What a trainer tells while it runs.

    Entries of the log hold means since the last one (``loss``, ``violated``,
    ``images_per_second``) and totals of the run: ``seconds`` in steps, and the part of them that
    was ``waited`` for images. On a GPU `on_step` tells some steps at once, 20 at most.
    """

    def on_step(self, step: int, loss: float, violated: float) -> None: ...

    def on_log(self, entry: dict[str, float]) -> None: ...

    def on_evaluation(self, entry: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class Held:
    """The numbers of a batch, on the device.

    Attributes:
        key: its step, from 0, and its part.
        batch: what it held.
        numbers: (3,) float64: loss, violated constraints, constraints.
        largest: (B,), `magnitudes` of its embeddings.
    """

    key: tuple[int, int]
    batch: Batch
    numbers: Tensor
    largest: Tensor

    @staticmethod
    def of(
        key: tuple[int, int], batch: Batch, loss: Tensor, stats: PairStats, largest: Tensor
    ) -> Held:
        numbers = (loss.detach(), stats.violated, stats.constraints)
        dtype = torch.float32 if loss.device.type == "mps" else torch.float64
        return Held(key, batch, torch.stack([one.to(dtype) for one in numbers]), largest)


class StepLog:
    """Collects steps into entries of the history.

    Args:
        observers: told about steps, entries and evaluations.

    Attributes:
        history: entries of ``"train"`` and ``"evaluation"``.
        window: sums over the steps since the last entry.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = list(observers)
        self.history: dict[str, list[dict[str, float]]] = {"train": [], "evaluation": []}
        self.window = _empty_window()
        self._held: list[Held] = []
        # By step: loss, violated constraints and constraints of its batches.
        self._read: dict[int, list[list[float]]] = {}

    def hold(self, held: Held) -> None:
        """Take note of a batch, without a look at its numbers."""
        self._held.append(held)

    @property
    def full(self) -> bool:
        """Whether the numbers are to be read: at once on the CPU, which has them at hand."""
        if not self._held:
            return False
        on_cpu = self._held[-1].numbers.device.type == "cpu"
        return on_cpu or self._held[-1].key[0] - self._held[0].key[0] >= _HELD - 1

    def read(self) -> tuple[Held, float] | None:
        """Read the numbers that are held, all at once; the first loss that is not finite, if there
        is one, and whose it is."""
        held, self._held = self._held, []
        if not held:
            return None
        numbers = torch.stack([one.numbers for one in held]).tolist()
        for one, values in zip(held, numbers, strict=True):
            if not math.isfinite(values[0]):
                return one, values[0]
            self._read.setdefault(one.key[0], []).append(values)
        return None

    def tell(self) -> None:
        """Tell the observers of the steps that were read."""
        read, self._read = self._read, {}
        window = self.window
        for step, parts in read.items():
            loss = sum(part[0] for part in parts) / len(parts)
            violated, constraints = (int(sum(part[i] for part in parts)) for i in (1, 2))
            window["steps"] += 1
            window["loss"] += loss
            window["violated"] += violated
            window["constraints"] += constraints
            for observer in self.observers:
                observer.on_step(step + 1, loss, violated / max(1, constraints))

    def conclude(self, step: int, images_per_step: int, **values: float) -> None:
        """Make an entry of the steps since the last one.

        Args:
            step: the last of them, from 1.
            images_per_step: of all its batches.
            values: what else it holds; ``seconds`` among them.
        """
        window, entries = self.window, self.history["train"]
        seconds = values["seconds"] - (entries[-1]["seconds"] if entries else 0.0)
        entry = {
            "step": step,
            "loss": window["loss"] / window["steps"],
            "violated": window["violated"] / max(1, window["constraints"]),
            **values,
            "images_per_second": window["steps"] * images_per_step / max(seconds, 1e-9),
        }
        entries.append(entry)
        self.window = _empty_window()
        for observer in self.observers:
            observer.on_log(entry)

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """Take note of an evaluation."""
        entry = {"step": step, **metrics}
        self.history["evaluation"].append(entry)
        for observer in self.observers:
            observer.on_evaluation(entry)


def _empty_window() -> dict[str, float]:
    return {"steps": 0, "loss": 0.0, "violated": 0, "constraints": 0}
