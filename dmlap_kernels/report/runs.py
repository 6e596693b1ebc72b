"""What a report reads of a run: its metrics, and its embeddings of the test classes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels.data import Split, load_data
from dmlap_kernels.evaluation.ranges import LARGEST
from dmlap_kernels.trainer.checkpoint import CheckpointError, load_checkpoint, of_prefix
from dmlap_kernels.trainer.config import TrainConfig
from dmlap_kernels.trainer.embedding import embed, search_options
from dmlap_kernels.trainer.inputs import prepare_data
from dmlap_kernels.trainer.model import load_encoder, resolve_device
from dmlap_kernels.trainer.results import METRICS_FILE


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where it is.
        name: what the page calls it; different for all runs of a page.
        results: the content of ``metrics.json``.
        fingerprint: that of the training images, from the checkpoint.
        violations: `ClassViolations.counts` of the run; None: of an older version.
        window: steps of a window of them.
    """

    folder: Path
    name: str
    results: dict[str, Any]
    fingerprint: str
    violations: Tensor | None = None
    window: int = 1

    @property
    def config(self) -> dict[str, Any]:
        return self.results["config"]

    @property
    def class_names(self) -> Sequence[str]:
        """Of the training classes; empty where the run's version did not write them."""
        return self.results.get("training_classes", ())


@dataclass(frozen=True)
class Embedded:
    """Test images of a run and their embeddings (N, D), searched with ``options``.

    Attributes:
        gallery: what the images are looked up in, with its embeddings (M, D); None: in the other
            test images.
        seen: the test classes that were trained on as well.
    """

    split: Split
    embeddings: Tensor
    options: dict[str, Any]
    gallery: tuple[Split, Tensor] | None = None
    seen: tuple[str, ...] = ()

    def comparable(self) -> Tensor:
        """Embeddings whose Euclidean distances order as those that the run searches by."""
        if self.options["distance"] == "cosine" or self.options.get("normalize"):
            return F.normalize(self.embeddings.float(), dim=1)
        return self.embeddings.float()


class NoPictures(Exception):
    """The test images of a run or their embeddings cannot be had; the message says why."""


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs in ``folders``.

    Raises:
        CheckpointError: a folder is not that of a run.
        ValueError: a run is not finished, or a folder is given twice.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise ValueError("a report needs the folder of at least one run, got none")
    resolved = [path.resolve() for path in paths]
    for i, path in enumerate(resolved):
        if path in resolved[:i]:
            raise ValueError(f"{paths[i]} is given twice")
    short = [path.name for path in resolved]
    names = [
        name if short.count(name) == 1 else str(path)
        for name, path in zip(short, resolved, strict=True)
    ]
    return [_read_run(path, name) for path, name in zip(paths, names, strict=True)]


def _read_run(folder: Path, name: str) -> Run:
    tensors, state = load_checkpoint(folder)
    path = folder / METRICS_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {METRICS_FILE}: its run is not finished; continue it with: "
            f"dmlap train --resume {folder}"
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        _check(results)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold the metrics of a run: {type(error).__name__}: {error}"
        ) from error
    counted = of_prefix("violations", tensors)
    window = int(counted["length"]) if counted else 1
    return Run(folder, name, results, state.get("data", ""), counted.get("counts"), window)


def _check(results: dict[str, Any]) -> None:
    """Touch what the page reads, so that a broken file is refused before anything is drawn."""
    TrainConfig.from_dict(results["config"])
    for metrics in (results["test"], results["raw_pixels"]):
        float(metrics["recall@1"])
    if not math.isfinite(results["seconds_per_step"]):
        raise ValueError("seconds_per_step is not finite")
    for entry in results["history"]["train"]:
        float(entry["step"]), float(entry["loss"]), float(entry["violated"])
    for entry in results["history"]["evaluation"]:
        float(entry["step"]), float(entry["recall@1"])
    dict(results["data"]), dict(results["versions"])


def embed_test(run: Run) -> Embedded:
    """Load the data of a run again and embed its test images.

    Raises:
        NoPictures: the data are gone or not those of the run, or the encoder was its own.
        MissingExtra: an optional dependency of the data is not installed.
    """
    config = TrainConfig.from_dict(run.config)
    try:
        data = load_data(
            config.data,
            image_size=config.image_size,
            seed=config.data_seed,
            drop_unreadable=config.drop_unreadable,
        )
        data = prepare_data(config, data)
    except (OSError, ValueError) as error:
        raise NoPictures(f"its data cannot be loaded again ({error})") from error
    if data.train.fingerprint() != run.fingerprint:
        raise NoPictures(f"data {config.data!r} are no longer those that it was trained on")
    try:
        encoder = load_encoder(run.folder).to(resolve_device("auto"))
    except CheckpointError as error:
        raise NoPictures("its encoder is not the built-in one") from error
    options = search_options(config.loss, config.loss_options)
    gallery = None if data.gallery is None else (data.gallery, embed(encoder, data.gallery).cpu())
    embeddings = embed(encoder, data.test).cpu()
    for each in (embeddings, *(() if gallery is None else gallery[1:])):
        if not bool(each.abs().amax() <= LARGEST):  # of NaN, too
            raise NoPictures("its embeddings are not finite, or too large to be compared")
    return Embedded(data.test, embeddings, options, gallery, data.seen_classes)
