"""Value and gradient against sentence-transformers at the same settings, in float64.

Its losses take sentences through a model; a model that hands back what it is given makes them
functions of embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.losses.cases import Problem
from tests.losses.peers import candidate, draw, result_of

st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is absent")
from sentence_transformers import util  # noqa: E402
from sentence_transformers.sentence_transformer import losses  # noqa: E402

__all__ = ["candidate"]

METRIC = losses.BatchHardTripletLossDistanceFunction
GEOMETRIES: dict[str, tuple[dict[str, Any], Callable[..., Tensor]]] = {
    "euclidean": ({"distance": "euclidean"}, METRIC.euclidean_distance),
    "sqeuclidean": (
        {"distance": "sqeuclidean"},
        lambda x: METRIC.euclidean_distance(x, squared=True),
    ),
    "cosine": ({"distance": "cosine"}, METRIC.cosine_distance),
}
EACH = pytest.mark.parametrize("geometry", GEOMETRIES)
MARGINS = {"euclidean": 1.0, "sqeuclidean": 3.0, "cosine": 0.4}


class Given(torch.nn.Module):
    """A model whose sentences are their embeddings."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


def paired(**own: Any) -> Problem:
    """Two classes or more of at least two rows: the peers count every row and every class."""
    problem = draw(False, rows=36, **own)
    problem.labels[4] = 2
    return problem


def assert_parity(
    loss: str,
    peer: Callable[[list[Tensor]], Tensor],
    problem: Problem,
    candidate: str,
    tolerance: float = 1e-9,
) -> None:
    """``peer`` is a function of the embeddings, and of the references if there are any."""
    ours = result_of(candidate, loss, problem)
    leaves = [t.clone().requires_grad_() for t in (problem.x, problem.y) if t is not None]
    truth = peer(leaves)
    assert truth > 0
    theirs = [truth.detach(), *torch.autograd.grad(truth, leaves)]
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=10 * tolerance, atol=tolerance)


def with_labels(function: Any, problem: Problem) -> Callable[[list[Tensor]], Tensor]:
    return lambda leaves: function([{"sentence_embedding": leaves[0]}], problem.labels)


@EACH
@pytest.mark.parametrize(
    ("loss", "peer", "reduction"),
    [
        ("triplet_hard", losses.BatchHardTripletLoss, "mean"),
        ("triplet_semihard", losses.BatchSemiHardTripletLoss, "mean"),
        ("triplet_all", losses.BatchAllTripletLoss, "mean_nonzero"),
    ],
)
def test_batch_triplets(
    loss: str, peer: Any, reduction: str, geometry: str, candidate: str
) -> None:
    """Hard: among classes of two rows at least, since the peer takes 0 for a missing positive."""
    options, metric = GEOMETRIES[geometry]
    margin = MARGINS[geometry]
    problem = paired(margin=margin, reduction=reduction, **options)
    function = peer(Given(), distance_metric=metric, margin=margin)
    assert_parity(loss, with_labels(function, problem), problem, candidate)


@EACH
def test_batch_hard_soft_margin(geometry: str, candidate: str) -> None:
    options, metric = GEOMETRIES[geometry]
    problem = paired(margin=0.0, smooth=True, **options)
    function = losses.BatchHardSoftMarginTripletLoss(Given(), distance_metric=metric)
    assert_parity("triplet_hard", with_labels(function, problem), problem, candidate)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_contrastive(distance: str, candidate: str) -> None:
    """The peer takes a list of pairs: here every pair of a batch with its references.

    It halves the squares and averages over all pairs, where ours averages positive and negative
    pairs apart; the sum is the same up to that factor. Its Euclidean distance adds 1e-6 to every
    difference.
    """
    metric = losses.SiameseDistanceMetric
    chosen = metric.COSINE_DISTANCE if distance == "cosine" else metric.EUCLIDEAN
    margin = 0.9 if distance == "cosine" else 3.0
    own = {"squared": True, "neg_margin": margin, "reduction": "sum", "normalize": False}
    problem = draw(True, distance=distance, **own)
    function = losses.ContrastiveLoss(
        Given(), distance_metric=chosen, margin=margin, size_average=False
    )
    rows, columns = torch.cartesian_prod(torch.arange(36), torch.arange(41)).T
    equal = (problem.labels[rows] == problem.ref_labels[columns]).long()

    def peer(leaves: list[Tensor]) -> Tensor:
        pairs = (leaves[0][rows], leaves[1][columns])
        return 2 * function([{"sentence_embedding": side} for side in pairs], equal)

    tolerance = 1e-9 if distance == "cosine" else 1e-4
    assert_parity("contrastive", peer, problem, candidate, tolerance)


@pytest.mark.parametrize("distance", ["cosine", "dot"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["one-way", "symmetric"])
@pytest.mark.parametrize("loss", ["nt_xent", "n_pairs"])
def test_multiple_negatives_ranking(
    loss: str, symmetric: bool, distance: str, candidate: str
) -> None:
    """Row i of the references is the positive of row i: every row is a class.

    The peer's scale is our 1 / temperature; its symmetric form is the mean of both directions.
    """
    scale = 1.0 if loss == "n_pairs" else 20.0 if distance == "cosine" else 0.5
    own = {} if loss == "n_pairs" else {"temperature": 1 / scale}
    g = torch.Generator().manual_seed(0)
    x = torch.randn(17, 6, generator=g, dtype=torch.float64)
    y = x + 0.5 * torch.randn(17, 6, generator=g, dtype=torch.float64)
    names = torch.arange(17)
    problem = Problem(x, names, y, names, {"distance": distance, "normalize": False, **own})
    similarity = util.cos_sim if distance == "cosine" else util.dot_score
    both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    function = losses.MultipleNegativesRankingLoss(
        Given(), scale=scale, similarity_fct=similarity, **(both if symmetric else {})
    )

    def peer(leaves: list[Tensor]) -> Tensor:
        return function([{"sentence_embedding": side} for side in leaves], names)

    if not symmetric:
        assert_parity(loss, peer, problem, candidate)
        return
    value, gx, gy = result_of(candidate, loss, problem)
    back = Problem(y, names, x, names, problem.keywords)
    other, hy, hx = result_of(candidate, loss, back)
    leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    truth = peer(leaves)
    theirs = [truth.detach(), *torch.autograd.grad(truth, leaves)]
    for ours, true in zip((value + other, gx + hx, gy + hy), theirs, strict=True):
        torch.testing.assert_close(ours / 2, true, rtol=1e-8, atol=1e-10)
