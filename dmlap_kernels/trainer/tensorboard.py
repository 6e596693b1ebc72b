"""TensorBoard event files of a run."""

from __future__ import annotations

from pathlib import Path

from dmlap_kernels.extras import require


class EventWriter:
    """An observer of a `Trainer` that writes event files to a folder.

    Args:
        folder: where the files go.
        step: last step of the run so far; later events of an interrupted run are hidden.

    Raises:
        MissingExtra: tensorboard is not installed.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        require("tensorboard", purpose="--tensorboard", extra="tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def on_step(self, step: int, loss: float, violated: float) -> None:
        """Nothing: `on_log` writes averages."""

    def on_log(self, entry: dict[str, float]) -> None:
        shown = ("loss", "violated", "learning_rate", "projection", "images_per_second")
        for name in shown:
            self._writer.add_scalar(f"train/{name}", entry[name], int(entry["step"]))

    def on_evaluation(self, entry: dict[str, float]) -> None:
        for name, value in entry.items():
            if name != "step":
                self._writer.add_scalar(f"evaluation/{name}", value, int(entry["step"]))

    def close(self) -> None:
        self._writer.close()
