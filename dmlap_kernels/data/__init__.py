"""Data sources: `load_data` returns splits of labelled images, class-disjoint where they can be.

========================  ====================================================================
``glyphs``                characters rendered from the fonts that matplotlib ships
``digits``                scans of handwritten digits bundled with scikit-learn
``omniglot:PATH``         Omniglot as a ``.npz`` file or in its official folders
``folder:PATH``           a folder of image files for each class
``cub:PATH``              CUB-200-2011
``cars:PATH``             Cars196
``sop:PATH``              Stanford Online Products
``inshop:PATH``           In-shop Clothes Retrieval, with queries and gallery
========================  ====================================================================

Images of the last four, and those of a large folder, stay in their files until a batch asks for
them. Whatever the source, pictures are decoded as `dmlap_kernels.data.pictures` says.
"""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels.data.cars import load_cars
from dmlap_kernels.data.digits import load_digits
from dmlap_kernels.data.distortion import Distortion
from dmlap_kernels.data.files import DataError, DataWarning
from dmlap_kernels.data.folder import load_folder
from dmlap_kernels.data.glyphs import load_glyphs
from dmlap_kernels.data.in_shop import load_in_shop
from dmlap_kernels.data.layouts import LayoutError, source_hint
from dmlap_kernels.data.omniglot import load_omniglot
from dmlap_kernels.data.photo_sets import load_cub, load_sop
from dmlap_kernels.data.photos import DEFAULT_SIZE, ImageFiles, RandomCrop
from dmlap_kernels.data.splits import DEFAULT_KS, Augmentation, Dataset, Split

__all__ = [
    "DEFAULT_KS",
    "SOURCES",
    "Augmentation",
    "DataError",
    "DataWarning",
    "Dataset",
    "Distortion",
    "ImageFiles",
    "LayoutError",
    "RandomCrop",
    "Split",
    "load_cars",
    "load_cub",
    "load_data",
    "load_digits",
    "load_folder",
    "load_glyphs",
    "load_in_shop",
    "load_omniglot",
    "load_sop",
    "parse_source",
]

_PHOTO_SETS = {"cub": load_cub, "cars": load_cars, "sop": load_sop, "inshop": load_in_shop}

SOURCES = (
    "glyphs",
    "digits",
    "omniglot:PATH",
    "folder:PATH",
    *(f"{kind}:PATH" for kind in _PHOTO_SETS),
)


def parse_source(source: str) -> tuple[str, str]:
    """Kind and path (empty for the kinds that take none) of a data source.

    Raises:
        ValueError: unknown kind, a missing path, or a path where none is accepted.
    """
    kind, colon, path = source.partition(":")
    accepted = ", ".join(SOURCES)
    if kind not in {s.partition(":")[0] for s in SOURCES}:
        raise ValueError(f"data must be one of {accepted}, got {source!r}{source_hint(source)}")
    takes_path = f"{kind}:PATH" in SOURCES
    if takes_path and not path:
        raise ValueError(f"data {kind!r} needs a path, {kind}:PATH, got {source!r}")
    if not takes_path and colon:
        raise ValueError(f"data {kind!r} takes no path, got {source!r}")
    return kind, path


def load_data(
    source: str,
    *,
    image_size: int | None = None,
    seed: int = 0,
    drop_unreadable: bool = False,
) -> Dataset:
    """Load a data source.

    Args:
        source: one of `SOURCES`.
        image_size: side of the images, at least 8; default: the source's own (28 for glyphs and
            Omniglot, 8 for digits, at most 64 for folders, 224 for the photographs of the rest).
        seed: decides what is drawn at random: the split of the classes of ``glyphs`` and
            ``folder:PATH``, and the drawings of ``glyphs``.
        drop_unreadable: leave out files of ``folder:PATH`` that are no readable images.

    Raises:
        ValueError: unknown source, an image size below 8, or ``drop_unreadable`` of another source
            than ``folder:PATH``.
        FileNotFoundError: a file or folder is missing.
        DataError: a file is broken.
        MissingExtra: an optional dependency is not installed.

    Warns:
        DataWarning: files are left out, once for all of them.
    """
    kind, path = parse_source(source)
    if image_size is not None and image_size < 8:
        raise ValueError(f"image_size must be at least 8, got {image_size}")
    if drop_unreadable and kind != "folder":
        raise ValueError(
            f"drop_unreadable can only be given with data folder:PATH, got {source!r}: of a "
            "published data set every image is due"
        )
    if kind == "glyphs":
        return load_glyphs(image_size=image_size or 28, seed=seed)
    if kind == "folder":
        return load_folder(path, image_size=image_size, seed=seed, drop_unreadable=drop_unreadable)
    if kind in _PHOTO_SETS:
        return _PHOTO_SETS[kind](path, image_size or DEFAULT_SIZE)
    data = load_digits() if kind == "digits" else load_omniglot(path)
    if image_size is None or image_size == data.train.images.shape[-1]:
        return data
    return replace(
        data, train=_resized(data.train, image_size), test=_resized(data.test, image_size)
    )


def _resized(split: Split, size: int) -> Split:
    assert isinstance(split.images, Tensor)
    images = F.interpolate(split.images, (size, size), mode="bilinear", antialias=True)
    return Split(images, split.labels, split.class_names, split.groups)
