"""The images of a run, with the validation classes held out and what cannot be trained refused."""

from __future__ import annotations

import torch

from dmlap_kernels.data import Dataset, load_data
from dmlap_kernels.trainer.config import TrainConfig


def prepare_data(config: TrainConfig, data: Dataset | None) -> Dataset:
    """``data``, or what ``config`` names, with its validation classes held out.

    Raises:
        ValueError: a training class has a single image.
    """
    if data is None:
        data = load_data(config.data, image_size=config.image_size, seed=config.data_seed)
    if config.validation:
        data = data.hold_out(config.validation, config.data_seed)
    elif config.validation_fold is not None:
        data = data.hold_out_fold(config.validation_fold)
    counts = torch.bincount(data.train.labels)
    if int(counts.min()) < 2:
        name = data.train.class_names[int(counts.argmin())]
        raise ValueError(
            f"data must have at least two training images of every class, but class {name!r} has "
            f"{int(counts.min())}"
        )
    return data
