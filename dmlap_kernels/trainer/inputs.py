"""The images of a run, with the validation classes held out and what cannot be trained refused."""

from __future__ import annotations

from dataclasses import replace

import torch

from dmlap_kernels.data import Dataset, Split, load_data
from dmlap_kernels.plurals import counted
from dmlap_kernels.trainer.batches import named_classes, small_classes
from dmlap_kernels.trainer.config import TrainConfig


def prepare_data(config: TrainConfig, data: Dataset | None) -> Dataset:
    """``data``, or what ``config`` names, with its validation classes held out.

    Raises:
        ValueError: training classes have a single image, or there is nothing to judge by: no
            image of the test or the validation classes has another one to be found, or patience
            has no validation classes to watch.
    """
    if data is None:
        data = load_data(
            config.data,
            image_size=config.image_size,
            seed=config.data_seed,
            drop_unreadable=config.drop_unreadable,
        )
    if config.drop_small_classes:
        data = _without_small_classes(data)
    if config.validation:
        data = data.hold_out(config.validation, config.data_seed)
    elif config.validation_fold is not None:
        data = data.hold_out_fold(config.validation_fold)
    if config.patience is not None and data.validation is None:
        raise ValueError(
            "patience needs validation classes to watch, because nothing may be chosen on the test "
            "classes: got data without a validation split, validation=0 and no validation_fold"
        )
    if few := small_classes(data.train.labels):
        raise ValueError(
            "data must have at least two training images of every class, but "
            f"{named_classes(few, data.train.class_names)}; they can be left out with "
            "drop_small_classes (--drop-small-classes)"
        )
    if data.train.num_classes < 2:
        raise ValueError(
            f"data must have at least two training classes, got {data.train.num_classes}"
        )
    for name, split in (("test", data.test), ("validation", data.validation)):
        if split is not None:
            _refuse_without_matches(name, split, data.gallery if name == "test" else None)
    return data


def _without_small_classes(data: Dataset) -> Dataset:
    few = small_classes(data.train.labels)
    if not few:
        return data
    kept = [label for label in range(data.train.num_classes) if label not in few]
    if not kept:
        raise ValueError(
            "data must have at least two images of some training class, but all "
            f"{data.train.num_classes} have fewer"
        )
    return replace(data, train=data.train.select(torch.tensor(kept, device="cpu")))


def _refuse_without_matches(name: str, split: Split, gallery: Split | None) -> None:
    if gallery is not None:
        matched = bool(torch.isin(split.labels, gallery.labels).any())
    else:
        matched = len(small_classes(split.labels)) < split.num_classes
    if not matched:
        where = "in the gallery" if gallery is not None else "of its class"
        raise ValueError(
            f"data must have {name} images with another one {where} to be found, but none of the "
            f"{counted(len(split), 'image')} of {counted(split.num_classes, f'{name} class')} "
            "has one"
        )
