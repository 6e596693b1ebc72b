"""Value and gradient against pytorch-metric-learning at the same settings, in float64.

The reference formulas are held against the peer as well, so that they are not only our reading of
the papers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.losses.cases import Problem
from tests.losses.peers import candidate, draw, result_of

pml = pytest.importorskip("pytorch_metric_learning", reason="pytorch-metric-learning is absent")
from pytorch_metric_learning import distances, losses, miners, reducers  # noqa: E402

__all__ = ["candidate"]

REDUCERS = {"mean": reducers.MeanReducer, "mean_nonzero": reducers.AvgNonZeroReducer}
BOTH = pytest.mark.parametrize("reduction", REDUCERS)
REFS = pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
GEOMETRIES = {
    "euclidean": ("euclidean", False),
    "euclidean-unit": ("euclidean", True),
    "sqeuclidean-unit": ("sqeuclidean", True),
    "cosine": ("cosine", False),
    "dot": ("dot", False),
    "dot-unit": ("dot", True),
}
THREE = pytest.mark.parametrize("geometry", list(GEOMETRIES)[:4])
FOUR = pytest.mark.parametrize("geometry", GEOMETRIES)

Peer = Callable[[Tensor, Tensor, "Tensor | None", "Tensor | None"], Tensor]


def peer_distance(geometry: str) -> Any:
    distance, normalize = GEOMETRIES[geometry]
    if distance == "cosine":
        return distances.CosineSimilarity()
    if distance == "dot":
        return distances.DotProductSimilarity(normalize_embeddings=normalize)
    power = 2 if distance == "sqeuclidean" else 1
    return distances.LpDistance(normalize_embeddings=normalize, p=2, power=power)


def options_of(geometry: str, reduction: str, **own: Any) -> dict[str, Any]:
    distance, normalize = GEOMETRIES[geometry]
    return {"distance": distance, "normalize": normalize, "reduction": reduction} | own


def assert_parity(
    loss: str,
    peer: Peer,
    problem: Problem,
    candidate: str,
    parameters: list[torch.nn.Parameter] | None = None,
) -> None:
    """``parameters`` of the peer, in the order of those of ours."""
    ours = result_of(candidate, loss, problem)
    x = problem.x.clone().requires_grad_()
    y = None if problem.y is None else problem.y.clone().requires_grad_()
    value = peer(x, problem.labels, y, problem.ref_labels)
    value.backward()
    theirs = [value.detach(), x.grad, *(() if y is None else (y.grad,))]
    theirs += [parameter.grad for parameter in parameters or []]
    assert value > 0
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other.reshape(mine.shape), rtol=1e-9, atol=1e-11)


@BOTH
@THREE
@pytest.mark.parametrize(
    ("swap", "smooth", "refs"),
    [(False, False, False), (True, False, False), (False, True, True), (False, False, True)],
    ids=["hinge", "swap", "smooth-refs", "refs"],
)
@pytest.mark.parametrize("mining", ["hard", "all"])
def test_triplet(
    mining: str,
    reduction: str,
    geometry: str,
    swap: bool,
    smooth: bool,
    refs: bool,
    candidate: str,
) -> None:
    """swap only in the self case: with references the peer reads d(p, n) from the wrong table."""
    options = options_of(geometry, reduction, margin=0.3, swap=swap, smooth=smooth)
    measure = peer_distance(geometry)
    miner = miners.BatchHardMiner(distance=measure) if mining == "hard" else None
    function = losses.TripletMarginLoss(
        margin=0.3, swap=swap, smooth_loss=smooth, distance=measure, reducer=REDUCERS[reduction]()
    )

    def peer(x: Tensor, labels: Tensor, y: Any, ref_labels: Any) -> Tensor:
        found = None if miner is None else miner(x, labels, y, ref_labels)
        return function(x, labels, found, y, ref_labels)

    assert_parity(f"triplet_{mining}", peer, draw(refs, **options), candidate)


def plain(function: Any) -> Peer:
    return lambda x, labels, y, ref_labels: function(x, labels, None, y, ref_labels)


@BOTH
@REFS
@pytest.mark.parametrize(
    ("geometry", "margins"),
    [
        ("euclidean", (1.0, 4.5)),
        ("euclidean-unit", (0.0, 1.4)),
        ("sqeuclidean-unit", (0.5, 2.0)),
        ("cosine", (0.2, 1.1)),
    ],
)
def test_contrastive(
    reduction: str, refs: bool, geometry: str, margins: tuple[float, float], candidate: str
) -> None:
    pos_margin, neg_margin = margins
    options = options_of(geometry, reduction, pos_margin=pos_margin, neg_margin=neg_margin)
    if geometry == "cosine":  # the peer's margins are similarities
        pos_margin, neg_margin = 1 - pos_margin, 1 - neg_margin
    function = losses.ContrastiveLoss(
        pos_margin=pos_margin,
        neg_margin=neg_margin,
        distance=peer_distance(geometry),
        reducer=REDUCERS[reduction](),
    )
    assert_parity("contrastive", plain(function), draw(refs, **options), candidate)


@pytest.mark.parametrize("reduction", ["mean", "mean_nonzero"])
@REFS
@pytest.mark.parametrize("beta", ["number", "scalar", "classes"])
@pytest.mark.parametrize(
    ("geometry", "center"),
    [("euclidean", 3.25), ("sqeuclidean-unit", 1.875), ("cosine", 0.875), ("euclidean-unit", 1.25)],
)
def test_margin(
    reduction: str, refs: bool, beta: str, geometry: str, center: float, candidate: str
) -> None:
    """The peer's own reducer divides by the number of positive terms: our "mean_nonzero".

    Its beta is a similarity for cosines.
    """
    function = losses.MarginLoss(
        margin=0.25,
        beta=1 - center if geometry == "cosine" else center,
        learn_beta=beta != "number",
        num_classes=7 if beta == "classes" else None,
        distance=peer_distance(geometry),
        reducer=reducers.MeanReducer() if reduction == "mean" else None,
    ).double()
    parameters = [] if beta == "number" else [function.beta]
    if beta == "classes":
        with torch.no_grad():
            function.beta += torch.linspace(-0.2, 0.3, 7)
    chosen: Any = center
    if beta != "number":
        chosen = function.beta.detach().clone()
        chosen = 1 - chosen if geometry == "cosine" else chosen
    options = options_of(geometry, reduction, margin=0.25, beta=chosen)

    def peer(x: Tensor, labels: Tensor, y: Any, ref_labels: Any) -> Tensor:
        value = function(x, labels, None, y, ref_labels)
        if parameters and geometry == "cosine":
            function.beta.register_hook(torch.neg)
        return value

    assert_parity("margin", peer, draw(refs, **options), candidate, parameters)


@BOTH
@REFS
@FOUR
@pytest.mark.parametrize("mined", [False, True], ids=["all", "mined"])
def test_multi_similarity(
    reduction: str, refs: bool, geometry: str, mined: bool, candidate: str
) -> None:
    own = {"alpha": 2.0, "beta": 10.0, "base": 0.5} | ({"epsilon": 0.3} if mined else {})
    options = options_of(geometry, reduction, **own)
    measure = peer_distance(geometry)
    miner = miners.MultiSimilarityMiner(epsilon=0.3, distance=measure)
    function = losses.MultiSimilarityLoss(
        alpha=2.0, beta=10.0, base=0.5, distance=measure, reducer=REDUCERS[reduction]()
    )

    def peer(x: Tensor, labels: Tensor, y: Any, ref_labels: Any) -> Tensor:
        found = miner(x, labels, y, ref_labels) if mined else None
        return function(x, labels, found, y, ref_labels)

    assert_parity("multi_similarity", peer, draw(refs, **options), candidate)


@BOTH
@REFS
@THREE
def test_lifted_structure(reduction: str, refs: bool, geometry: str, candidate: str) -> None:
    options = options_of(geometry, reduction, pos_margin=0.3, neg_margin=0.7)
    margins = {"pos_margin": 0.3, "neg_margin": 0.7}
    if geometry == "cosine":  # the peer's margins are similarities
        margins = {name: 1 - value for name, value in margins.items()}
    function = losses.GeneralizedLiftedStructureLoss(
        **margins, distance=peer_distance(geometry), reducer=REDUCERS[reduction]()
    )
    assert_parity("lifted_structure", plain(function), draw(refs, **options), candidate)


@BOTH
@THREE
def test_lifted_structure_original(reduction: str, geometry: str, candidate: str) -> None:
    """Only the self case: with references the peer takes row numbers of the references for row
    numbers of the anchors when it looks for the negatives of a positive."""
    options = options_of(geometry, reduction, pos_margin=0.3, neg_margin=0.7)
    margins = {"pos_margin": 0.3, "neg_margin": 0.7}
    if geometry == "cosine":
        margins = {name: 1 - value for name, value in margins.items()}
    function = losses.LiftedStructureLoss(
        **margins, distance=peer_distance(geometry), reducer=REDUCERS[reduction]()
    )
    problem = draw(False, **options)
    assert_parity("lifted_structure_original", plain(function), problem, candidate)


@BOTH
@FOUR
def test_n_pairs(reduction: str, geometry: str, candidate: str) -> None:
    """Only the self case: the peer has no other."""
    function = losses.NPairsLoss(distance=peer_distance(geometry), reducer=REDUCERS[reduction]())
    problem = draw(False, **options_of(geometry, reduction))
    assert_parity("n_pairs", plain(function), problem, candidate)


@BOTH
@REFS
@FOUR
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_nt_xent(
    reduction: str, refs: bool, geometry: str, temperature: float, candidate: str
) -> None:
    """Temperatures in units of the geometry: the peer's logarithm loses terms below 1e-16."""
    temperature *= 8 if geometry in ("euclidean", "dot") else 1
    function = losses.NTXentLoss(
        temperature=temperature, distance=peer_distance(geometry), reducer=REDUCERS[reduction]()
    )
    problem = draw(refs, **options_of(geometry, reduction, temperature=temperature))
    assert_parity("nt_xent", plain(function), problem, candidate)


@BOTH
@REFS
@FOUR
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_sup_con(
    reduction: str, refs: bool, geometry: str, temperature: float, candidate: str
) -> None:
    function = losses.SupConLoss(
        temperature=temperature, distance=peer_distance(geometry), reducer=REDUCERS[reduction]()
    )
    problem = draw(refs, **options_of(geometry, reduction, temperature=temperature))
    assert_parity("sup_con", plain(function), problem, candidate)


@BOTH
@REFS
@pytest.mark.parametrize("alpha", [30.0, 40.0])
def test_angular(reduction: str, refs: bool, alpha: float, candidate: str) -> None:
    """On unit rows, behind a normalisation: the peer leaves negatives at their length.

    It does not normalise them again, so that the gradients agree in what is tangential only; a
    normalisation in front of both makes them equal.
    """
    function = losses.AngularLoss(alpha=alpha, reducer=REDUCERS[reduction]())

    def peer(x: Tensor, labels: Tensor, y: Any, ref_labels: Any) -> Tensor:
        unit = torch.nn.functional.normalize
        return function(unit(x), labels, None, None if y is None else unit(y), ref_labels)

    problem = draw(refs, reduction=reduction, alpha=alpha)
    assert_parity("angular", peer, problem, candidate)


@BOTH
@REFS
@pytest.mark.parametrize(("m", "gamma"), [(0.4, 80.0), (0.25, 16.0)])
def test_circle(reduction: str, refs: bool, m: float, gamma: float, candidate: str) -> None:
    """Value and gradient: both hold the factors of the exponents constant."""
    function = losses.CircleLoss(m=m, gamma=gamma, reducer=REDUCERS[reduction]())
    problem = draw(refs, reduction=reduction, m=m, gamma=gamma)
    assert_parity("circle", plain(function), problem, candidate)


def proxy_problem(classes: int, centers: int, **own: Any) -> Problem:
    """36 rows of 6 features against ``centers`` proxies for each of ``classes`` labels."""
    problem = draw(False, **own)
    g = torch.Generator().manual_seed(classes * centers)
    problem.y = torch.randn(classes * centers, 6, generator=g, dtype=torch.float64)
    problem.ref_labels = torch.arange(classes).repeat_interleave(centers)
    return problem


def with_proxies(function: Any, transposed: bool = False) -> Peer:
    """The peer with our proxies in place of its parameter, so that their gradient flows."""
    ((name, _),) = function.named_parameters()

    def peer(x: Tensor, labels: Tensor, y: Any, ref_labels: Any) -> Tensor:
        function._parameters.pop(name, None)
        setattr(function, name, y.t() if transposed else y)
        function.cast_types = lambda dtype, device: None
        return function(x, labels)

    return peer


@BOTH
@pytest.mark.parametrize("scale", [64.0, 5.0])
@pytest.mark.parametrize(
    ("loss", "margin"),
    [("cosface", 0.35), ("cosface", -0.1), ("arcface", 28.6), ("arcface", 90.0), ("arcface", 0.0)],
)
def test_margins_of_softmax(
    loss: str, margin: float, scale: float, reduction: str, candidate: str
) -> None:
    """At 90 degrees many embeddings have an angle that the margin takes beyond 180. The peer's
    cross entropy rounds small terms to 0, which "mean_nonzero" counts by."""
    name = {"cosface": "CosFaceLoss", "arcface": "ArcFaceLoss"}[loss]
    function = getattr(losses, name)(
        9, 6, margin=margin, scale=scale, reducer=REDUCERS[reduction]()
    )
    own = {} if (margin, scale) in ((0.35, 64.0), (28.6, 64.0)) else {"margin": margin}
    own |= {} if scale == 64.0 else {"scale": scale}
    if scale == 64.0 and reduction == "mean_nonzero":
        pytest.skip("the peer's small terms are 0")
    problem = proxy_problem(9, 1, reduction=reduction, **own)
    assert_parity(loss, with_proxies(function, transposed=True), problem, candidate)


@BOTH
@FOUR
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_proxy_nca(reduction: str, geometry: str, scale: float, candidate: str) -> None:
    function = losses.ProxyNCALoss(
        9, 6, softmax_scale=scale, distance=peer_distance(geometry), reducer=REDUCERS[reduction]()
    )
    problem = proxy_problem(9, 1, **options_of(geometry, reduction, softmax_scale=scale))
    assert_parity("proxy_nca", with_proxies(function), problem, candidate)


@BOTH
@pytest.mark.parametrize("geometry", ["cosine", "dot", "dot-unit"])
@pytest.mark.parametrize(("margin", "alpha"), [(0.1, 32.0), (0.3, 4.0)])
def test_proxy_anchor(
    reduction: str, geometry: str, margin: float, alpha: float, candidate: str
) -> None:
    """ "mean" is the peer's own reducer: 9 proxies of which 7 have positives."""
    function = losses.ProxyAnchorLoss(
        9,
        6,
        margin=margin,
        alpha=alpha,
        distance=peer_distance(geometry),
        reducer=None if reduction == "mean" else reducers.AvgNonZeroReducer(),
    )
    problem = proxy_problem(9, 1, **options_of(geometry, reduction, margin=margin, alpha=alpha))
    assert_parity("proxy_anchor", with_proxies(function), problem, candidate)


@BOTH
@pytest.mark.parametrize("geometry", ["cosine", "dot", "dot-unit"])
@pytest.mark.parametrize("centers", [1, 4])
def test_soft_triple(reduction: str, geometry: str, centers: int, candidate: str) -> None:
    """Inner products on a smaller scale: the peer's cross entropy rounds small terms to 0."""
    la = 2.0 if geometry == "dot" else 20.0
    function = losses.SoftTripleLoss(
        8,
        6,
        centers_per_class=centers,
        la=la,
        gamma=0.1,
        margin=0.01,
        distance=peer_distance(geometry),
        reducer=REDUCERS[reduction](),
    )
    own = {"la": la, "gamma": 0.1, "margin": 0.01}
    problem = proxy_problem(8, centers, **options_of(geometry, reduction, **own))
    assert_parity("soft_triple", with_proxies(function, transposed=True), problem, candidate)
