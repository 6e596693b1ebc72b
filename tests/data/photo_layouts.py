"""Miniature folders in the official layouts of the photograph collections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pil = pytest.importorskip("PIL.Image")
KINDS = ("cub", "cars", "sop", "inshop")


def photo(path: Path, shade: int, size: tuple[int, int] = (32, 24)) -> None:
    """A picture of noise around a class's shade."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(shade).integers(0, 40, (size[1], size[0], 3))
    color = np.array([shade * 23 % 200, shade * 71 % 200, shade * 37 % 200])
    pil.fromarray((color + noise).astype(np.uint8)).save(path)


def make_cub(root: Path, classes: int = 8, images: int = 4) -> Path:
    names = [
        (c, f"{c:03}.Bird_{c}/Bird_{i}.jpg") for c in range(1, classes + 1) for i in range(images)
    ]
    for c, name in names:
        photo(root / "images" / name, c)
    _write(root / "images.txt", [f"{n} {name}" for n, (_, name) in enumerate(names, 1)])
    _write(root / "image_class_labels.txt", [f"{n} {c}" for n, (c, _) in enumerate(names, 1)])
    return root


def make_cars(root: Path, classes: int = 8, images: int = 4) -> Path:
    matlab = pytest.importorskip("scipy.io")
    rows = [(c, f"car_ims/{c:03}{i:03}.jpg") for c in range(1, classes + 1) for i in range(images)]
    annotations = np.zeros((1, len(rows)), [("relative_im_path", object), ("class", object)])
    for n, (c, name) in enumerate(rows):
        photo(root / name, c)
        annotations[0, n] = (name, np.uint8(c))
    titles = np.array([[f"Car {c}" for c in range(1, classes + 1)]], object)
    matlab.savemat(root / "cars_annos.mat", {"annotations": annotations, "class_names": titles})
    return root


def make_cars_today(
    root: Path, classes: int = 8, images: int = 4, lists: str = "devkit", nested: bool = False
) -> Path:
    """The same photographs in two folders; every class lies in both."""
    matlab = pytest.importorskip("scipy.io")
    (root / lists).mkdir(parents=True, exist_ok=True)
    for part, name in (("train", "cars_train_annos"), ("test", "cars_test_annos_withlabels")):
        folder = root / f"cars_{part}" / (f"cars_{part}" if nested else "")
        rows = [(c, f"{c:03}{i:02}.jpg") for c in range(classes, 0, -1) for i in range(images // 2)]
        fields = [("bbox_x1", object), ("class", object), ("fname", object)]
        annotations = np.zeros((1, len(rows)), fields)
        for n, (c, image) in enumerate(rows):
            photo(folder / image, c)
            annotations[0, n] = (np.uint8(7), np.uint8(c), image)
        beside = root if part == "test" else root / lists
        matlab.savemat(beside / f"{name}.mat", {"annotations": annotations})
    titles = np.array([[f"Car {c}" for c in range(1, classes + 1)]], object)
    matlab.savemat(root / lists / "cars_meta.mat", {"class_names": titles})
    return root


def make_sop(root: Path, classes: int = 8, images: int = 4) -> Path:
    number = 0
    for part, first in (("train", 1), ("test", classes // 2 + 1)):
        lines = ["image_id class_id super_class_id path"]
        for c in range(first, first + classes // 2):
            for i in range(images):
                number += 1
                photo(root / f"bicycle_final/{c}_{i}.JPG", c)
                lines.append(f"{number} {c} 1 bicycle_final/{c}_{i}.JPG")
        _write(root / f"Ebay_{part}.txt", lines)
    return root


def make_inshop(root: Path, classes: int = 8, images: int = 4) -> Path:
    lines = []
    for c in range(1, classes + 1):
        for i in range(images):
            part = "train" if c <= classes // 2 else ("query", "gallery")[i % 2]
            name = f"img/WOMEN/Dresses/id_{c:08}/{i:02}_1_front.jpg"
            photo(root / "Img" / name, c)
            lines.append(f"{name}   id_{c:08} {part}")
    header = [str(len(lines)), "image_name item_id evaluation_status"]
    _write(root / "Eval" / "list_eval_partition.txt", header + lines)
    return root


MAKERS = {"cub": make_cub, "cars": make_cars, "sop": make_sop, "inshop": make_inshop}
LISTS = {
    "cub": "images.txt",
    "cars": "cars_annos.mat",
    "sop": "Ebay_train.txt",
    "inshop": "Eval/list_eval_partition.txt",
}


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
