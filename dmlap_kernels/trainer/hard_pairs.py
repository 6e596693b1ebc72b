"""The pairs of watched images that an encoder in training gets most wrong."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlap_kernels.data import Split
from dmlap_kernels.trainer.config import TrainConfig
from dmlap_kernels.trainer.embedding import embed, search_options

# Images that are looked through, of whole classes.
SAMPLES = 1024
PAIRS = 8
# Side of a shown image, at most.
_SIDE = 96


class _Run(Protocol):
    """What of a `Trainer` is looked at."""

    config: TrainConfig
    encoder: nn.Module

    @property
    def watched(self) -> Split: ...


class Shown(NamedTuple):
    """Pairs as one picture (channels, height, width) of two columns, and a line for each."""

    picture: Tensor
    lines: list[str]


class HardPairs:
    """Looks for the hardest pairs among up to 1,024 watched images, the same every time."""

    def __init__(self, trainer: _Run) -> None:
        self._trainer = trainer
        split = trainer.watched
        random = torch.Generator(device="cpu").manual_seed(0)
        order = torch.randperm(split.num_classes, generator=random, device="cpu")
        sizes = torch.bincount(split.labels, minlength=split.num_classes)[order]
        classes = order[: max(2, int((sizes.cumsum(0) <= SAMPLES).sum()))]
        rows = torch.isin(split.labels, classes).nonzero().flatten()
        # Of two classes that are larger, some of each.
        self._rows = rows[:: -(-len(rows) // SAMPLES)]

    def find(self) -> dict[str, Shown]:
        """The nearest pairs of different classes, and the farthest of one class."""
        trainer, split, rows = self._trainer, self._trainer.watched, self._rows
        size = trainer.config.chunk_size
        x = embed(trainer.encoder, split, rows, chunk_size=size).float()
        options = search_options(trainer.config.loss, trainer.config.loss_options)
        if options["distance"] == "cosine" or options.get("normalize"):
            x = F.normalize(x, dim=1)
        distances = torch.cdist(x, x).cpu()
        labels = split.labels[rows]
        same = labels[:, None] == labels
        upper = torch.ones_like(same).triu(1)
        return {
            "nearest of different classes": self._shown(distances, upper & ~same, False),
            "farthest of one class": self._shown(distances, upper & same, True),
        }

    def _shown(self, distances: Tensor, allowed: Tensor, farthest: bool) -> Shown:
        """Each image in one pair at most, so that a single outlier does not take them all."""
        pairs = allowed.nonzero()
        values = distances[pairs[:, 0], pairs[:, 1]]
        taken: set[int] = set()
        chosen: list[tuple[int, int]] = []
        lines = []
        for at in values.argsort(descending=farthest).tolist():
            i, j = pairs[at].tolist()
            if i in taken or j in taken:
                continue
            taken |= {i, j}
            chosen.append((i, j))
            lines.append(f"{self._name(i)} and {self._name(j)}: {float(values[at]):.3f}")
            if len(chosen) == PAIRS:
                break
        return Shown(self._picture(chosen), lines)

    def _name(self, row: int) -> str:
        split, index = self._trainer.watched, int(self._rows[row])
        return f"{split.class_names[int(split.labels[index])]} (image {index})"

    def _picture(self, pairs: list[tuple[int, int]]) -> Tensor:
        """A row for each pair, on white."""
        split = self._trainer.watched
        if not pairs:
            return torch.ones(1, 8, 8, device="cpu")
        images = split.batch(self._rows[torch.tensor(pairs, device="cpu").flatten()]).cpu()
        largest = max(images.shape[2:])
        if largest > _SIDE:
            images = F.interpolate(images, scale_factor=_SIDE / largest, mode="area")
        framed = F.pad(images.clamp(0, 1), (2, 2, 2, 2), value=1.0)
        rows = framed.unflatten(0, (-1, 2)).permute(2, 0, 3, 1, 4)  # [channels, pairs, h, 2, w]
        whole = rows.flatten(3, 4).flatten(1, 2)
        return whole if len(whole) in (1, 3) else whole[:1]
