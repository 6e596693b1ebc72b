"""What a checkpoint of a `Trainer` holds, and what may change when its run is continued."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dmlap_kernels.data import Dataset
from dmlap_kernels.trainer import checkpoint as files
from dmlap_kernels.trainer.class_violations import ClassViolations
from dmlap_kernels.trainer.config import TrainConfig
from dmlap_kernels.trainer.loading import BatchLoader
from dmlap_kernels.trainer.log import StepLog
from dmlap_kernels.trainer.mixed_precision import MixedPrecision
from dmlap_kernels.trainer.model import load_weights
from dmlap_kernels.trainer.nested_state import apart, pack, unpack
from dmlap_kernels.trainer.objective import AlternatingObjective
from dmlap_kernels.trainer.optimization import WITHOUT_END, Schedule
from dmlap_kernels.trainer.patience import Patience
from dmlap_kernels.trainer.pinned import PinnedRepresentatives
from dmlap_kernels.trainer.projection import Projection


class Run(Protocol):
    """What is saved of a `Trainer`, and where it lies."""

    config: TrainConfig
    out: Path | None
    data: Dataset
    fingerprints: dict[str, str]
    device: torch.device
    encoder: nn.Module
    objective: AlternatingObjective
    optimizer: torch.optim.Optimizer
    precision: MixedPrecision
    projection: Projection
    projection_began: int
    patience: Patience | None
    pinned: PinnedRepresentatives
    step: int
    seconds: float
    log: StepLog
    loader: BatchLoader
    violations: ClassViolations


def state_of(trainer: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of ``trainer``, and the rest as JSON has it."""
    model, extra = apart(trainer.encoder.state_dict())
    best, best_extra = apart(trainer.patience.weights if trainer.patience else {})
    centers = {str(i): center for i, center in enumerate(trainer.projection.centers)}
    packed: dict[str, Tensor] = {}
    optimizer, optimizer_tensors = files.pack_optimizer(trainer.optimizer)
    extras = {"model_extra": pack(extra, packed, "model")}
    extras["best_extra"] = pack(best_extra, packed, "best")
    tensors = {
        **files.with_prefix("model", model),
        **files.with_prefix("loss", trainer.objective.state_dict()),
        **files.with_prefix("optimizer", optimizer_tensors),
        **files.with_prefix("extra", packed),
        **files.with_prefix("best", best),
        **files.with_prefix("center", centers),
        "rng.cpu": torch.get_rng_state(),
    }
    if trainer.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(trainer.device)
    tensors.update(files.with_prefix("pinned", trainer.pinned.tensors()))
    tensors.update(files.with_prefix("violations", trainer.violations.tensors()))
    state = {
        **extras,
        "optimizer": optimizer,
        "step": trainer.step,
        "config": trainer.config.to_dict(),
        "projection": trainer.projection.index,
        "projection_began": trainer.projection_began,
        "patience": trainer.patience.state() if trainer.patience else None,
        "scaler": trainer.precision.state(),
        "history": trainer.log.history,
        "window": trainer.log.window,
        "seconds": trainer.seconds,
        "waited": trainer.loader.waited,
        # Of the training images alone, and of the others.
        "data": trainer.fingerprints["train"],
        "fingerprints": trainer.fingerprints,
        "image_shape": list(trainer.data.train.images.shape[1:]),
    }
    return tensors, state


def put_back(trainer: Run, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Return a new ``trainer`` of the same run to what `state_of` saved.

    Raises:
        CheckpointError: the data, the encoder or the optimizer are others.
    """
    known = {"train": state["data"], **state.get("fingerprints", {})}
    other = [name for name in known if known[name] != trainer.fingerprints.get(name)]
    if other:
        raise files.CheckpointError(
            f"the run in {trainer.out} had other images ({', '.join(other)}) than "
            f"{trainer.config.data!r} now gives; its data set, or the library that renders it, "
            "has changed"
        )
    load_weights(trainer.encoder, tensors, state, trainer.out)
    trainer.objective.load_state_dict(files.of_prefix("loss", tensors))
    optimizer = files.of_prefix("optimizer", tensors)
    files.load_optimizer(trainer.optimizer, optimizer, state.get("optimizer"))
    centers = files.of_prefix("center", tensors)
    trainer.projection.load(state["projection"], [centers[str(i)] for i in range(len(centers))])
    trainer.projection_began = state["projection_began"]
    if trainer.patience:
        extras = files.of_prefix("extra", tensors)
        extra = unpack(state.get("best_extra", {"dict": []}), extras, trainer.device)
        best = {**files.of_prefix("best", tensors), **extra}
        trainer.patience.load(state["patience"], best)
    trainer.precision.load(state.get("scaler", {}))
    trainer.pinned.load(files.of_prefix("pinned", tensors))
    trainer.violations.load(files.of_prefix("violations", tensors))
    trainer.step = state["step"]
    trainer.log.history = state["history"]
    trainer.log.window = state["window"]
    trainer.seconds = state["seconds"]
    trainer.loader.waited = state.get("waited", 0.0)
    torch.set_rng_state(tensors["rng.cpu"])
    if trainer.device.type == "cuda" and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"], trainer.device)


def fingerprints(data: Dataset) -> dict[str, str]:
    """That of every split there is, by its name."""
    splits = {
        "train": data.train,
        "validation": data.validation,
        "test": data.test,
        "gallery": data.gallery,
    }
    return {name: split.fingerprint() for name, split in splits.items() if split is not None}


def prolonged(config: TrainConfig, steps: int, done: int, schedule: Schedule | None) -> TrainConfig:
    """``config`` with other ``steps``, for a run that has done some; ValueError if it cannot."""
    if steps == config.steps:
        return config
    if schedule is None and config.schedule not in WITHOUT_END:
        raise ValueError(
            f"steps must stay {config.steps}, got {steps}: the schedule {config.schedule!r} of the "
            "run depends on their number"
        )
    if config.is_dmlap and config.patience and done == config.steps:
        raise ValueError(
            f"steps must stay {config.steps}, got {steps}: the run is finished, and with patience "
            "it ended with the best weights of its last projection"
        )
    if steps < done:
        raise ValueError(f"steps must be at least {done}, which the run has done, got {steps}")
    return replace(config, steps=steps)


def unused_folder(out: str | Path | None) -> Path | None:
    """``out``, if there is nothing in it or no such folder yet."""
    if out is None:
        return None
    folder = Path(out)
    if (folder / files.FILE_NAME).exists():
        raise FileExistsError(
            f"{folder} already holds a run; continue it with --resume {folder}, or choose another "
            "folder with --out"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not an empty folder; choose another with --out")
    return folder
