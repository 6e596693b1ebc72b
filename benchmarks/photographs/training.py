"""One run: a part of a network trained on activations, its average followed, judged at the end."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.evidence.settings import Run
from benchmarks.photographs.activations import (
    EMBEDDING_DIM,
    Tail,
    begin_as_principal_components,
    read,
)
from dmlap_kernels.data import Dataset
from dmlap_kernels.trainer import TrainConfig, Trainer
from dmlap_kernels.trainer.embedding import evaluate

# Not of the trainer's configuration.
_OWN = ("head", "freeze_batch_norm", "average", "weight_decay")


@functools.lru_cache(1)
def _data(path: str) -> tuple[Dataset, dict[str, Tensor]]:
    return read(Path(path))


def train(task: tuple[Run, str]) -> dict[str, Any]:
    """Train and judge on the validation classes, or on the test classes where none are held out.

    ``task`` is a run and ``FILE`` or ``FILE@DEVICE``: the activations and where to train.
    """
    run, source = task
    file, _, device = source.partition("@")
    torch.set_num_threads(1)
    data, weights = _data(file)
    settings = dict(run.config)
    special = {name: settings.pop(name, None) for name in _OWN}
    if special["weight_decay"]:
        settings["optimizer_options"] = {"weight_decay": special["weight_decay"]}
    config = TrainConfig(
        embedding_dim=EMBEDDING_DIM,
        device=device or "cpu",
        eval_every=settings["steps"],
        **settings,
    )
    torch.manual_seed(config.seed)
    encoder = Tail(weights, bool(special["freeze_batch_norm"]))
    if special["head"] == "principal":
        seen = data
        if config.validation_fold is not None:
            seen = data.hold_out_fold(config.validation_fold)
        begin_as_principal_components(encoder, seen.train)
    trainer = Trainer(config, data, encoder=encoder)
    average = _average(trainer.encoder, special["average"])
    while trainer.step < config.steps:
        trainer.train_step()
        if average is not None:
            average.update_parameters(trainer.encoder)
    trainer.loader.close()
    judged = trainer.encoder if average is None else average.module
    options = {"loss": config.loss, "loss_options": config.loss_options}
    metrics = evaluate(judged, trainer.watched, **options)
    return {
        "name": run.name,
        "loss": run.loss,
        "method": run.method,
        "config": run.config,
        "recall@1": metrics["recall@1"],
        "map@r": metrics["map@r"],
        "violated": trainer.history["train"][-1]["violated"],
        "seconds": trainer.seconds,
    }


def _average(encoder: nn.Module, kept: float | None) -> AveragedModel | None:
    if not kept:
        return None
    average = get_ema_multi_avg_fn(kept)
    return AveragedModel(encoder, multi_avg_fn=average, use_buffers=True)
