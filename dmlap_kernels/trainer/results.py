"""What a finished run leaves behind: ``metrics.json`` and ``curves.png``."""

from __future__ import annotations

import json
import platform
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmlap_kernels import __version__
from dmlap_kernels.data import Dataset
from dmlap_kernels.trainer.checkpoint import write_atomically
from dmlap_kernels.trainer.config import TrainConfig
from dmlap_kernels.trainer.curves import plot_curves

METRICS_FILE = "metrics.json"
CURVES_FILE = "curves.png"


def collect_results(
    config: TrainConfig,
    data: Dataset,
    history: dict[str, list[dict[str, float]]],
    *,
    test: dict[str, float],
    validation: dict[str, float] | None,
    raw_pixels: dict[str, float],
    seconds: float,
) -> dict[str, Any]:
    """The content of ``metrics.json``.

    ``recall@1`` and ``map@r`` are those of the test classes, ``raw_pixels`` what the pixels
    themselves reach on the same images; ``seconds`` were spent in training steps.
    """
    results: dict[str, Any] = {
        "recall@1": test["recall@1"],
        "map@r": test["map@r"],
        "test": test,
        "raw_pixels": raw_pixels,
        "seconds": seconds,
        "seconds_per_step": seconds / config.steps,
        "config": config.to_dict(),
        "data": _describe(data),
        "training_classes": list(map(str, data.train.class_names)),
        "versions": _versions(),
        "history": history,
    }
    if validation is not None:
        results["validation"] = validation
    return results


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write ``metrics.json`` and ``curves.png`` into ``folder``, the metrics last."""
    try:
        plot_curves(results, folder / CURVES_FILE)
    # The numbers are not to be lost for want of a picture.
    except Exception as error:
        (folder / CURVES_FILE).unlink(missing_ok=True)
        warnings.warn(f"{folder / CURVES_FILE} could not be drawn: {error}", stacklevel=2)
    text = json.dumps(results, indent=2, allow_nan=False) + "\n"
    write_atomically(folder / METRICS_FILE, text.encode())


def _describe(data: Dataset) -> dict[str, Any]:
    splits = {
        "train": data.train,
        "validation": data.validation,
        "test": data.test,
        "gallery": data.gallery,
    }
    described: dict[str, dict[str, Any]] = {
        name: {"images": len(split), "classes": split.num_classes}
        for name, split in splits.items()
        if split is not None
    }
    described["test"]["seen_in_training"] = list(data.seen_classes)
    return described


def _versions() -> dict[str, Any]:
    return {
        "dmlap_kernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }
