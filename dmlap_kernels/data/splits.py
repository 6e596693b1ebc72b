"""What every data source returns: splits of labelled images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Split:
    """Labelled images of one split.

    Attributes:
        images: (N, channels, height, width) uint8 (0 to 255) or floating point (0 to 1).
        labels: (N,) int64, 0 to C - 1, every class present.
        class_names: C names, one a label.
        groups: (C,) int64 or None; classes of one group (an alphabet, say) are related and are
            held out together.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4:
            raise ValueError(
                "images must have shape (N, channels, height, width), "
                f"got {tuple(self.images.shape)}"
            )
        if self.images.dtype != torch.uint8 and not self.images.is_floating_point():
            raise TypeError(f"images must be uint8 or floating point, got {self.images.dtype}")
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be int64 of shape ({len(self.images)},), got "
                f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )
        present = torch.unique(self.labels)
        if not torch.equal(present, torch.arange(len(self.class_names))):
            raise ValueError(
                f"labels must be 0 to {len(self.class_names) - 1} with every class present, got "
                f"{len(present)} classes"
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
        images = self.images[indices]
        return images.float().div_(255) if images.dtype == torch.uint8 else images.float()

    def pixels(self) -> Tensor:
        """All images flattened to float32 (N, channels * height * width): the raw baseline."""
        return self.batch(torch.arange(len(self))).flatten(1)

    def fingerprint(self) -> str:
        """A digest of images and labels, to tell whether two runs saw the same data."""
        digest = hashlib.blake2b(digest_size=16)
        for tensor in (self.images, self.labels):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def select(self, classes: Tensor) -> Split:
        """The split of the given classes alone, relabelled 0, 1, ... in ascending order."""
        classes = torch.unique(classes)
        position = torch.full((self.num_classes,), -1)
        position[classes] = torch.arange(len(classes))
        labels = position[self.labels]
        rows = labels >= 0
        return Split(
            self.images[rows],
            labels[rows],
            tuple(self.class_names[c] for c in classes.tolist()),
            None if self.groups is None else self.groups[classes],
        )


@dataclass(frozen=True)
class Dataset:
    """Class-disjoint splits and the augmentation that suits them.

    Attributes:
        name: the kind of data, for example ``"glyphs"``.
        train, test: the splits; ``validation`` is None unless classes were held out of training.
        augment: callable on float images (B, channels, height, width) and a `torch.Generator`
            that returns distorted copies, or None.
    """

    name: str
    train: Split
    test: Split
    validation: Split | None = None
    augment: Augmentation | None = None

    def hold_out(self, share: float, seed: int) -> Dataset:
        """Move about ``share`` of the training classes to ``validation``, whole groups at a time.

        Args:
            share: between 0 and 1, both excluded.
            seed: chooses the groups.

        Raises:
            ValueError: the share is out of range, or leaves fewer than two classes on one side.
        """
        if not 0 < share < 1:
            raise ValueError(f"validation must be between 0 and 1, both excluded, got {share}")
        train = self.train
        groups = torch.arange(train.num_classes) if train.groups is None else train.groups
        names, sizes = torch.unique(groups, return_counts=True)
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
        sizes_before = sizes[order].cumsum(0) - sizes[order]
        held = names[order][sizes_before < share * train.num_classes]
        mask = torch.isin(groups, held)
        if mask.sum() < 2 or (~mask).sum() < 2:
            raise ValueError(
                f"validation={share} of {train.num_classes} training classes leaves fewer than two "
                "classes on one side"
            )
        return replace(
            self,
            train=train.select((~mask).nonzero().flatten()),
            validation=train.select(mask.nonzero().flatten()),
        )


def split_classes(num_classes: int, test_share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Disjoint training and test classes, each (n,) int64 ascending, drawn with ``seed``."""
    order = torch.randperm(num_classes, generator=torch.Generator().manual_seed(seed))
    num_test = round(num_classes * test_share)
    return order[num_test:].sort().values, order[:num_test].sort().values
