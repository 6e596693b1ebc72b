"""A default device that is another than the CPU changes neither data nor what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dmlap_kernels.data import ImageFiles, RandomCrop, load_data
from tests.data.photo_layouts import KINDS, MAKERS, photo, pil


def _source(kind: str, root: Path) -> str:
    if kind in KINDS:
        return f"{kind}:{MAKERS[kind](root)}"
    if kind == "folder":
        for c in range(8):
            for i in range(4):
                photo(root / f"class{c}" / f"{i}.png", 4 * c + i)
        return f"folder:{root}"
    if kind == "omniglot":
        for part in ("images_background", "images_evaluation"):
            for c in range(4):
                path = root / part / "A" / str(c) / "0.png"
                path.parent.mkdir(parents=True)
                pil.new("L", (105, 105), 30 * c).save(path)
        return f"omniglot:{root}"
    if kind == "archive":
        images = np.zeros((8, 28, 28), np.uint8)
        numbers = np.arange(8)
        np.savez(
            root / "omniglot28.npz",
            images=images,
            labels=numbers,
            alphabet=numbers // 4,
            split=numbers // 4,
        )
        return f"omniglot:{root}"
    pytest.importorskip({"digits": "sklearn", "glyphs": "matplotlib"}[kind])
    return kind


def _everything(source: str) -> list[Any]:
    data = load_data(source, image_size=16)
    rows = torch.tensor([1, 0], device="cpu")
    found: list[Any] = [data.train.fingerprint(), data.test.pixels(), data.train.batch(rows)]
    crop = RandomCrop()
    for augment in (data.augment, crop):
        random = torch.Generator("cpu").manual_seed(0)
        found.append(data.train.augmented(rows, augment, random))
    found += (
        [data.hold_out(0.5, 0).train.labels, data.hold_out_fold(1).train.labels]
        if (data.train.num_classes >= 8)
        else [data.train.labels]
    )
    if isinstance(data.train.images, ImageFiles):
        found.append(data.train.images[rows].read())
    return found


@pytest.mark.parametrize("kind", ["digits", "folder", "omniglot", "archive", *KINDS])
def test_data(kind: str, tmp_path: Path) -> None:
    source = _source(kind, tmp_path)
    want = _everything(source)
    with torch.device("meta"):
        got = _everything(source)
    for a, b in zip(got, want, strict=True):
        if isinstance(a, Tensor):
            assert a.device.type == "cpu" and torch.equal(a, b)
        else:
            assert a == b
