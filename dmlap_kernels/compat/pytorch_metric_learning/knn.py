"""Exact neighbours for their testers, `AccuracyCalculator` and `InferenceModel`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlap_kernels import mining
from dmlap_kernels.compat.pytorch_metric_learning.geometry import NotFused, geometry


class NearestKNN:
    """A ``knn_func``: `dmlap_kernels.nearest` under the call of their ``FaissKNN``.

    Args:
        distance: one of their distances, None for squared Euclidean ones, which are what
            ``FaissKNN`` gives.
        backend: as in `dmlap_kernels.nearest`.

    Distances come back ascending; for similarities descending, as they do from ``CustomKNN``.
    """

    def __init__(self, distance: Any = None, backend: str = "auto") -> None:
        self.distance, self.normalize, self.similar = "sqeuclidean", False, False
        if distance is not None:
            kind = geometry(distance)
            if kind.distance == "dot" and not kind.normalize:
                raise NotFused("neighbours are exact for distances and cosines, got a dot product")
            self.similar = kind.inverted
            self.distance = "cosine" if kind.inverted else kind.distance
            self.normalize = kind.normalize and not kind.inverted
        self.backend = backend
        self.references: Tensor | None = None

    def __call__(
        self,
        query: Tensor,
        k: int,
        reference: Tensor | None = None,
        ref_includes_query: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Distances and indices, (Q, k) each, without the query itself where it is included."""
        rows = self.references if reference is None else reference
        if rows is None:
            raise ValueError("reference must be given, or train called before")
        rows = rows.to(query.device)
        more = int(ref_includes_query)
        found = mining.nearest(
            query,
            rows,
            min(k + more, len(rows)),
            distance=self.distance,
            normalize=self.normalize,
            backend=self.backend,
        )
        distances = 1 - found.distances if self.similar else found.distances
        return distances[:, more:], found.indices[:, more:]

    def train(self, embeddings: Any) -> None:
        self.references = _tensor(embeddings)

    def add(self, embeddings: Any) -> None:
        more = _tensor(embeddings)
        self.references = more if self.references is None else torch.cat((self.references, more))

    def save(self, filename: str) -> None:
        torch.save(self.references, filename)

    def load(self, filename: str) -> None:
        self.references = torch.load(filename, weights_only=True)

    def reset(self) -> None:
        self.references = None


def _tensor(rows: Any) -> Tensor:
    return rows if isinstance(rows, Tensor) else torch.from_numpy(rows)
