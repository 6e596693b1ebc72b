"""TensorBoard event files of a run."""

from __future__ import annotations

from pathlib import Path

from dmlap_kernels.extras import require
from dmlap_kernels.trainer.hard_pairs import HardPairs


class EventWriter:
    """An observer of a `Trainer` that writes event files to a folder.

    Args:
        folder: where the files go.
        step: last step of the run so far; later events of an interrupted run are hidden.
        hard_pairs: what finds the pairs of images that are shown with each evaluation; None: none.

    Raises:
        MissingExtra: tensorboard is not installed.
    """

    def __init__(self, folder: Path, step: int = 0, *, hard_pairs: HardPairs | None = None) -> None:
        require("tensorboard", purpose="--tensorboard", extra="tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._hard_pairs = hard_pairs
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

        if self._hard_pairs is None:
            return
        for name, shown in self._hard_pairs.find().items():
            self._writer.add_image(f"pairs/{name}", shown.picture, int(entry["step"]))
            self._writer.add_text(f"pairs/{name}", "  \n".join(shown.lines), int(entry["step"]))

    def close(self) -> None:
        self._writer.close()
