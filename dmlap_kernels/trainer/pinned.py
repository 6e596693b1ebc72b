"""The representatives of the present projection, and the hard classes that they tell."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmlap_kernels.data import Split
from dmlap_kernels.trainer.class_mining import hardest_classes
from dmlap_kernels.trainer.config import TrainConfig
from dmlap_kernels.trainer.distributed import RankGroup
from dmlap_kernels.trainer.embedding import embed, search_options
from dmlap_kernels.trainer.representatives import CHOICES, RepresentativeSampler


class PinnedRepresentatives:
    """Chooses representatives and mines hard classes with them.

    Attributes:
        indices: (C, R) int64 into the training split; None between projections and for plain
            batches.
        neighbors: (C, k) int64, the hardest others of each class; None unless they are mined.
    """

    def __init__(self, config: TrainConfig, train: Split, ranks: RankGroup) -> None:
        self._config, self._train, self._ranks = config, train, ranks
        self._sampler = RepresentativeSampler(
            train.labels, config.seed, config.representatives_per_class
        )
        self.indices: Tensor | None = None
        self.neighbors: Tensor | None = None

    def release(self) -> None:
        """The projection is over: the next `prepare` chooses anew."""
        self.indices = None

    def prepare(self, encoder: nn.Module, projection: int, step: int) -> None:
        """Choose representatives if there are none; mine hard classes with them when it is time."""
        if self.indices is None:
            self.indices = self._choose(encoder, projection)
        if self._config.mines and step % self._config.hard_refresh == 0:
            self.neighbors = self._mine(encoder, self.indices)

    def planned(self, projection: int) -> Tensor:
        """What `prepare` will choose for a later projection, at random."""
        return self._sampler.draw(projection)

    def _choose(self, encoder: nn.Module, projection: int) -> Tensor:
        config = self._config
        if config.representative_choice == "random":
            return self._sampler.draw(projection)
        # No class has more candidates than samples.
        size = min(config.representative_pool, int(torch.bincount(self._train.labels).max()))
        pool, distinct = self._sampler.pool(projection, size)
        rows = self._embedded(encoder, pool)
        choose = CHOICES[config.representative_choice]
        amount = config.representatives_per_class
        limit = torch.minimum(distinct, self._sampler.distinct(size))
        chosen = self._ranks.by_first(lambda: choose(rows, amount, distinct.to(rows.device)).cpu())
        # One sample of every class is left to meet its representatives.
        picks = torch.arange(amount, device="cpu") % limit[:, None]
        return pool.gather(1, chosen.gather(1, picks))

    def _mine(self, encoder: nn.Module, indices: Tensor) -> Tensor:
        config = self._config
        rows = self._embedded(encoder, indices)
        k = min(config.hard_pool, len(indices) - 1)
        options = search_options(config.loss, config.loss_options)
        search = config.hard_search
        # An index of faiss need not find the same everywhere.
        return self._ranks.by_first(
            lambda: hardest_classes(rows, k, search=search, **options).cpu()
        )

    def _embedded(self, encoder: nn.Module, indices: Tensor) -> Tensor:
        """Embeddings (C, R, D) of the images at ``indices`` (C, R)."""
        size = self._config.chunk_size
        rows = embed(encoder, self._train, indices.flatten(), chunk_size=size, ranks=self._ranks)
        return rows.view(*indices.shape, -1)

    def tensors(self) -> dict[str, Tensor]:
        """What `load` takes, for a checkpoint."""
        found = {"indices": self.indices, "neighbors": self.neighbors}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Return to saved `tensors`."""
        self.indices, self.neighbors = tensors.get("indices"), tensors.get("neighbors")
