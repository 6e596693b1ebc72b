"""Our classes in the place of pytorch-metric-learning's: values, gradients, wrappers, refusals."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("pytorch_metric_learning", reason="pytorch-metric-learning is absent")
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from pytorch_metric_learning.utils import accuracy_calculator, distributed

from dmlap_kernels.compat import pytorch_metric_learning as ours

CLASSES, FEATURES = 7, 6
PROXIES = ("ArcFaceLoss", "CosFaceLoss", "ProxyAnchorLoss", "ProxyNCALoss", "SoftTripleLoss")
ALONE = (*PROXIES, "NPairsLoss")  # those that take no references
NAMES = [name for name in ours.losses.__all__ if name != "CrossBatchMemory"]
DISTANCES: dict[str, Callable[[], Any]] = {
    "euclidean": lambda: distances.LpDistance(normalize_embeddings=False),
    "euclidean-unit": distances.LpDistance,
    "sqeuclidean-unit": lambda: distances.LpDistance(power=2),
    "cosine": distances.CosineSimilarity,
    "dot": lambda: distances.DotProductSimilarity(normalize_embeddings=False),
    "dot-unit": distances.DotProductSimilarity,
}
# Those that each loss takes, where it does not take all of them.
ACCEPTED = {
    "AngularLoss": {"euclidean-unit"},
    "ArcFaceLoss": {"cosine"},
    "CircleLoss": {"cosine"},
    "CosFaceLoss": {"cosine"},
    "ProxyAnchorLoss": {"cosine", "dot", "dot-unit"},
    "SoftTripleLoss": {"cosine", "dot", "dot-unit"},
} | {
    name: set(DISTANCES) - {"dot"}
    for name in (
        *("TripletMarginLoss", "ContrastiveLoss", "MarginLoss"),
        *("LiftedStructureLoss", "GeneralizedLiftedStructureLoss"),
    )
}
REDUCERS: dict[str, Callable[[], Any]] = {
    "default": lambda: None,
    "mean": reducers.MeanReducer,
    "mean_nonzero": reducers.AvgNonZeroReducer,
    "sum": reducers.SumReducer,
    "weighted": lambda: reducers.ClassWeightedReducer(torch.linspace(0.5, 2.0, CLASSES)),
    "anchors": lambda: reducers.PerAnchorReducer(reducers.AvgNonZeroReducer()),
    "threshold": lambda: reducers.ThresholdReducer(low=0.1, high=3.0),
}
MINERS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "hard": lambda d: both("BatchHardMiner", distance=d),
    "hard-pairs": lambda d: both(
        "BatchEasyHardMiner", pos_strategy="hard", neg_strategy="hard", distance=d
    ),
    "easy": lambda d: both("BatchEasyHardMiner", distance=d),
    "easy-hard": lambda d: both(
        "BatchEasyHardMiner", pos_strategy="easy", neg_strategy="hard", distance=d
    ),
    "everything": lambda d: both(
        "BatchEasyHardMiner", pos_strategy="all", neg_strategy="all", distance=d
    ),
    "multi-similarity": lambda d: both("MultiSimilarityMiner", epsilon=0.2, distance=d),
    "pairs": lambda d: both("PairMarginMiner", pos_margin=0.6, neg_margin=0.9, distance=d),
    "pairs-slack": lambda d: both("PairMarginMiner", pos_margin=-9, neg_margin=9, distance=d),
} | {
    f"triplets-{kind}-{margin}": lambda d, kind=kind, margin=margin: both(
        "TripletMarginMiner", margin=margin, type_of_triplets=kind, distance=d
    )
    for kind, margin in itertools.product(("all", "hard", "semihard", "easy"), (0.03, 0.4))
}


@pytest.fixture(autouse=True)
def _flat_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of their losses have terms of shape (B, 1), which their reducers of (B,) multiply with
    every weight, or cannot place."""
    for kind, method in (
        (reducers.ClassWeightedReducer, "element_reduction_helper"),
        (reducers.PerAnchorReducer, "tuple_reduction_helper"),
    ):
        plain = getattr(kind, method)

        def flat(self: Any, terms: Tensor, *rest: Any, plain: Any = plain) -> Any:
            return plain(self, terms.flatten(), *rest)

        monkeypatch.setattr(kind, method, flat)


def both(name: str, **options: Any) -> tuple[Any, Any]:
    return getattr(ours, name)(**options), getattr(miners, name)(**options)


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    """Ours and theirs, with the same parameters."""
    sizes = (CLASSES, FEATURES) if name in PROXIES else ()
    found = [getattr(module, name)(*sizes, **options).double() for module in (ours, losses)]
    found[0].load_state_dict(found[1].state_dict())
    return found[0], found[1]


def draw(refs: bool, seed: int = 0) -> list[Tensor]:
    """Embeddings and labels, and of the references; one class of a single row."""
    g = torch.Generator().manual_seed(seed)
    tensors = []
    for rows in (24, 29) if refs else (24,):
        labels = torch.randint(0, CLASSES - 1, (rows,), generator=g)
        labels[3] = CLASSES - 1
        tensors += [torch.randn(rows, FEATURES, generator=g, dtype=torch.float64), labels]
    return tensors


def outcome(loss: Any, tensors: list[Tensor], indices: Any = None) -> list[Tensor]:
    """Value, gradients of the rows and of the parameters; ``indices`` may be a miner, which then
    sees the very rows of the loss."""
    x, labels, *refs = tensors
    rows = [t.clone().requires_grad_() for t in (x, *refs[:1])]
    if callable(indices):
        indices = indices(rows[0], labels, *rows[1:], *refs[1:])
    value = loss(rows[0], labels, indices, *rows[1:], *refs[1:])
    leaves = [*rows, *loss.parameters()]
    grads = torch.autograd.grad(value, leaves, allow_unused=True)
    return [
        value.detach(),
        *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True)),
    ]


def agree(one: list[Tensor], other: list[Tensor]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


def compare(name: str, tensors: list[Tensor], miner: str | None = None, **options: Any) -> None:
    """Where theirs refuses, ours must as well."""
    one, other = pair(name, **options)
    indices: list[Any] = [None, None]
    if miner is not None:
        indices = list(MINERS[miner](other.distance))
    try:
        expected = outcome(other, tensors, indices[1])
    except (ValueError, NotImplementedError):
        with pytest.raises((ValueError, NotImplementedError)):
            outcome(one, tensors, indices[0])
        return
    agree(outcome(one, tensors, indices[0]), expected)


# Theirs rounds small terms of long rows to 0.
ROUNDED = {(name, "dot") for name in ("SoftTripleLoss", "NTXentLoss", "ProxyNCALoss")}
CASES = [
    pytest.param(name, refs, id=f"{name}-{'refs' if refs else 'self'}")
    for name in NAMES
    for refs in ((False,) if name in ALONE else (False, True))
]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("name", "refs"), CASES)
def test_every_distance(name: str, refs: bool, distance: str) -> None:
    """A distance that ours does not take is refused, with or without a list in theirs."""
    if distance in ACCEPTED.get(name, DISTANCES):
        if (name, distance) not in ROUNDED:
            compare(name, draw(refs), distance=DISTANCES[distance]())
        return
    with pytest.raises((AssertionError, ours.NotFused)):
        one, _ = pair(name, distance=DISTANCES[distance]())
        one(*draw(False))


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize(("name", "refs"), CASES)
def test_every_reducer(name: str, refs: bool, reducer: str) -> None:
    """Or a refusal, where the terms of pairs or triplets would have to be listed."""
    tensors = draw(refs and reducer != "anchors")  # theirs takes no references there
    try:
        compare(name, tensors, reducer=REDUCERS[reducer]())
    except ours.NotFused as refusal:
        assert reducer not in ("default", "mean", "sum")
        assert "give an indices_tuple" in str(refusal)


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize(("name", "refs"), CASES)
def test_every_miner(name: str, refs: bool, miner: str) -> None:
    compare(name, draw(refs), miner)


@pytest.mark.parametrize("reducer", ["mean", "sum", "weighted"])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("name", ["TripletMarginLoss", "ContrastiveLoss"])
def test_miners_inside_of_the_sweep(name: str, miner: str, distance: str, reducer: str) -> None:
    options: dict[str, Any] = {"margin": 0.2} if name == "TripletMarginLoss" else {}
    options |= {"distance": DISTANCES[distance](), "reducer": REDUCERS[reducer]()}
    compare(name, draw(False), miner, **options)


@pytest.mark.parametrize(("name", "refs"), CASES)
def test_lists_gather_what_they_name(
    name: str, refs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short list never makes the matrix; repeats count as they do in theirs."""
    tensors = draw(refs)
    one, other = pair(name)
    found = miners.BatchEasyHardMiner(pos_strategy="hard", neg_strategy="hard")(*tensors)
    indices = tuple(torch.cat((part[:9], part[:2])) for part in found)
    expected = outcome(other, tensors, indices)
    if name not in ALONE:
        monkeypatch.setattr(distances.LpDistance, "compute_mat", None)
        monkeypatch.setattr(distances.DotProductSimilarity, "compute_mat", None)
    monkeypatch.setattr("dmlap_kernels.compat.pytorch_metric_learning.lists._CHUNK", 40)
    agree(outcome(one, tensors, indices), expected)


def test_a_pair_cannot_be_both() -> None:
    indices = tuple(torch.tensor(part) for part in ([0, 1], [1, 0], [0, 1], [1, 2]))
    x, labels = draw(False)
    with pytest.raises(AssertionError, match="either be positive or negative"):
        ours.MultiSimilarityLoss()(x, labels, indices)


def test_boundaries_of_classes_and_their_regulariser() -> None:
    for reducer in (None, reducers.MeanReducer(), reducers.SumReducer()):
        options = {"learn_beta": True, "num_classes": CLASSES, "nu": 0.3, "reducer": reducer}
        compare("MarginLoss", draw(False), **options)
        compare("MarginLoss", draw(True), "hard", **options)
    compare("MarginLoss", draw(False), learn_beta=True, nu=0.3, distance=DISTANCES["cosine"]())


@pytest.mark.parametrize("options", [{"swap": True}, {"smooth_loss": True}], ids=str)
@pytest.mark.parametrize("miner", [None, *MINERS])
def test_forms_of_the_triplet_loss(options: dict[str, Any], miner: str | None) -> None:
    compare("TripletMarginLoss", draw(False), miner, **options)


@pytest.mark.parametrize("name", ["TripletMarginLoss", "MarginLoss"])
def test_some_triplets_an_anchor(name: str) -> None:
    found = []
    for loss in pair(name, triplets_per_anchor=3):
        torch.manual_seed(0)
        found.append(outcome(loss, draw(False)))
    agree(*found)


@pytest.mark.parametrize("name", NAMES)
def test_regularisers(name: str) -> None:
    options: dict[str, Any] = {"embedding_regularizer": regularizers.LpRegularizer()}
    options["embedding_reg_weight"] = 0.3
    if name in PROXIES:
        options["weight_regularizer"] = regularizers.RegularFaceRegularizer()
        options["weight_init_func"] = nn.init.ones_
    compare(name, draw(False), **options)


@pytest.mark.parametrize("name", ["ArcFaceLoss", "CosFaceLoss"])
def test_the_average_angle_is_recorded(name: str) -> None:
    one, other = pair(name, collect_stats=True)
    for loss in (one, other):
        loss(*draw(False))
    assert one.avg_angle == pytest.approx(other.avg_angle, rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_state_goes_both_ways(name: str) -> None:
    options = {"learn_beta": True, "num_classes": CLASSES} if name == "MarginLoss" else {}
    one, other = pair(name, **options)
    other.load_state_dict(one.state_dict())
    assert isinstance(one, type(other)) and type(one).__name__ == type(other).__name__
    if name in PROXIES:
        x, _ = draw(False)
        torch.testing.assert_close(one.get_logits(x), other.get_logits(x))
    torch.manual_seed(5)
    start = (
        [p.clone() for p in type(one)(CLASSES, FEATURES).parameters()] if name in PROXIES else []
    )
    torch.manual_seed(5)
    again = type(other)(CLASSES, FEATURES).parameters() if name in PROXIES else []
    for mine, theirs in zip(start, again, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    x, labels = draw(False)
    one, _ = pair(name)
    exact = one(x, labels)
    rows = x.to(dtype).requires_grad_()
    for indices in (None, miners.BatchHardMiner()(x, labels)):
        value = one(rows, labels, indices)
        value.backward()
        assert value.dtype == dtype and rows.grad is not None and rows.grad.dtype == dtype
    near = {torch.float16: 0.02, torch.bfloat16: 0.1}.get(dtype, 1e-4)
    torch.testing.assert_close(one(rows, labels).double(), exact, rtol=near, atol=near)


def test_autocast_keeps_the_wide_result() -> None:
    x, labels = draw(False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ours.NTXentLoss()(x.bfloat16(), labels)
    assert value.dtype == torch.float32


@pytest.mark.parametrize("miner", [None, "hard", "multi-similarity", "easy"])
@pytest.mark.parametrize(
    "name",
    [
        "ContrastiveLoss",
        "TripletMarginLoss",
        "MultiSimilarityLoss",
        "NTXentLoss",
        "SupConLoss",
        "LiftedStructureLoss",
        "AngularLoss",
        "MarginLoss",
        "CircleLoss",
    ],
)
def test_cross_batch_memory(name: str, miner: str | None) -> None:
    one, other = pair(name)
    picked: tuple[Any, Any] = (None, None) if miner is None else MINERS[miner](other.distance)
    sizes = {"embedding_size": FEATURES, "memory_size": 60}
    plain = losses.CrossBatchMemory(other, miner=picked[1], **sizes)
    candidates = {
        "fused": ours.fuse(losses.CrossBatchMemory(other, miner=picked[1], **sizes)),
        "theirs around ours": losses.CrossBatchMemory(one, miner=picked[0], **sizes),
    }
    for seed in range(4):
        x, labels = draw(False, seed)
        labels = labels.clamp(max=3)  # everybody has a positive besides itself
        expected = plain(x.clone().requires_grad_(), labels)
        for candidate in candidates.values():
            value = candidate(x.clone().requires_grad_(), labels)
            torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.filterwarnings("ignore:DistributedLossWrapper is being used")
def test_wrappers() -> None:
    x, labels = draw(False)
    y, _ = draw(False, 1)
    one, other = pair("NTXentLoss")
    for symmetric in (True, False):
        made = [losses.SelfSupervisedLoss(loss, symmetric=symmetric) for loss in (one, other)]
        assert torch.allclose(made[0](x, y), made[1](x, y))
        assert torch.allclose(ours.fuse(made[1])(x, y), made[1](x, y))
    wrapped = distributed.DistributedLossWrapper(other)
    fused = ours.fuse(wrapped)
    assert isinstance(fused.loss, ours.NTXentLoss) and not isinstance(wrapped.loss, ours.NTXentLoss)
    assert torch.allclose(fused(x, labels), wrapped(x, labels))
    triplet, contrastive = losses.TripletMarginLoss(), losses.ContrastiveLoss()
    many = losses.MultipleLosses([triplet, contrastive], [miners.BatchHardMiner(), None], [1, 0.5])
    fused = ours.fuse(many)
    assert torch.allclose(fused(x, labels), many(x, labels))
    assert "BatchHardMiner" in type(fused.miners[0]).__name__
    assert "MultipleLosses of\n  TripletMarginLoss: fused_triplet_loss" in ours.explain(fused)
    named: Any = losses.MultipleLosses(
        {"a": losses.SupConLoss()}, miners={"a": miners.BatchHardMiner()}
    )
    assert torch.allclose(ours.fuse(named)(x, labels), named(x, labels))


def test_fuse_with_a_miner(caplog: pytest.LogCaptureFixture) -> None:
    x, labels = draw(False)
    loss, miner = losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()
    with caplog.at_level(logging.INFO, "dmlap_kernels"):
        fused = ours.fuse(loss, miner)
    assert "mines inside of the loss" in caplog.text
    assert torch.allclose(fused(x, labels), loss(x, labels, miner(x, labels)))
    with pytest.raises(ValueError, match="indices_tuple must be left out"):
        fused(x, labels, miner(x, labels))
    listed = ours.fuse(losses.ContrastiveLoss(), miners.AngularMiner())
    assert "AngularMiner gives lists" in ours.explain(listed)
    assert listed(x, labels).ndim == 0


def test_fuse_shares_what_is_learned() -> None:
    loss = losses.ProxyAnchorLoss(CLASSES, FEATURES)
    fused = ours.fuse(loss)
    assert fused.proxies is loss.proxies and type(loss) is losses.ProxyAnchorLoss
    assert ours.fuse(fused) is fused


@pytest.mark.parametrize("name", ["TripletMarginLoss", "MarginLoss", "ContrastiveLoss"])
def test_distance_weighted(name: str) -> None:
    """Draws are random: over many of them the means come near."""
    x, labels = draw(False)
    x = x.float()
    loss, miner = getattr(losses, name)(), miners.DistanceWeightedMiner()
    fused = ours.fuse(loss, miner)
    torch.manual_seed(0)
    means = [
        torch.stack([call() for _ in range(150)]).mean()
        for call in (lambda: loss(x, labels, miner(x, labels)), lambda: fused(x, labels))
    ]
    torch.testing.assert_close(*means, rtol=0.1, atol=0.02)


def test_a_miner_is_read_by_anybody() -> None:
    x, labels = draw(False)
    for key in MINERS:
        one, other = MINERS[key](distances.LpDistance())
        lazy, plain = one(x, labels), other(x, labels)
        assert len(lazy) == len(plain) and all(map(torch.equal, lazy, plain))
    lazy = ours.BatchHardMiner()(x, labels)
    x += 1  # the question is no longer that of these rows: what was listed then counts
    assert not lazy.is_of(x, labels, x, labels)


class Half(distances.LpDistance):
    """A distance of one's own."""


def test_refusals_and_handing_over() -> None:
    x, labels = draw(False)
    with pytest.raises(ours.NotFused, match="fused for LpDistance, CosineSimilarity and Dot"):
        ours.ContrastiveLoss(distance=Half())(x, labels)
    with pytest.raises(ours.NotFused, match=r"p=2 and power 1 or 2, got p=1 and power=1"):
        ours.fuse(losses.NTXentLoss(distance=distances.LpDistance(p=1)))
    with pytest.raises(ours.NotFused, match="DotProductSimilarity\\(normalize_embeddings=False"):
        ours.fuse(losses.MarginLoss(distance=DISTANCES["dot"]()))
    with pytest.raises(ours.NotFused, match="loss must be one of AngularLoss"):
        ours.fuse(losses.SphereFaceLoss(CLASSES, FEATURES))
    with pytest.raises(ours.NotFused, match="swap is fused without references"):
        ours.TripletMarginLoss(swap=True)(x, labels, ref_emb=x + 1, ref_labels=labels.clone())
    with pytest.raises(ValueError, match="entry for each label in 0..6, got label 9"):
        ours.ProxyAnchorLoss(CLASSES, FEATURES)(x, labels + (labels == 3) * 6)
    with pytest.raises(TypeError, match="miner must be given to the wrapper"):
        ours.fuse(losses.SelfSupervisedLoss(losses.SupConLoss()), miners.BatchHardMiner())
    loss = losses.ContrastiveLoss(distance=Half())
    fused = ours.fuse(loss, strict=False)
    assert "pytorch-metric-learning computes it" in ours.explain(fused)
    with pytest.warns(UserWarning, match="is computed by pytorch-metric-learning: distances are"):
        assert torch.allclose(fused(x, labels), loss(x, labels))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused(x, labels)


@pytest.mark.parametrize("distance", ["euclidean", "cosine", None])
def test_neighbours_for_their_testers(distance: str | None) -> None:
    pytest.importorskip("faiss")
    x, labels = draw(False)
    y, ref_labels = draw(False, 1)
    search = ours.NearestKNN(DISTANCES[distance]() if distance else None)
    x, y = (torch.nn.functional.normalize(rows).float() for rows in (x, y))
    for refs in ((y, ref_labels), ()):
        found = [
            accuracy_calculator.AccuracyCalculator(
                include=("precision_at_1", "mean_average_precision_at_r"), knn_func=knn
            ).get_accuracy(x, labels, *refs)
            for knn in (search, None)
        ]
        assert found[0] == pytest.approx(found[1])
    search.train(y)
    search.add(x)
    assert search(x, 1)[1].flatten().tolist() == list(range(len(y), len(y) + len(x)))


@pytest.mark.parametrize("miner", [None, "MultiSimilarityMiner"])
def test_their_trainer(miner: str | None) -> None:
    trainers = pytest.importorskip("pytorch_metric_learning.trainers")
    rows, classes = draw(False)
    data = torch.utils.data.TensorDataset(rows.float(), classes)
    weights = []
    for their_losses, their_miners in ((ours.losses, ours.miners), (losses, miners)):
        torch.manual_seed(0)
        trunk = torch.nn.Linear(rows.shape[1], FEATURES)
        before = trunk.weight.detach().clone()
        trainers.MetricLossOnly(
            models={"trunk": trunk},
            optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.1)},
            batch_size=len(rows),
            loss_funcs={"metric_loss": their_losses.MultiSimilarityLoss()},
            mining_funcs={"tuple_miner": getattr(their_miners, miner)()} if miner else {},
            dataset=data,
            data_device=torch.device("cpu"),
            iterations_per_epoch=3,
            dataloader_num_workers=0,
        ).train(num_epochs=2)
        assert not torch.equal(before, trunk.weight)
        weights.append(trunk.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "miner"),
    [
        *(("TripletMarginLoss", key) for key in MINERS if key.startswith(("hard", "triplets"))),
        ("MultiSimilarityLoss", "multi-similarity"),
        ("ContrastiveLoss", "pairs"),
        ("SupConLoss", "everything"),
    ],
)
def test_what_is_never_listed(name: str, miner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = pair(name)
    mine, _ = MINERS[miner](one.distance)
    monkeypatch.setattr(type(mine), "listed", None)
    outcome(one, draw(False), mine)


@pytest.mark.parametrize("name", NAMES)
def test_lists_without_labels(name: str) -> None:
    """Where theirs needs labels, so does ours."""
    x, labels = draw(False)
    indices = miners.BatchHardMiner()(x, labels)
    one, other = pair(name)
    try:
        expected = other(x, None, indices)
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)):
            one(x, None, indices)
        return
    torch.testing.assert_close(one(x, None, indices), expected)
