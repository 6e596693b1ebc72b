from __future__ import annotations

import torch

from dmlap_kernels.data import Distortion, load_digits


def _images() -> torch.Tensor:
    images = torch.zeros(64, 1, 28, 28)
    images[:, :, 8:20, 10:14] = 1
    return images


def test_nothing_changes_without_distortion() -> None:
    still = Distortion(rotation=0, shear=0, scale=0, shift=0, elastic=0)
    random = torch.Generator().manual_seed(0)
    torch.testing.assert_close(still(_images(), random), _images())
    small = still(_images(), random, 14)
    torch.testing.assert_close(small[:, :, 4:10, 5:7], torch.ones(64, 1, 6, 2))


def test_draws_come_from_the_generator() -> None:
    first, second, third = (
        Distortion()(_images(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert len(first.flatten(1).unique(dim=0)) == 64


def test_each_kind_of_distortion_moves_ink() -> None:
    off = {"rotation": 0, "shear": 0, "scale": 0, "shift": 0, "elastic": 0}
    for name, amount in (
        ("rotation", 20),
        ("shear", 0.3),
        ("scale", 0.3),
        ("shift", 0.1),
        ("elastic", 0.05),
    ):
        moved = Distortion(**{**off, name: amount})(_images(), torch.Generator().manual_seed(0))
        change = (moved - _images()).abs().flatten(1).sum(1)
        assert change.mean() > 3, name
        # Still the same shape, more or less.
        overlap = (moved * _images()).sum() / _images().sum()
        assert overlap > 0.5, name


def test_the_augmentation_of_a_split_keeps_classes_apart() -> None:
    data = load_digits()
    images = data.train.batch(torch.arange(200))
    changed = data.augment(images, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    distances = torch.cdist(changed.flatten(1), images.flatten(1))
    found = data.train.labels[distances.argmin(1)]
    assert (found == data.train.labels[:200]).float().mean() > 0.9
