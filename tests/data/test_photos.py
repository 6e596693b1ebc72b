"""The customary crops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmlap_kernels.data import Augmentation, Distortion, ImageFiles, RandomCrop, Split, photos
from dmlap_kernels.data.part import Part
from dmlap_kernels.data.pictures import open_image

pil = pytest.importorskip("PIL.Image")


def _ramp(tmp_path: Path, width: int = 200, height: int = 100) -> ImageFiles:
    """One image whose red grows to the right and whose green grows downwards."""
    x, y = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    array = np.stack((255 * x, 255 * y, 0 * x), 2).astype(np.uint8)
    pil.fromarray(array).save(tmp_path / "ramp.png")
    return ImageFiles.found(tmp_path, ["ramp.png"], 56, "a test")


def _random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_test_crop_is_the_centre(tmp_path: Path) -> None:
    red, green, _ = _ramp(tmp_path).read()[0] / 255
    # 100 rows are scaled to 64, of which 56 are seen: 1/16 to 15/16, and as much of the width.
    assert green[0].mean() == pytest.approx(1 / 16, abs=0.02)
    assert green[-1].mean() == pytest.approx(15 / 16, abs=0.02)
    assert red[:, 0].mean() == pytest.approx(0.5 - 7 / 32, abs=0.02)
    assert red[:, -1].mean() == pytest.approx(0.5 + 7 / 32, abs=0.02)


def test_random_crops_cover_what_they_should() -> None:
    crop = RandomCrop()
    areas, ratios, flips = [], [], []
    for draw in crop.draw(2000, _random()):
        left, top, right, bottom = crop.box(200, 150, draw)
        assert 0 <= left < right <= 200 + 1e-6 and 0 <= top < bottom <= 150 + 1e-6
        areas.append((right - left) * (bottom - top) / 30000)
        ratios.append((right - left) / (bottom - top))
        flips.append(crop.mirrors(draw))
    assert 0.16 <= min(areas) < 0.17 and 0.95 < max(areas) <= 1
    assert 3 / 4 - 1e-6 <= min(ratios) < 0.77 and 1.3 < max(ratios) <= 4 / 3 + 1e-6
    assert np.mean(flips) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(("width", "height"), [(1000, 20), (20, 1000)])
def test_long_images_give_their_centre(width: int, height: int) -> None:
    crop = RandomCrop(area=(0.9, 1.0))
    left, top, right, bottom = crop.box(width, height, crop.draw(1, _random())[0])
    assert (left + right, top + bottom) == (width, height)
    assert min(right - left, bottom - top) == 20
    assert max(right - left, bottom - top) == pytest.approx(20 * 4 / 3)


def test_random_crops_depend_on_the_generator_alone(tmp_path: Path) -> None:
    split = Split(_ramp(tmp_path)[torch.zeros(4).long()], torch.tensor([0, 0, 1, 1]), ("a", "b"))
    rows, crop = torch.arange(4), RandomCrop()
    first = split.augmented(rows, crop, _random(3))
    assert torch.equal(first, split.augmented(rows, crop, _random(3)))
    assert not torch.equal(first, split.augmented(rows, crop, _random(4)))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(split.batch(rows)[0], split.batch(rows)[1])


def test_crops_are_cut_out_of_the_whole_photograph(tmp_path: Path) -> None:
    """More is seen than in the centre crop, which leaves out the left and right quarter."""
    files = _ramp(tmp_path)[torch.zeros(64).long()]
    split = Split(files, torch.arange(64) // 32, ("a", "b"))
    red = split.augmented(torch.arange(64), RandomCrop(), _random())[:, 0]
    assert red.amin() < 0.1 and red.amax() > 0.9
    mirrored = red[:, 0, 0] > red[:, 0, -1]
    assert 16 < mirrored.sum() < 48


def test_random_crops_of_tensors() -> None:
    images = torch.rand(6, 1, 20, 30, generator=_random())
    crop = RandomCrop()
    first = crop(images, _random(1))
    assert first.shape == images.shape
    assert torch.equal(first, crop(images, _random(1)))
    assert torch.equal(
        RandomCrop(area=(1, 1), ratio=1.5, mirror=1).__call__(images[:0], _random()), images[:0]
    )
    flipped = RandomCrop(area=(1, 1), ratio=1, mirror=1)(images[..., :20], _random())
    assert torch.allclose(flipped, images[..., :20].flip(3))


def test_an_empty_batch(tmp_path: Path) -> None:
    files = _ramp(tmp_path)[torch.zeros(0).long()]
    assert files.read().shape == (0, 3, 56, 56)
    assert files.read(RandomCrop(), _random()).shape == (0, 3, 56, 56)


def test_bad_crops_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="area must be two shares"):
        RandomCrop(area=(0.5, 0.2))
    with pytest.raises(ValueError, match="ratio must be at least 1"):
        RandomCrop(ratio=0.5)
    with pytest.raises(ValueError, match="generator must be given"):
        _ramp(tmp_path).read(RandomCrop())


@pytest.mark.parametrize("augment", [RandomCrop(), Distortion()], ids=["crop", "distortion"])
@pytest.mark.parametrize("in_files", [False, True])
def test_a_part_of_a_batch_is_drawn_as_in_the_whole(
    augment: Augmentation, in_files: bool, tmp_path: Path
) -> None:
    files = _ramp(tmp_path)[torch.zeros(6).long()]
    images = files if in_files else files.read()
    split = Split(images, torch.arange(6) // 3, ("a", "b"))
    whole = split.distorted(torch.arange(6), augment, _random())
    rows = torch.tensor([4, 1, 5])
    found = split.distorted(rows, augment, _random(), part=Part(6, rows))
    assert torch.equal(found, whole[rows])
    assert found.dtype == (torch.uint8 if in_files and augment == RandomCrop() else torch.float32)


@pytest.mark.parametrize("turned", [False, True])
def test_photographs_are_decoded_as_large_as_their_part_needs(
    turned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), np.uint8)
    exif = pil.Exif()
    exif[0x0112] = 6 if turned else 1
    pil.fromarray(noise).save(tmp_path / "large.jpg", exif=exif)
    decoded = []

    def noted(*arguments: Any, **options: Any) -> Any:
        image = open_image(*arguments, **options)
        decoded.append(image.size)
        return image

    monkeypatch.setattr(photos, "open_image", noted)
    files = ImageFiles.found(tmp_path, ["large.jpg"], 50, "a test")
    files.read()
    # 900 rows, of which 7/8 are seen: an eighth of them would be fewer than twice 50.
    assert decoded == [(225, 300) if turned else (300, 225)]
    for share, reduction in ((1.0, 8), (0.5, 4), (0.05, 2), (0.02, 1)):
        crop = RandomCrop(area=(share, share), ratio=1.0)
        image = files.read(crop, _random())
        width, height = decoded[-1]
        assert (max(width, height), min(width, height)) == (1200 // reduction, -(-900 // reduction))
        assert image.shape == (1, 3, 50, 50)
