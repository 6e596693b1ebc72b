"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dmlap_kernels.data import Dataset, Split
from dmlap_kernels.trainer import checkpoint as files
from dmlap_kernels.trainer import defaults
from dmlap_kernels.trainer.batches import Batch, ClassBatchSampler
from dmlap_kernels.trainer.config import TrainConfig
from dmlap_kernels.trainer.diagnosis import diagnose
from dmlap_kernels.trainer.embedding import Stopped, evaluate, evaluate_pixels
from dmlap_kernels.trainer.gradient_cache import GradientCache
from dmlap_kernels.trainer.inputs import prepare_data
from dmlap_kernels.trainer.model import build_encoder, load_weights, resolve_device
from dmlap_kernels.trainer.objective import AlternatingObjective
from dmlap_kernels.trainer.optimization import (
    RATE_FACTOR,
    SCHEDULES,
    OptimizerFactory,
    Schedule,
    build_optimizer,
    parameter_groups,
)
from dmlap_kernels.trainer.patience import Patience
from dmlap_kernels.trainer.pinned import PinnedRepresentatives
from dmlap_kernels.trainer.projection import Projection
from dmlap_kernels.trainer.results import collect_results, write_results
from dmlap_kernels.trainer.seeds import generator

Stop = Callable[[], bool]


class Observer(Protocol):
    """What a trainer tells while it runs."""

    def on_step(self, step: int, loss: float, violated: float) -> None: ...

    def on_log(self, entry: dict[str, float]) -> None: ...

    def on_evaluation(self, entry: dict[str, float]) -> None: ...


class Interrupted(RuntimeError):
    """The run was asked to stop and has saved itself if it has a folder."""


class Trainer:
    """Trains an encoder by alternating projections, or with plain batches.

        trainer = Trainer(TrainConfig(data="digits", steps=200), out="runs/digits")
        print(trainer.run()["recall@1"])

    ``torch.manual_seed`` is called with the seed of the configuration. All draws are functions of
    that seed and the step, so a resumed run ends with the weights of an uninterrupted one.

    Args:
        config: what to do.
        data: a data set to use instead of ``config.data``; with ``config.validation``, classes are
            held out of it.
        encoder: module from images (B, channels, height, width), 0 to 1, to (B, D). Default: the
            one that ``config.encoder`` names. Losses of proxies need ``config.embedding_dim`` = D.
        optimizer: called with the groups of parameters, returns a `torch.optim.Optimizer`. Default:
            the one that ``config.optimizer`` names.
        schedule: the learning rate of step 0, 1, ... Default: as ``config.schedule`` says.
        out: folder for checkpoints, metrics and pictures; must not hold a run. None: nothing is
            written.
        checkpoint_every: steps between checkpoints.
        observers: told about steps and evaluations.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Dataset | None = None,
        *,
        encoder: nn.Module | None = None,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        out: str | Path | None = None,
        checkpoint_every: int = defaults.CHECKPOINT_EVERY,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.out = _unused_folder(out)
        self._build(config, data, encoder, optimizer, schedule, checkpoint_every, observers)

    @classmethod
    def resume(
        cls,
        out: str | Path,
        data: Dataset | None = None,
        *,
        encoder: nn.Module | None = None,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        checkpoint_every: int = defaults.CHECKPOINT_EVERY,
        observers: Sequence[Observer] = (),
    ) -> Trainer:
        """The trainer of the run in ``out`` as it was at its last checkpoint.

        ``data``, ``encoder``, ``optimizer`` and ``schedule`` are given if and only if they were
        given to the run.

        Raises:
            CheckpointError: no readable checkpoint, or other data or another encoder.
        """
        out = Path(out)
        tensors, state = files.load_checkpoint(out)
        trainer = cls.__new__(cls)
        trainer.out = out
        config = TrainConfig.from_dict(state["config"])
        if encoder is None:
            # Its weights are in the checkpoint: nothing is to be downloaded.
            encoder = build_encoder(config, tuple(state["image_shape"]), pretrained=False)
        trainer._build(config, data, encoder, optimizer, schedule, checkpoint_every, observers)
        trainer._restore(tensors, state)
        return trainer

    def _build(
        self,
        config: TrainConfig,
        data: Dataset | None,
        encoder: nn.Module | None,
        optimizer: OptimizerFactory | None,
        schedule: Schedule | None,
        checkpoint_every: int,
        observers: Sequence[Observer],
    ) -> None:
        if checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}")
        self.data = data = prepare_data(config, data)
        train = data.train
        classes = config.classes_per_batch or min(defaults.CLASSES_PER_BATCH, train.num_classes)
        self.config = config = replace(config, classes_per_batch=classes)
        self._fingerprint = data.train.fingerprint()
        self.device = resolve_device(config.device)
        torch.manual_seed(config.seed)
        if encoder is None:
            encoder = build_encoder(config, tuple(self.data.train.images.shape[1:]))
        self.encoder = encoder.to(self.device)
        self.objective = AlternatingObjective(
            config.loss,
            config.loss_options,
            in_batch_weight=config.in_batch_weight,
            side=config.representatives,
            between_weight=config.between_weight,
            num_classes=train.num_classes,
            embedding_dim=config.embedding_dim,
        ).to(self.device)
        # What is learned, as one module where the loss has parameters of its own.
        self._learned: nn.Module = self.encoder
        if config.learns_in_loss:
            self._learned = nn.ModuleDict({"encoder": self.encoder, "loss": self.objective})
        size = config.chunk_size
        self._cache = None if size is None else GradientCache(self.encoder, size)
        self.sampler = ClassBatchSampler(
            train.labels,
            classes,
            config.samples_per_class,
            config.seed,
            hard_share=config.hard_share if config.mines else 0.0,
            hard_warmup=config.hard_warmup,
        )
        self.pinned = PinnedRepresentatives(config, train)
        parameters = [p for p in self.encoder.parameters() if p.requires_grad]
        groups = parameter_groups(parameters, list(self.objective.parameters()), config.loss_rate)
        named = config.optimizer, groups, config.learning_rate, config.optimizer_options
        self.optimizer = optimizer(groups) if optimizer else build_optimizer(*named)
        self._schedule = schedule
        self.projection = Projection(parameters, config.proximal_weight, config.proximal_decay)
        self.projection_began = 0
        self.patience = Patience(config.patience) if config.is_dmlap and config.patience else None
        self.checkpoint_every = checkpoint_every
        self.observers = list(observers)
        self.step = 0
        self.seconds = 0.0
        self.history: dict[str, list[dict[str, float]]] = {"train": [], "evaluation": []}
        self._window = _empty_window()

    @property
    def watched(self) -> Split:
        """The split that progress is watched on."""
        return self.data.test if self.data.validation is None else self.data.validation

    def run(self, stop: Stop | None = None) -> dict[str, Any]:
        """Train to the last step, evaluate, write the results.

        Args:
            stop: polled between steps; True saves a checkpoint and ends the run.

        Returns:
            What ``metrics.json`` holds (`dmlap_kernels.trainer.results`).

        Raises:
            Interrupted: ``stop`` returned True.
            NonFiniteLoss: a loss was infinite or nan; the last checkpoint stays.
        """
        if self.step == 0:
            self.save()
        self.encoder.train()
        try:
            self._evaluate_if_due(stop)
            while self.step < self.config.steps:
                self.train_step()
                last = self.step == self.config.steps
                if last and self.patience:
                    self.patience.runs_out(self._monitored(), self._learned)
                    self.patience.restore(self._learned)
                if last or self.step % self.checkpoint_every == 0:
                    self.save()
                if stop is not None and stop():
                    raise Stopped
                self._evaluate_if_due(stop)
            return self._finish(stop)
        except Stopped:
            self.save()
            done = f"step {self.step} of {self.config.steps}"
            raise Interrupted(f"interrupted after {done}") from None

    def train_step(self) -> None:
        """One step: batch, loss, proximal gradient, optimizer."""
        started = time.perf_counter()
        config = self.config
        if config.is_dmlap:
            self._prepare_projection()
        batch = self.sampler.batch(self.step, self.pinned.indices, self.pinned.neighbors)
        images, labels = self._images(batch), batch.labels.to(self.device)
        embeddings = (self._cache.embed if self._cache else self.encoder)(images)
        loss, stats = self.objective(embeddings, labels, batch.representatives)
        value = loss.item()
        if not math.isfinite(value):
            raise diagnose(value, self.step + 1, batch, images, embeddings, self.data.train)
        self.optimizer.zero_grad()
        self._cache.backward(loss) if self._cache else loss.backward()
        self.projection.step()
        rate = self._learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get(RATE_FACTOR, 1.0)
        self.optimizer.step()
        self.step += 1
        self.seconds += time.perf_counter() - started
        self._record(value, int(stats.violated), int(stats.constraints), rate)

    def _learning_rate(self) -> float:
        if self._schedule is not None:
            return self._schedule(self.step)
        config = self.config
        return SCHEDULES[config.schedule](self.step, config.steps, config.learning_rate)

    def _prepare_projection(self) -> None:
        """Pin new representatives for each projection; score classes when their scores are old."""
        if self._projection_is_over():
            if self.patience:
                self.patience.restore(self._learned)
            self.projection.end_projection()
            self.projection_began = self.step
            self.pinned.release()
        self.pinned.prepare(self.encoder, self.projection.index, self.step)

    def _projection_is_over(self) -> bool:
        steps = self.step - self.projection_began
        done = steps >= self.config.projection_steps
        if self.patience and steps and (done or steps % self.config.monitor_every == 0):
            done |= self.patience.runs_out(self._monitored(), self._learned)
        return done

    def _monitored(self) -> float:
        return self._evaluate(self.watched, ks=(1,))["recall@1"]

    def _images(self, batch: Batch) -> Tensor:
        """The images of a batch, distorted; representatives only if asked for."""
        train = self.data.train
        if not self.config.augment or self.data.augment is None:
            return train.batch(batch.indices).to(self.device)
        random = generator(self.config.seed, "augmentation", self.step)
        plain = 0 if self.config.augment_representatives else batch.representatives
        leading, samples = batch.indices.tensor_split([plain])
        distorted = train.augmented(samples, self.data.augment, random)
        return torch.cat((train.batch(leading), distorted)).to(self.device)

    def _record(self, loss: float, violated: int, constraints: int, rate: float) -> None:
        window = self._window
        window["steps"] += 1
        window["loss"] += loss
        window["violated"] += violated
        window["constraints"] += constraints
        share = violated / max(1, constraints)
        for observer in self.observers:
            observer.on_step(self.step, loss, share)
        if self.step % self.config.log_interval and self.step < self.config.steps:
            return
        entry = {
            "step": self.step,
            "loss": window["loss"] / window["steps"],
            "violated": window["violated"] / max(1, window["constraints"]),
            "learning_rate": rate,
            "projection": self.projection.index,
            "seconds": self.seconds,
        }
        self.history["train"].append(entry)
        self._window = _empty_window()
        for observer in self.observers:
            observer.on_log(entry)

    def _evaluate_if_due(self, stop: Stop | None) -> None:
        config, entries = self.config, self.history["evaluation"]
        due = self.step % config.evaluation_interval == 0 or self.step == config.steps
        if not due or (entries and entries[-1]["step"] == self.step):
            return
        metrics = self._evaluate(self.watched, stop)
        entries.append({"step": self.step, **metrics})
        for observer in self.observers:
            observer.on_evaluation(entries[-1])

    def _evaluate(
        self, split: Split, stop: Stop | None = None, ks: Sequence[int] | None = None
    ) -> dict[str, float]:
        config = self.config
        return evaluate(
            self.encoder,
            split,
            gallery=self.data.gallery if split is self.data.test else None,
            ks=self.data.ks if ks is None else ks,
            loss=config.loss,
            loss_options=config.loss_options,
            stop=stop,
        )

    def _finish(self, stop: Stop | None) -> dict[str, Any]:
        final = self.history["evaluation"][-1]
        watched = {name: value for name, value in final.items() if name != "step"}
        test = watched if self.data.validation is None else self._evaluate(self.data.test, stop)
        validation = None if self.data.validation is None else watched
        results = collect_results(
            self.config,
            self.data,
            self.history,
            test=test,
            validation=validation,
            raw_pixels=evaluate_pixels(self.data.test, self.data.gallery, ks=self.data.ks),
            seconds=self.seconds,
        )
        self.save()
        if self.out is not None:
            write_results(self.out, results)
        return results

    def save(self) -> None:
        """Write a checkpoint, if there is a folder for it."""
        if self.out is None:
            return
        centers = {str(i): center for i, center in enumerate(self.projection.centers)}
        tensors = {
            **files.with_prefix("model", self.encoder.state_dict()),
            **files.with_prefix("loss", self.objective.state_dict()),
            **files.with_prefix("optimizer", files.optimizer_tensors(self.optimizer)),
            **files.with_prefix("center", centers),
            "rng.cpu": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        tensors.update(files.with_prefix("pinned", self.pinned.tensors()))
        if self.patience:
            tensors.update(files.with_prefix("best", self.patience.weights))
        state = {
            "step": self.step,
            "config": self.config.to_dict(),
            "projection": self.projection.index,
            "projection_began": self.projection_began,
            "patience": self.patience.state() if self.patience else None,
            "history": self.history,
            "window": self._window,
            "seconds": self.seconds,
            "data": self._fingerprint,
            "image_shape": list(self.data.train.images.shape[1:]),
        }
        self.out.mkdir(parents=True, exist_ok=True)
        files.save_checkpoint(self.out, tensors, state)

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        if state["data"] != self._fingerprint:
            raise files.CheckpointError(
                f"the run in {self.out} was trained on other images than {self.config.data!r} "
                "now gives; its data set, or the library that renders it, has changed"
            )
        load_weights(self.encoder, tensors, self.out)
        self.objective.load_state_dict(files.of_prefix("loss", tensors))
        files.load_optimizer(self.optimizer, files.of_prefix("optimizer", tensors))
        centers = files.of_prefix("center", tensors)
        self.projection.load(state["projection"], [centers[str(i)] for i in range(len(centers))])
        self.projection_began = state["projection_began"]
        if self.patience:
            self.patience.load(state["patience"], files.of_prefix("best", tensors))
        self.pinned.load(files.of_prefix("pinned", tensors))
        self.step = state["step"]
        self.history = state["history"]
        self._window = state["window"]
        self.seconds = state["seconds"]
        torch.set_rng_state(tensors["rng.cpu"])
        if self.device.type == "cuda" and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.device)


def _unused_folder(out: str | Path | None) -> Path | None:
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


def _empty_window() -> dict[str, float]:
    return {"steps": 0, "loss": 0.0, "violated": 0, "constraints": 0}
