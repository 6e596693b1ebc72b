"""Images per second of the trainer's loader, beside the usual one of photographs in folders.

    DMLAP_PHOTOS=DIR python -m pytest benchmarks/bench_loading.py --benchmark-only

DIR holds a folder of photographs for each class. Both loaders cut random parts out of the same
photographs and scale them to 128 pixels, in batches of 96, and take turns. The usual one is
torchvision's `ImageFolder` with its v2 transforms; where torchvision does not import, the same
in Pillow. A second test trains on them and tells what share of the time steps waited.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from benchmarks.measure import record, recorded_clock
from dmlap_kernels.data import Dataset as Splits
from dmlap_kernels.data import ImageFiles, RandomCrop, Split
from dmlap_kernels.trainer import ClassBatchSampler, TrainConfig, Trainer
from dmlap_kernels.trainer.loading import BatchImages, BatchLoader

SIDE = 128
CLASSES, SAMPLES = 24, 4
BATCH = CLASSES * SAMPLES
WARM_UP, BATCHES = 4, 8
ROUNDS = 3
# A batch that a step of the small encoder is short for.
FEW_CLASSES = 8


@pytest.fixture(scope="module")
def photos() -> Path:
    folder = os.environ.get("DMLAP_PHOTOS")
    if not folder:
        pytest.skip("set DMLAP_PHOTOS to a folder with a folder of photographs for each class")
    return Path(folder)


def in_files(folder: Path) -> Split:
    """The photographs, unread: `load_folder` would take as few as these into memory."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [[path.relative_to(folder).as_posix() for path in sorted(c.iterdir())] for c in classes]
    names = [name for own in files for name in own]
    counts = torch.tensor([len(own) for own in files])
    return Split(
        ImageFiles.found(folder, names, SIDE, "a benchmark"),
        torch.arange(len(classes)).repeat_interleave(counts),
        tuple(c.name for c in classes),
    )


def ours(split: Split, workers: int) -> Iterator[Any]:
    sampler = ClassBatchSampler(split.labels, CLASSES, SAMPLES, seed=0)
    images = BatchImages(split, RandomCrop(), seed=0)
    loader = BatchLoader(images, workers, torch.device("cpu"))
    for step in range(1 << 40):
        first = step

        def plan() -> Iterator[Any]:
            return (((s, 0), sampler.batch(s)) for s in range(first, 1 << 40))  # noqa: B023

        yield loader.take((step, 0), plan)


class PlainPhotos(Dataset[Any]):
    """What one writes by hand: open, crop, scale, mirror, convert."""

    def __init__(self, split: Split) -> None:
        assert isinstance(split.images, ImageFiles)
        self.paths = [split.images.root / name for name in split.images.names]
        self.labels, self.crop = split.labels, RandomCrop()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        image = Image.open(self.paths[row]).convert("RGB")
        draw = np.random.rand(41).tolist()
        box = self.crop.box(*image.size, draw)
        image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)
        if self.crop.mirrors(draw):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.float().div_(255), int(self.labels[row])


def usual(folder: Path, split: Split, workers: int) -> tuple[str, Iterator[Any]]:
    """What it is, and its batches."""
    data: Any
    try:
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2
    except (ImportError, RuntimeError, AttributeError):  # or made for another torch
        name, data = "pillow", PlainPhotos(split)
    else:
        steps = [v2.RandomResizedCrop(SIDE, scale=(0.16, 1)), v2.RandomHorizontalFlip()]
        convert = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        name, data = "torchvision", ImageFolder(str(folder), v2.Compose([*steps, *convert]))
    rows = WeightedRandomSampler([1.0] * len(data), BATCH * (WARM_UP + BATCHES * ROUNDS))
    return name, iter(DataLoader(data, BATCH, sampler=rows, num_workers=workers))


def timed(batches: Iterator[Any]) -> float:
    """Seconds a batch."""
    began = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    return (time.perf_counter() - began) / BATCHES


@pytest.mark.benchmark(timer=recorded_clock)
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_images_per_second(workers: int, photos: Path, benchmark: Any) -> None:
    split = in_files(photos)
    name, theirs = usual(photos, split, workers)
    loaders = {"ours": ours(split, workers), name: theirs}
    for batches in loaders.values():
        for _ in range(WARM_UP):
            next(batches)
    if benchmark.disabled:
        return
    times: dict[str, list[float]] = {loader: [] for loader in loaders}
    for _ in range(ROUNDS):
        for loader, batches in loaders.items():
            times[loader].append(timed(batches))
    speeds = {f"times_{loader}_images_s": BATCH / min(found) for loader, found in times.items()}
    record(benchmark, "loading", times["ours"], op="batch", size=f"{workers} workers", **speeds)


@pytest.mark.benchmark(timer=recorded_clock)
@pytest.mark.parametrize("workers", [0, 2])
def test_steps_do_not_wait(workers: int, photos: Path, benchmark: Any) -> None:
    split = in_files(photos)
    middle = split.num_classes // 2
    halves = torch.arange(split.num_classes).tensor_split([middle])
    train, test = map(split.select, halves)
    config = TrainConfig(steps=BATCHES + WARM_UP, classes_per_batch=FEW_CLASSES, classes="uniform")
    trainer = Trainer(config, Splits("photos", train, test, augment=RandomCrop()), workers=workers)
    step: Callable[[], None] = trainer.train_step
    for _ in range(WARM_UP):
        step()
    seconds, waited = trainer.seconds, trainer.loader.waited
    times = []
    for _ in range(BATCHES):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    share = (trainer.loader.waited - waited) / (trainer.seconds - seconds)
    trainer.loader.close()
    if not benchmark.disabled:
        size = f"{workers} workers"
        record(benchmark, "loading", times, op="step", size=size, times_waiting=share)
