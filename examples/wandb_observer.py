"""Weights & Biases by an observer of the trainer; any other logger fits the same three methods.

pip install wandb
WANDB_MODE=offline python examples/wandb_observer.py
"""

from __future__ import annotations

from typing import Any

from dmlap_kernels.trainer import TrainConfig, Trainer


class WandbObserver:
    """Sends what a trainer tells to a run of wandb, or to whatever has its ``log(dict, step=)``."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def on_step(self, step: int, loss: float, violated: float) -> None:
        """Called after every step: `on_log` has the averages."""

    def on_log(self, entry: dict[str, float]) -> None:
        self._send("train", entry)

    def on_evaluation(self, entry: dict[str, float]) -> None:
        self._send("evaluation", entry)

    def _send(self, kind: str, entry: dict[str, float]) -> None:
        values = {f"{kind}/{name}": value for name, value in entry.items() if name != "step"}
        self._run.log(values, step=int(entry["step"]))


def main(run: Any = None) -> dict[str, float]:
    """Train on digits for some seconds; the metrics of the test classes."""
    config = TrainConfig(data="digits", steps=40, classes_per_batch=4, embedding_dim=16)
    if run is None:
        import wandb

        run = wandb.init(project="dmlap", config=config.to_dict())
    test = Trainer(config, observers=[WandbObserver(run)]).run()["test"]
    run.summary.update({f"test/{name}": value for name, value in test.items()})
    run.finish()
    return test


if __name__ == "__main__":
    print(main())
