"""Runs that one process and several must agree on, and what they are told by."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmlap_kernels.data import Dataset, Split
from dmlap_kernels.trainer import NonFiniteEmbeddings, NonFiniteLoss, Trainer
from dmlap_kernels.trainer.checkpoint import load_checkpoint
from dmlap_kernels.trainer.distributed import RankGroup
from tests.trainer.helpers import TIMES, DropoutEncoder, TinyEncoder, quick_config, tiny_data

# Batches of 5 x 3: of neither representatives nor samples have two ranks the same number.
_COMMON = {"steps": 5, "classes_per_batch": 5, "proximal_weight": 0.1, "projection_steps": 2}
# SGD: Adam's first steps are signs of gradients, of which rounding decides those near 0.
_SGD = {"optimizer": "sgd", "learning_rate": 0.05, "schedule": "constant"}

RUNS: dict[str, dict[str, Any]] = {
    "hard classes": {"classes": "hard", "hard_refresh": 2, "hard_warmup": 0},
    "plain": {"method": "plain", "loss": "multi_similarity"},
    "batch normalisation": {"encoder": "conv:4,4"},
    "accumulated": {"accumulate": 2, "encoder": "conv:4,4"},
    "bf16": {"amp": "bf16"},
    "fp16": {"amp": "fp16"},
    "chunks": {"chunk_size": 3},
    "proxies": {"loss": "proxy_anchor"},
    "representatives as proxies": {"loss": "proxy_nca"},
    "soft triple": {"loss": "soft_triple"},
    "both sides": {"representatives": "both", "between_weight": 0.5},
    "few representatives": {"classes_per_batch": 2, "samples_per_class": 4},
    "learned beta": {"loss": "margin", "loss_options": {"learn_beta": True}},
    "centers": {"representative_choice": "k_center", "representatives_per_class": 2},
    "patience": {"patience": 1, "monitor_every": 1, "validation": 0.4, "classes_per_batch": 4},
    "no augmentation": {"augment": False},
    "own augmentation": {"augment_representatives": True},
    "channels last": {"channels_last": True, "encoder": "conv:4,4", "backbone_rate": 0.1},
}
ROUNDED = {"bf16": 3e-2, "fp16": 3e-3}


def trainer_of(name: str, out: Path | None = None, **changes: Any) -> Trainer:
    values = {**_COMMON, **_SGD, **RUNS[name], **changes}
    data = tiny_data(10)
    if name == "own augmentation":
        data = Dataset("tiny", data.train, data.test, augment=_noisy)
    torch.manual_seed(3)
    given = {} if "encoder" in values else {"encoder": TinyEncoder()}
    trainer = Trainer(quick_config(**values), data, out=out, **given)
    if name == "fp16":
        # The parts of a gradient overflow less than the whole, which would skip another step.
        trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    return trainer


def _noisy(images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return images + 0.1 * torch.rand(images.shape, generator=random)


def found(trainer: Trainer) -> dict[str, Any]:
    """What a run of any number of processes ends with."""
    history = trainer.history
    return {
        "weights": {k: v.clone() for k, v in trainer.encoder.state_dict().items()},
        "loss": {k: v.clone() for k, v in trainer.objective.state_dict().items()},
        "train": [{k: v for k, v in e.items() if k not in TIMES} for e in history["train"]],
        "evaluation": history["evaluation"],
        "violations": trainer.violations.counts.clone(),
        "neighbors": trainer.pinned.neighbors,
    }


def everything(rank: int, folder: Path) -> dict[str, Any]:
    """All that is asked of the ranks, in processes that are started once."""
    return {
        "resumed": resume(rank, folder),
        "stopped": stop(rank, folder),
        "draws": draws(rank),
        **train_all(),
    }


def train_all() -> dict[str, Any]:
    """Every run, on the ranks that call it."""
    results: dict[str, Any] = {}
    for name in RUNS:
        trainer = trainer_of(name)
        trainer.run()
        results[name] = found(trainer)
    return results


def resume(rank: int, folder: Path) -> dict[str, Any]:
    """Continue the run that one process began; begin one that one process continues."""
    trainer = Trainer.resume(folder / "one", tiny_data(10))
    trainer.run()
    second = trainer_of("batch normalisation", folder / "two")
    for _ in range(3):
        second.train_step()
    second.save()
    return {**found(trainer), "metrics": (folder / "one" / "metrics.json").exists()}


def stop(rank: int, folder: Path) -> dict[str, Any]:
    """One rank alone is asked to stop; one alone has bad images, or other data."""
    told: dict[str, Any] = {}
    trainer = trainer_of("plain", folder / "stopped", steps=50)
    told["interrupted"] = _error(lambda: trainer.run(lambda: rank == 1 and trainer.step == 4))
    told["saved"] = load_checkpoint(folder / "stopped")[1]["step"]
    data = tiny_data(10)
    images = data.train.images.float() / 255
    images[17, 0, 3, 3] = float("nan")
    bad = Split(images, data.train.labels, data.train.class_names)
    config = quick_config(**{**_COMMON, **_SGD, "steps": 50, "method": "plain"})
    given: dict[str, Any] = {"encoder": TinyEncoder(), "out": folder / "bad"}
    run = Trainer(config, Dataset("bad", bad, data.test), **given)
    told["nan"] = _error(run.run)
    told["other data"] = _error(lambda: Trainer(config, tiny_data(10 + rank)))
    told["used folder"] = _error(lambda: trainer_of("plain", folder / "stopped"))
    told["config"] = _error(lambda: trainer_of("plain", classes_per_batch=4 + rank))
    few = {"samples_per_class": 4, "representatives_per_class": 3}
    batch = Trainer(quick_config(**few), tiny_data(10)).sampler.batch(0)
    told["few"] = _error(lambda: RankGroup().check_batch(len(batch.labels), 15))
    return told


def _error(function: Any) -> str:
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def draws(rank: int) -> list[torch.Tensor]:
    """Dropout draws on each rank for itself, and leaves the generators of all alike."""
    trainer = Trainer(
        quick_config(**{**_COMMON, "steps": 2, "method": "plain"}),
        tiny_data(10),
        encoder=DropoutEncoder(),
    )
    masks: list[torch.Tensor] = []
    real = nn.functional.dropout

    def spying(x: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        if named.get("training", True):
            masks.append(real(torch.ones(4, 8), *rest, **named))
        return real(x, *rest, **named)

    nn.functional.dropout = spying  # type: ignore[assignment]
    with contextlib.suppress(NonFiniteLoss, NonFiniteEmbeddings):
        trainer.train_step()
        trainer.train_step()
    nn.functional.dropout = real
    return [*masks, torch.get_rng_state(), *trainer.encoder.state_dict().values()]
