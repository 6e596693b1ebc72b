"""Value and gradient against pytorch-metric-learning at the same settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.losses.compare import FUSED
from tests.losses.test_properties import draw

pml = pytest.importorskip("pytorch_metric_learning", reason="pytorch-metric-learning is absent")
from pytorch_metric_learning import distances, losses, miners, reducers  # noqa: E402

REDUCERS = {"mean": reducers.MeanReducer, "mean_nonzero": reducers.AvgNonZeroReducer}


def peer_distance(distance: str, normalize: bool) -> Any:
    if distance == "cosine":
        return distances.CosineSimilarity()
    power = 2 if distance == "sqeuclidean" else 1
    return distances.LpDistance(normalize_embeddings=normalize, p=2, power=power)


def assert_parity(loss: str, peer: Any, problem: Any, backend: str) -> None:
    """float64, so that agreement is not a matter of rounding."""
    results = []
    for ours in (True, False):
        x = problem.x.double().requires_grad_()
        y = None if problem.y is None else problem.y.double().requires_grad_()
        if ours:
            value = FUSED[loss](
                x, problem.labels, y, problem.ref_labels, backend=backend, **problem.keywords
            )
        else:
            value = peer(x, problem.labels, y, problem.ref_labels)
        value.backward()
        results.append([value.detach(), x.grad, *(() if y is None else (y.grad,))])
    assert results[1][0] > 0
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("reduction", REDUCERS)
@pytest.mark.parametrize(
    ("distance", "normalize"),
    [("euclidean", False), ("euclidean", True), ("sqeuclidean", True), ("cosine", False)],
)
@pytest.mark.parametrize(
    ("swap", "smooth", "refs"),
    [(False, False, False), (True, False, False), (False, True, True), (False, False, True)],
    ids=["hard", "swap", "smooth-refs", "refs"],
)
def test_triplet(
    reduction: str,
    distance: str,
    normalize: bool,
    swap: bool,
    smooth: bool,
    refs: bool,
    backend: str,
) -> None:
    """swap only in the self case: with references the peer reads d(p, n) from the wrong table."""
    options = {"margin": 0.3, "swap": swap, "smooth": smooth}
    problem = draw(
        refs=refs, distance=distance, normalize=normalize, reduction=reduction, **options
    )
    measure = peer_distance(distance, normalize)
    miner = miners.BatchHardMiner(distance=measure)
    function = losses.TripletMarginLoss(
        margin=0.3,
        swap=swap,
        smooth_loss=smooth,
        distance=measure,
        reducer=REDUCERS[reduction](),
    )

    def peer(x: torch.Tensor, labels: torch.Tensor, y: Any, ref_labels: Any) -> torch.Tensor:
        found = miner(x, labels, y, ref_labels)
        return function(x, labels, found, y, ref_labels)

    assert_parity("triplet", peer, problem, backend)


@pytest.mark.parametrize("reduction", REDUCERS)
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize(
    ("distance", "normalize", "margins"),
    [
        ("euclidean", False, (1.0, 4.5)),
        ("euclidean", True, (0.0, 1.4)),
        ("sqeuclidean", True, (0.5, 2.0)),
        ("cosine", False, (0.2, 1.1)),
    ],
)
def test_contrastive(
    reduction: str,
    refs: bool,
    distance: str,
    normalize: bool,
    margins: tuple[float, float],
    backend: str,
) -> None:
    pos_margin, neg_margin = margins
    problem = draw(
        refs=refs,
        distance=distance,
        normalize=normalize,
        reduction=reduction,
        pos_margin=pos_margin,
        neg_margin=neg_margin,
    )
    if distance == "cosine":  # the peer's margins are similarities
        pos_margin, neg_margin = 1 - pos_margin, 1 - neg_margin
    function = losses.ContrastiveLoss(
        pos_margin=pos_margin,
        neg_margin=neg_margin,
        distance=peer_distance(distance, normalize),
        reducer=REDUCERS[reduction](),
    )

    def peer(x: torch.Tensor, labels: torch.Tensor, y: Any, ref_labels: Any) -> torch.Tensor:
        return function(x, labels, None, y, ref_labels)

    assert_parity("contrastive", peer, problem, backend)
