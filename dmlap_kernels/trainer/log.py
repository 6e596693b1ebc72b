"""What a run tells of its steps, to observers and in its history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Observer(Protocol):
    """What a trainer tells while it runs.

    Entries of the log hold means since the last one (``loss``, ``violated``,
    ``images_per_second``) and totals of the run: ``seconds`` in steps, and the part of them that
    was ``waited`` for images.
    """

    def on_step(self, step: int, loss: float, violated: float) -> None: ...

    def on_log(self, entry: dict[str, float]) -> None: ...

    def on_evaluation(self, entry: dict[str, float]) -> None: ...


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

    def record(self, step: int, loss: float, violated: int, constraints: int) -> None:
        """Take note of a step."""
        window = self.window
        window["steps"] += 1
        window["loss"] += loss
        window["violated"] += violated
        window["constraints"] += constraints
        share = violated / max(1, constraints)
        for observer in self.observers:
            observer.on_step(step, loss, share)

    def conclude(self, step: int, images_per_step: int, **values: float) -> None:
        """Make an entry of the steps since the last one.

        Args:
            step: the last of them.
            images_per_step: images of a batch.
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
