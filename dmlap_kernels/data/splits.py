"""What every data source returns: splits of labelled images."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels.data.distortion import Distortion
from dmlap_kernels.data.part import Part
from dmlap_kernels.data.photos import ImageFiles, RandomCrop
from dmlap_kernels.plurals import counted

Augmentation = Callable[[Tensor, torch.Generator], Tensor]

# Raw pixels of images in files: decoded by this many at a time, scaled to this side.
_PIXEL_ROWS = 512
_PIXEL_SIDE = 16

# Parts that the training classes are cut into for validation.
FOLDS = 4

# K of Recall@K where a data set has no custom of its own.
DEFAULT_KS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Split:
    """Labelled images of one split.

    Attributes:
        images: (N, channels, height, width) uint8 (0 to 255) or floating point (0 to 1), or
            `ImageFiles` of that shape, which are decoded whenever a batch is asked for.
        labels: (N,) int64, 0 to C - 1, every class present.
        class_names: C names, one a label.
        groups: (C,) int64 or None; classes of one group (an alphabet, say) are related and are
            held out together.
        ids: N names of the images, or None: those of `ImageFiles`, else their numbers.
    """

    images: Tensor | ImageFiles
    labels: Tensor
    class_names: tuple[str, ...]
    groups: Tensor | None = None
    ids: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.images, Tensor):
            _check_images(self.images)
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be int64 of shape ({len(self.images)},), got "
                f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )
        present = torch.unique(self.labels)
        if not torch.equal(present, torch.arange(len(self.class_names), device="cpu")):
            raise ValueError(
                f"labels must be 0 to {len(self.class_names) - 1} with every class present, got "
                f"{counted(len(present), 'class')}"
            )
        if self.groups is not None and len(self.groups) != len(self.class_names):
            raise ValueError(
                f"groups must hold one number for each of {len(self.class_names)} classes, got "
                f"{len(self.groups)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def batch(self, indices: Tensor) -> Tensor:
        """Images at ``indices`` (B,) as float32 (B, channels, height, width), 0 to 1."""
        return to_float(self.stored(indices))

    def stored(self, indices: Tensor, *, threads: int | None = None) -> Tensor:
        """Images at ``indices`` as they are kept, or as uint8 from their files.

        ``threads`` is that of `ImageFiles.read`.
        """
        images = self.images[indices]
        return images.read(threads=threads) if isinstance(images, ImageFiles) else images

    def augmented(
        self, indices: Tensor, augment: Augmentation, generator: torch.Generator
    ) -> Tensor:
        """Distorted copies of the images at ``indices``, as from `batch`.

        A `RandomCrop` of images in files is cut out of the photographs before they are scaled.
        """
        return to_float(self.distorted(indices, augment, generator))

    def distorted(
        self,
        indices: Tensor,
        augment: Augmentation,
        generator: torch.Generator,
        *,
        part: Part | None = None,
        threads: int | None = None,
    ) -> Tensor:
        """`augmented`, but uint8 where crops come from files.

        Args:
            indices: (B,) int64.
            augment: a `Distortion`, a `RandomCrop`, or a function like them.
            generator: source of all randomness.
            part: what these images are of a larger batch, whose draws are theirs; for a
                `Distortion` or a `RandomCrop`.
            threads: that of `ImageFiles.read`.
        """
        images = self.images[indices]
        if isinstance(images, ImageFiles) and isinstance(augment, RandomCrop):
            return images.read(augment, generator, part=part, threads=threads)
        plain = to_float(images.read(threads=threads) if isinstance(images, ImageFiles) else images)
        if part is not None and isinstance(augment, (Distortion, RandomCrop)):
            return augment(plain, generator, part=part)
        return augment(plain, generator)

    def pixels(self) -> Tensor:
        """All images flattened to float32 (N, channels * height * width): the raw baseline.

        Images in files are scaled to at most 16 x 16, so that all of them fit into memory.
        """
        rows = torch.arange(len(self), device="cpu")
        if isinstance(self.images, Tensor):
            return self.batch(rows).flatten(1)
        side = min(_PIXEL_SIDE, self.images.side)
        parts = [
            F.interpolate(self.batch(part), (side, side), mode="bilinear", antialias=True)
            for part in rows.split(_PIXEL_ROWS)
        ]
        return torch.cat(parts).flatten(1)

    def fingerprint(self) -> str:
        """A digest of images and labels, to tell whether two runs saw the same data.

        Of images in files, the names and the numbers of bytes.
        """
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.images, self.labels):
            if isinstance(part, ImageFiles):
                digest.update(f"{part.shape} {part.names} {part.sizes}".encode())
                continue
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()

    def select(self, classes: Tensor) -> Split:
        """The split of the given classes alone, relabelled 0, 1, ... in ascending order."""
        classes = torch.unique(classes)
        position = torch.full((self.num_classes,), -1, device="cpu")
        position[classes] = torch.arange(len(classes), device="cpu")
        labels = position[self.labels]
        rows = labels >= 0
        return Split(
            self.images[rows],
            labels[rows],
            tuple(self.class_names[c] for c in classes.tolist()),
            None if self.groups is None else self.groups[classes],
            None if self.ids is None else tuple(itertools.compress(self.ids, rows.tolist())),
        )


@dataclass(frozen=True)
class Dataset:
    """Splits, class-disjoint but where a folder says otherwise, and the augmentation for them.

    Attributes:
        name: the kind of data, for example ``"glyphs"``.
        train, test: the splits.
        validation: classes held out of training, or a validation split that the data came with;
            else None.
        gallery: what the images of ``test`` are looked up in, with the same classes; None: in the
            other images of ``test``.
        augment: callable on float images (B, channels, height, width) and a `torch.Generator`
            that returns distorted copies, or None.
        ks: values of K at which the literature on the data reports Recall@K, ascending from 1.
        division: how training and test classes were told apart, in words, for people; empty: as
            those who published the data say.
    """

    name: str
    train: Split
    test: Split
    validation: Split | None = None
    augment: Augmentation | None = None
    gallery: Split | None = None
    ks: tuple[int, ...] = DEFAULT_KS
    division: str = ""

    def __post_init__(self) -> None:
        if self.gallery is not None and self.gallery.class_names != self.test.class_names:
            raise ValueError("gallery must have the classes of test, in the same order")
        if self.ks[:1] != (1,) or any(a >= b for a, b in itertools.pairwise(self.ks)):
            raise ValueError(f"ks must be ascending from 1, got {self.ks!r}")

    @property
    def seen_classes(self) -> tuple[str, ...]:
        """The classes of ``test`` that are trained on as well: those with the name of one."""
        trained = set(self.train.class_names)
        return tuple(name for name in self.test.class_names if name in trained)

    def hold_out(self, share: float, seed: int) -> Dataset:
        """Move about ``share`` of the training classes to ``validation``, whole groups at a time.

        Args:
            share: between 0 and 1, both excluded.
            seed: chooses the groups.

        Raises:
            ValueError: the share is out of range, or leaves fewer than two classes on one side, or
                the data came with a validation split.
        """
        self._check_not_held_out(f"validation={share}")
        if not 0 < share < 1:
            raise ValueError(f"validation must be between 0 and 1, both excluded, got {share}")
        train = self.train
        groups = (
            torch.arange(train.num_classes, device="cpu") if train.groups is None else train.groups
        )
        names, sizes = torch.unique(groups, return_counts=True)
        order = torch.randperm(
            len(names),
            generator=torch.Generator(device="cpu").manual_seed(seed),
            device="cpu",
        )
        sizes_before = sizes[order].cumsum(0) - sizes[order]
        held = names[order][sizes_before < share * train.num_classes]
        mask = torch.isin(groups, held)
        if mask.sum() < 2 or (~mask).sum() < 2:
            raise ValueError(
                f"validation={share} of {counted(train.num_classes, 'training class')} leaves "
                "fewer than two classes on one side"
            )
        return self._held_out(mask)

    def hold_out_fold(self, fold: int) -> Dataset:
        """Move a quarter of the training classes to ``validation``: a run of them in their order.

        As in "A Metric Learning Reality Check" (arXiv 2003.08505, section 4.1), whose four folds
        take turns.

        Args:
            fold: which quarter, 0 to 3.

        Raises:
            ValueError: no such fold, or one side is left with fewer than two classes, or the data
                came with a validation split.
        """
        self._check_not_held_out(f"validation_fold={fold}")
        if not 0 <= fold < FOLDS:
            raise ValueError(f"validation_fold must be from 0 to {FOLDS - 1}, got {fold}")
        classes = torch.arange(self.train.num_classes, device="cpu")
        mask = torch.isin(classes, classes.tensor_split(FOLDS)[fold])
        if mask.sum() < 2 or (~mask).sum() < 2:
            raise ValueError(
                f"validation_fold={fold} of {counted(len(classes), 'training class')} leaves fewer "
                "than two classes on one side"
            )
        return self._held_out(mask)

    def _check_not_held_out(self, option: str) -> None:
        if self.validation is not None:
            raise ValueError(
                f"{option} would take the place of the "
                f"{counted(self.validation.num_classes, 'validation class')} that the data have "
                "already; leave it out"
            )

    def _held_out(self, mask: Tensor) -> Dataset:
        return replace(
            self,
            train=self.train.select((~mask).nonzero().flatten()),
            validation=self.train.select(mask.nonzero().flatten()),
        )


def _check_images(images: Tensor) -> None:
    if images.ndim != 4:
        raise ValueError(
            f"images must have shape (N, channels, height, width), got {tuple(images.shape)}"
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images must be uint8 or floating point, got {images.dtype}")


def to_float(images: Tensor) -> Tensor:
    """``images`` as float32, 0 to 1."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images.float()


def split_classes(num_classes: int, test_share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Disjoint training and test classes, each (n,) int64 ascending, drawn with ``seed``."""
    order = torch.randperm(
        num_classes, generator=torch.Generator(device="cpu").manual_seed(seed), device="cpu"
    )
    num_test = round(num_classes * test_share)
    return order[num_test:].sort().values, order[:num_test].sort().values
