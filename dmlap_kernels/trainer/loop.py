"""The training loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmlap_kernels.data import Dataset, Split
from dmlap_kernels.distributed import global_batch
from dmlap_kernels.trainer import checkpoint as files
from dmlap_kernels.trainer import defaults, parts, saving
from dmlap_kernels.trainer.class_violations import ClassViolations
from dmlap_kernels.trainer.config import TrainConfig
from dmlap_kernels.trainer.diagnosis import diagnose, magnitudes
from dmlap_kernels.trainer.distributed import GradientSum, RankGroup, SameBuffers
from dmlap_kernels.trainer.embedding import Stopped, evaluate, evaluate_pixels, search_options
from dmlap_kernels.trainer.gradient_cache import GradientCache
from dmlap_kernels.trainer.inputs import prepare_data
from dmlap_kernels.trainer.loading import (
    Planned,
    lost_workers,
    planned_batches,
)
from dmlap_kernels.trainer.log import Held, Observer, StepLog
from dmlap_kernels.trainer.mixed_precision import MixedPrecision
from dmlap_kernels.trainer.model import build_encoder, resolve_device
from dmlap_kernels.trainer.optimization import (
    LearningRates,
    OptimizerFactory,
    Schedule,
    checked_rate,
)
from dmlap_kernels.trainer.patience import Patience
from dmlap_kernels.trainer.pinned import PinnedRepresentatives
from dmlap_kernels.trainer.projection import Projection
from dmlap_kernels.trainer.rehearsal import (
    memory_advice,
    same_randomness,
    try_encoder,
    try_saving,
)
from dmlap_kernels.trainer.results import METRICS_FILE, collect_results, write_results
from dmlap_kernels.trainer.sync_batch_norm import SyncBatchNorm

Stop = Callable[[], bool]


class Interrupted(RuntimeError):
    """The run was asked to stop and has saved itself if it has a folder."""


class Trainer:
    """Trains an encoder by alternating projections, or with plain batches.

        trainer = Trainer(TrainConfig(data="digits", steps=200), out="runs/digits")
        print(trainer.run()["recall@1"])

    ``torch.manual_seed`` is called with the seed of the configuration. All draws are functions of
    that seed and the step, so a resumed run ends with the weights of an uninterrupted one.
    Everything that a run needs is tried in small before its first step: its folder, the encoder on
    two images, the loss, the search and the optimizer.

    Where `torch.distributed` is initialised, all ranks train one encoder and must make the same
    calls. They share each batch, whose size stays that of the configuration, and its loss is that
    of the whole. Rank 0 writes the files.

    Args:
        config: what to do.
        data: a data set to use instead of ``config.data``; with ``config.validation``, classes are
            held out of it.
        encoder: module from images (B, channels, height, width), 0 to 1, to (B, D). Default: the
            one that ``config.encoder`` names. Losses of proxies need ``config.embedding_dim`` = D.
            Every module of it is trained in the mode that it is in: those in evaluation mode (a
            frozen batch normalisation, say) stay so.
        optimizer: called with the groups of parameters, returns a `torch.optim.Optimizer` of them,
            in groups of its own choice. Default: the one that ``config.optimizer`` names. What its
            ``state_dict`` holds is saved: tensors, numbers, strings, and containers of them.
        schedule: the learning rate of step 0, 1, ... in the first group; others keep their ratio
            to it. Default: as ``config.schedule`` says, with the rate that each group of
            ``optimizer`` was made with as its peak.
        out: folder for checkpoints, metrics and pictures; must not hold a run. None: nothing is
            written.
        checkpoint_every: steps between checkpoints.
        workers: processes that prepare the images of batches ahead, which makes no difference to
            their bits; 0: none. Default: one for each core, four at most, for images that stay in
            their files, where processes are started by a fork; else 0.
        observers: told about steps and evaluations, on rank 0.
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
        workers: int | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.ranks = RankGroup()
        self.out = self.ranks.by_first(lambda: saving.unused_folder(out))
        if encoder is not None and config.weights is not None:
            raise ValueError("weights can only be given with an encoder that config.encoder names")
        self._set_up(checkpoint_every, observers)
        self._build(config, data, encoder, optimizer, schedule, workers)

    @classmethod
    def resume(
        cls,
        out: str | Path,
        data: Dataset | str | None = None,
        *,
        encoder: nn.Module | None = None,
        optimizer: OptimizerFactory | None = None,
        schedule: Schedule | None = None,
        steps: int | None = None,
        chunk_size: int | None = None,
        checkpoint_every: int = defaults.CHECKPOINT_EVERY,
        workers: int | None = None,
        observers: Sequence[Observer] = (),
    ) -> Trainer:
        """The trainer of the run in ``out`` as it was at its last checkpoint.

        ``encoder``, ``optimizer`` and ``schedule`` are given if and only if they were given to the
        run.

        Args:
            data: the data set, if it was given to the run; or a source in place of
                ``config.data``, where the same images now are.
            steps: in place of ``config.steps``, for a schedule that does not depend on their
                number: ``"constant"``, or one of the caller's own. The run ends with the weights
                of one that had so many from the start; a run with patience must not be finished,
                because it ended with the best weights of its last projection.
            chunk_size: in place of ``config.chunk_size``, to save memory; the same bits are then
                not to be had.

        Raises:
            CheckpointError: no readable checkpoint, or other data or another encoder or optimizer.
            ValueError: steps that the run cannot have.
        """
        out = Path(out)
        trainer = cls.__new__(cls)
        trainer.ranks = RankGroup()
        # Of the folder on the machine of rank 0: others need none.
        tensors, state = trainer.ranks.by_first(lambda: files.load_checkpoint(out))
        trainer.out = out
        config = TrainConfig.from_dict(state["config"])
        if steps is not None:
            config = saving.prolonged(config, steps, state["step"], schedule)
        if chunk_size is not None:
            config = replace(config, chunk_size=chunk_size)
        if isinstance(data, str):
            config, data = replace(config, data=data), None
        if encoder is None:
            # Its weights are in the checkpoint: nothing is to be downloaded.
            encoder = build_encoder(config, tuple(state["image_shape"]), pretrained=False)
        trainer._set_up(checkpoint_every, observers)
        trainer._build(config, data, encoder, optimizer, schedule, workers)
        saving.put_back(trainer, tensors, state)
        return trainer

    def _set_up(self, checkpoint_every: int, observers: Sequence[Observer]) -> None:
        if not isinstance(checkpoint_every, int) or checkpoint_every < 1:
            raise ValueError(
                f"checkpoint_every must be an integer of at least 1, got {checkpoint_every!r}"
            )
        self.checkpoint_every = checkpoint_every
        self.log = StepLog(observers if self.ranks.first else ())
        self.step = self.projection_began = 0
        self.seconds = 0.0

    def _build(
        self,
        config: TrainConfig,
        data: Dataset | None,
        encoder: nn.Module | None,
        optimizer: OptimizerFactory | None,
        schedule: Schedule | None,
        workers: int | None,
    ) -> None:
        self.device = resolve_device(self.ranks.device(config.device))
        self.data = data = prepare_data(config, data)
        train = data.train
        classes = config.classes_per_batch or min(defaults.CLASSES_PER_BATCH, train.num_classes)
        self.config = config = replace(config, classes_per_batch=classes)
        self.fingerprints = saving.fingerprints(data)
        self.ranks.require_same(config=config, data=self.fingerprints)
        torch.manual_seed(config.seed)
        name = repr(config.encoder) if encoder is None else type(encoder).__name__
        self.encoder, self.weights = parts.encoder_of(config, train, encoder, self.device)
        with same_randomness(self.device):
            embeddings = try_encoder(self.encoder, name, train)
        self.objective = parts.objective_of(config, train, self.device)
        # What is learned, as one module where the loss has parameters of its own.
        self._learned: nn.Module = self.encoder
        if any(True for _ in self.objective.parameters()):
            self._learned = nn.ModuleDict({"encoder": self.encoder, "loss": self.objective})
        # Equal seeds give equal weights, but for an encoder that was given.
        state = (*self._learned.parameters(), *self._learned.buffers())
        self.ranks.as_first(state)
        self._same_buffers = SameBuffers(self.ranks, self.encoder)
        self._loss: nn.Module = self.objective
        if self.ranks.count > 1:
            self._loss = global_batch(self.objective, gradients="sum")
        self.precision = MixedPrecision(config.amp, self.device)
        trained: Any = self.encoder
        if config.compile:
            trained = torch.compile(self.encoder, dynamic=config.chunk_size is not None)
        size = config.chunk_size
        self._cache = None if size is None else GradientCache(trained, size)
        self._embed = trained if self._cache is None else self._cache.embed
        self.sampler = parts.sampler_of(config, train)
        self.pinned = PinnedRepresentatives(config, train, self.ranks)
        self.loader = parts.loader_of(config, data, self.ranks, workers, self.device)
        parts.rehearse(config, train, self.sampler, self.objective, embeddings, self.ranks)
        self._begin_optimizing(name, optimizer, schedule)
        self.patience = Patience(config.patience) if config.is_dmlap and config.patience else None
        options = search_options(config.loss, config.loss_options)
        self.violations = ClassViolations(train.num_classes, self.device, **options)
        if self.out is not None:
            modules = [self.encoder, self.objective]
            tried = self.out, config, modules, self.optimizer
            self.ranks.by_first(lambda: try_saving(*tried))

    def _begin_optimizing(
        self, name: str, optimizer: OptimizerFactory | None, schedule: Schedule | None
    ) -> None:
        config, device = self.config, self.device
        self.optimizer = parts.optimizer_of(
            config, self.encoder, self.objective, name, optimizer, device
        )
        if schedule is not None:
            checked_rate(schedule, 0)
        parameters = parts.learned(self.encoder)
        self._sum_gradients = GradientSum(self.ranks, [*parameters, *parts.learned(self.objective)])
        self.rates = LearningRates(self.optimizer, schedule or config.schedule, config.steps)
        self.projection = Projection(
            parameters,
            config.proximal_weight,
            config.proximal_decay,
            config.projection_steps if config.proximal_form == "decoupled" else None,
        )
        # The caller of the trainer's method is told.
        parts.warn_of_evaluation_mode(self.encoder, stacklevel=4)

    @property
    def observers(self) -> list[Observer]:
        """Told about steps and evaluations; more may be added."""
        return self.log.observers

    @property
    def history(self) -> dict[str, list[dict[str, float]]]:
        """Entries of ``"train"`` and ``"evaluation"`` so far."""
        return self.log.history

    @property
    def watched(self) -> Split:
        """The split that progress is watched on."""
        return self.data.test if self.data.validation is None else self.data.validation

    def run(self, stop: Stop | None = None) -> dict[str, Any]:
        """Train to the last step, evaluate, write the results.

        Args:
            stop: polled between steps; True, on any rank, saves a checkpoint and ends the run.
                Given on all ranks or on none.

        Returns:
            What ``metrics.json`` holds (`dmlap_kernels.trainer.results`).

        Raises:
            Interrupted: ``stop`` returned True.
            NonFiniteLoss: a loss was infinite or nan; the last checkpoint stays.
            NonFiniteEmbeddings: those of an evaluation were; the last checkpoint stays.
            OutOfMemory: of the device or the machine; the last checkpoint stays.
            OSError: a file could not be written, or a process that prepares batches has ended; the
                last checkpoint stays.
            LostRank: another rank has ended; the last checkpoint stays.
        """
        with memory_advice(self.config, self.device, lambda: self.step), lost_workers():
            try:
                return self._run(stop)
            finally:
                self.loader.close()

    def _run(self, stop: Stop | None) -> dict[str, Any]:
        if self.step == 0:
            self.save()
        elif self.out is not None and self.step < self.config.steps and self.ranks.first:
            # Of a finished run that is prolonged.
            (self.out / METRICS_FILE).unlink(missing_ok=True)
        began = self.step
        try:
            self._evaluate_if_due(stop)
            while self.step < self.config.steps:
                self.train_step()
                last = self.step == self.config.steps
                if self.step == began + 1 and self.out is not None:
                    # What an optimizer keeps shows in its first step.
                    files.pack_optimizer(self.optimizer)
                if last and self.patience:
                    self.patience.runs_out(self._monitored(), self._learned)
                    self.patience.restore(self._learned)
                if last or self.step % self.checkpoint_every == 0:
                    self.save()
                if stop is not None and self.ranks.any(stop()):
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
        self.optimizer.zero_grad()
        for part in range(config.accumulate):
            self._accumulate(part)
        self._sum_gradients()
        self.precision.prepare(self.optimizer)
        self.projection.step()
        rate = self.rates.set(self.step)
        self.precision.step(self.optimizer)
        self.projection.pull(self.rates.share)
        self._same_buffers()
        self.step += 1
        if self.log.full or self._logs_now:
            self._check()
        self.seconds += time.perf_counter() - started
        self._record(rate)

    def _accumulate(self, part: int) -> None:
        """Add the gradient of one of the step's batches: its share of their mean."""
        config, key = self.config, (self.step, part)
        whole, images = self.loader.take(key, self._plan)
        batch = whole.part(*self.ranks.place)
        labels = batch.labels.to(self.device, non_blocking=True)
        if config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        own = self.ranks.own_randomness(config.seed, *key, self.device)
        with own, self._statistics(), self.precision.autocast():
            embeddings = self._embed(images)
        if config.amp is not None:
            embeddings = embeddings.float()
        pinned = whole.representatives > 0
        loss, stats = self._loss(embeddings, labels, batch.representatives, pinned=pinned)
        everything = self.ranks.whole(whole, embeddings)
        self.log.hold(Held.of(key, whole, loss, stats, magnitudes(everything)))
        if self.log.full:
            self._check()
        scaled = self.precision.scaled(loss / config.accumulate)
        self._cache.backward(scaled) if self._cache else scaled.backward()
        if self.ranks.count > 1:
            labels = whole.labels.to(self.device, non_blocking=True)
        self.violations.record(self.step, everything, labels, whole.representatives)

    def _statistics(self) -> AbstractContextManager[Any]:
        """Batch normalisation over all ranks, unless chunks have statistics of their own."""
        apart = self.config.chunk_size is not None or self.config.compile
        if self.ranks.count == 1 or apart:
            return contextlib.nullcontext()
        return SyncBatchNorm(self.ranks)

    def _check(self) -> None:
        """Read the numbers of the steps so far; NonFiniteLoss if one of them is bad."""
        found = self.log.read()
        if found is not None:
            held, value = found
            images = self.loader.again(held.key, held.batch)
            step, train = held.key[0] + 1, self.data.train
            raise diagnose(value, step, held.batch, images, held.largest.cpu(), train)

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

    def _plan(self) -> Iterator[Planned]:
        """The batches from this step on that do not depend on weights to come."""
        place = self.step, self.projection_began, self.projection.index
        return planned_batches(self.config, self.sampler, self.pinned, *place)

    @property
    def _logs_now(self) -> bool:
        return self.step % self.config.log_interval == 0 or self.step == self.config.steps

    def _record(self, rate: float) -> None:
        self.log.tell()
        if not self._logs_now:
            return
        config = self.config
        assert config.classes_per_batch is not None
        self.log.conclude(
            self.step,
            config.classes_per_batch * config.samples_per_class * config.accumulate,
            learning_rate=rate,
            projection=self.projection.index,
            seconds=self.seconds,
            waited=self.loader.waited,
        )

    def _evaluate_if_due(self, stop: Stop | None) -> None:
        config, entries = self.config, self.log.history["evaluation"]
        due = self.step % config.evaluation_interval == 0 or self.step == config.steps
        if not due or (entries and entries[-1]["step"] == self.step):
            return
        self.log.evaluated(self.step, self._evaluate(self.watched, stop))

    def _evaluate(
        self, split: Split, stop: Stop | None = None, ks: Sequence[int] | None = None
    ) -> dict[str, float]:
        self._check()
        config = self.config
        return evaluate(
            self.encoder,
            split,
            gallery=self.data.gallery if split is self.data.test else None,
            ks=self.data.ks if ks is None else ks,
            loss=config.loss,
            loss_options=config.loss_options,
            stop=stop,
            chunk_size=config.chunk_size,
            ranks=self.ranks,
        )

    def _finish(self, stop: Stop | None) -> dict[str, Any]:
        final = self.log.history["evaluation"][-1]
        watched = {name: value for name, value in final.items() if name != "step"}
        test = watched if self.data.validation is None else self._evaluate(self.data.test, stop)
        validation = None if self.data.validation is None else watched
        results = self.ranks.by_first(
            lambda: collect_results(
                self.config,
                self.data,
                self.log.history,
                test=test,
                validation=validation,
                raw_pixels=evaluate_pixels(self.data.test, self.data.gallery, ks=self.data.ks),
                seconds=self.seconds,
            )
        )
        self.save()
        if (out := self.out) is not None:
            self.ranks.by_first(lambda: write_results(out, results))
        return results

    def save(self) -> None:
        """Write a checkpoint, if there is a folder for it.

        Raises:
            NonFiniteLoss: that of a step before was; nothing is written.
        """
        self._check()
        self.log.tell()
        if self.out is not None:
            self.ranks.by_first(self._write)

    def _write(self) -> None:
        assert self.out is not None
        self.out.mkdir(parents=True, exist_ok=True)
        files.save_checkpoint(self.out, *saving.state_of(self))
