"""One call of every public function and variant, for the tests of how losses behave in PyTorch.

What they compute is the business of `losses_table`. A loss that is not listed here is called with
numbers that are not its defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import dmlap_kernels
from dmlap_kernels.losses import LOSSES, PROXY_LOSSES
from tests.losses.losses_table import FUNCTIONS


@dataclass(frozen=True)
class Call:
    """A loss by the name that function and module share, and keywords that differ from defaults."""

    loss: str
    keywords: dict[str, Any] = field(default_factory=dict)
    variant: str = ""

    @property
    def id(self) -> str:
        return f"{self.loss}-{self.variant}" if self.variant else self.loss

    @property
    def proxies(self) -> bool:
        return self.loss in PROXY_LOSSES

    @property
    def module(self) -> Any:
        return (PROXY_LOSSES if self.proxies else LOSSES)[self.loss]

    def __call__(self, *tensors: Tensor | None, **extra: Any) -> Any:
        function = getattr(dmlap_kernels, f"fused_{self.loss}_loss")
        return function(*tensors, **(self.keywords | extra))

    def draw(self, refs: bool, rows: int = 45, features: int = 12) -> list[Tensor | None]:
        """Embeddings, labels, references or proxies, and their labels."""
        g = torch.Generator().manual_seed(rows + features)
        x = torch.randn(rows, features, generator=g)
        labels = torch.randint(0, 7, (rows,), generator=g)
        if not (refs or self.proxies):
            return [x, labels, None, None]
        y = torch.randn(rows + 9, features, generator=g)
        return [x, labels, y, torch.randint(0, 7, (rows + 9,), generator=g)]


CALLS = [
    Call("triplet", {"margin": 0.3, "swap": True, "normalize": True, "distance": "cosine"}),
    Call("triplet", {"mining": "semihard", "swap": True}, "semihard"),
    Call("triplet", {"mining": "all", "smooth": True}, "all"),
    Call("triplet", {"mining": "easy_positive_semihard", "margin": 0.5}, "easy"),
    Call("triplet", {"mining": "distance_weighted", "seed": 2**53 - 1, "margin": 0.4}, "drawn"),
    Call("contrastive", {"pos_margin": 0.1, "neg_margin": 3.5, "squared": True}),
    Call("margin", {"beta": 4.0, "margin": 0.3}),
    Call("multi_similarity", {"alpha": 1.5, "beta": 9.0, "epsilon": 0.1}),
    Call("lifted_structure", {"neg_margin": 2.0}),
    Call("lifted_structure", {"neg_margin": 2.0, "form": "original"}, "original"),
    Call("n_pairs", {"distance": "cosine"}),
    Call("nt_xent", {"temperature": 0.3, "distance": "dot", "normalize": True}),
    Call("nt_xent", {"temperature": 0.3, "hardness": 0.5}, "hardness"),
    Call("sup_con", {"temperature": 0.3}),
    Call("sup_con", {"temperature": 0.3, "hardness": 0.5}, "hardness"),
    Call("circle", {"m": 0.3, "gamma": 10.0}),
    Call("cosface", {"scale": 8.0}),
    Call("arcface", {"scale": 8.0}),
    Call("proxy_anchor", {"alpha": 8.0}),
    Call("soft_triple", {"la": 9.0, "gamma": 0.2}),
]
CALLED = {call.loss for call in CALLS}
CALLS += [Call(loss, row.other_numbers) for loss, row in FUNCTIONS.items() if loss not in CALLED]
EVERY_CALL = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.id)
