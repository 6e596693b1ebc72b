"""Every loss that the command line offers trains an encoder, and is judged by its own distance."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dmlap_kernels.evaluation import retrieval_metrics
from dmlap_kernels.losses import LOSSES, PROXY_LOSSES
from dmlap_kernels.mining import hard_classes
from dmlap_kernels.trainer import Trainer
from dmlap_kernels.trainer.embedding import evaluate, search_options
from tests.trainer.helpers import TinyEncoder, quick_config, tiny_data

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((loss, {}) for loss in LOSSES),
    ("triplet", {"mining": "semihard"}),
    ("triplet", {"mining": "all", "smooth": True}),
    ("triplet", {"mining": "distance_weighted"}),
    ("lifted_structure", {"form": "original"}),
    ("nt_xent", {"distance": "dot"}),
    ("margin", {"learn_beta": True}),
    ("margin", {"learn_beta": True, "num_classes": 10}),
    *((loss, {}) for loss in PROXY_LOSSES),
    ("soft_triple", {"centers_per_class": 2}),
    ("margin", {"beta": 0.9, "distance": "sqeuclidean"}),
]


@pytest.mark.parametrize(
    ("loss", "options"),
    VARIANTS,
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
@pytest.mark.parametrize("method", ["dmlap", "plain"])
def test_a_few_steps(loss: str, options: dict[str, Any], method: str) -> None:
    config = quick_config(loss=loss, loss_options=options, method=method, steps=9, eval_every=9)
    trainer = Trainer(config, tiny_data(), encoder=TinyEncoder())
    before = trainer.encoder.linear.weight.detach().clone()
    own = [p.detach().clone() for p in trainer.objective.parameters()]
    results = trainer.run()
    assert not torch.equal(trainer.encoder.linear.weight, before)
    assert torch.isfinite(trainer.encoder.linear.weight).all()
    for learned, first in zip(trainer.objective.parameters(), own, strict=True):
        assert not torch.equal(learned, first)
    assert len(own) == (loss in PROXY_LOSSES or bool(options.get("learn_beta")))
    assert 0 <= results["test"]["recall@1"] <= 1


@pytest.mark.parametrize(
    ("loss", "options", "expected"),
    [
        ("contrastive", {}, {"distance": "euclidean"}),
        ("contrastive", {"distance": "cosine", "neg_margin": 0.5}, {"distance": "cosine"}),
        ("triplet", {"normalize": True, "backend": "torch"}, None),
        ("triplet", {"mining": "distance_weighted"}, {"distance": "euclidean", "normalize": True}),
        ("sup_con", {}, {"distance": "cosine"}),
        ("sup_con", {"distance": "sqeuclidean"}, {"distance": "sqeuclidean"}),
        ("n_pairs", {}, {"distance": "cosine"}),
        ("angular", {"alpha": 30.0}, {"distance": "cosine"}),
        ("proxy_nca", {}, {"distance": "sqeuclidean", "normalize": True}),
        ("proxy_nca", {"normalize": False}, {"distance": "sqeuclidean", "normalize": False}),
        ("soft_triple", {}, {"distance": "cosine"}),
    ],
)
def test_search_by_the_distance_of_the_loss(
    loss: str, options: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    expected = {"distance": "euclidean", **options} if expected is None else expected
    assert search_options(loss, options) == expected
    x, labels = torch.randn(12, 3), torch.arange(12) // 2
    retrieval_metrics(x, labels, **expected)
    hard_classes(x, labels, 2, **expected)


def test_metrics_are_those_of_the_distance() -> None:
    """Lengths matter to Euclidean distances alone."""

    class Stretched(TinyEncoder):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            rows = super().forward(images)
            return rows * torch.linspace(1, 9, len(rows))[torch.randperm(len(rows))][:, None]

    torch.manual_seed(0)
    encoder, split = Stretched(), tiny_data().test
    lengths = [evaluate(encoder, split, loss="sup_con") for _ in range(2)]
    assert lengths[0] == lengths[1]
    assert evaluate(encoder, split, loss="contrastive") != lengths[0]
