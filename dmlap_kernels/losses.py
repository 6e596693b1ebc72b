"""nn.Module twins of `dmlap_kernels.functional`: the same keywords, given once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dmlap_kernels import checks, functional
from dmlap_kernels.backends.registry import NAMES as BACKENDS
from dmlap_kernels.problem import PairStats


class PairLoss(nn.Module):
    """Holds the keywords of one function of `dmlap_kernels.functional`.

    ``forward(embeddings, labels, ref_embeddings=None, ref_labels=None)`` is that function with
    those keywords. Unknown keywords raise ``TypeError``; bad values raise as the function does,
    when the module is made.
    """

    function: Callable[..., Any]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        parameters = inspect.signature(self.function).parameters.values()
        accepted = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
        for name in options:
            if name not in accepted:
                raise TypeError(f"{type(self).__name__} accepts {', '.join(accepted)}, got {name}")
        self.options = options
        # An empty problem on the portable backend runs every check and no kernel.
        empty = torch.empty(0, 1), torch.empty(0, dtype=torch.int64)
        type(self).function(*empty, **options | {"backend": "torch"})
        checks.choice("backend", options.get("backend", "auto"), BACKENDS)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_embeddings: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, PairStats]:
        return type(self).function(embeddings, labels, ref_embeddings, ref_labels, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class TripletLoss(PairLoss):
    """`dmlap_kernels.fused_triplet_loss` as a module."""

    function = staticmethod(functional.fused_triplet_loss)


class ContrastiveLoss(PairLoss):
    """`dmlap_kernels.fused_contrastive_loss` as a module."""

    function = staticmethod(functional.fused_contrastive_loss)


LOSSES: dict[str, type[PairLoss]] = {"triplet": TripletLoss, "contrastive": ContrastiveLoss}
