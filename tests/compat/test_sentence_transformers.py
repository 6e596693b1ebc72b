"""The drop-in classes for sentence-transformers against the originals: values, gradients, training.

The package is in the extra ``test``; without it these tests are skipped.
"""

from __future__ import annotations

import functools
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("sentence_transformers", reason="sentence-transformers is absent")
from sentence_transformers import util
from sentence_transformers.sentence_transformer import losses as originals

from dmlap_kernels.compat import sentence_transformers as fused
from dmlap_kernels.compat.sentence_transformers import guided
from tests.compat.tiny_texts import WORDS, make_encoder, sentences

pytestmark = pytest.mark.filterwarnings("ignore:The (Cached)?MultipleNegatives:DeprecationWarning")

METRIC = originals.BatchHardTripletLossDistanceFunction
METRICS = {
    "euclidean": METRIC.euclidean_distance,
    "sqeuclidean": functools.partial(METRIC.euclidean_distance, squared=True),
    "cosine": METRIC.cosine_distance,
}
DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


class Given(torch.nn.Module):
    """A model whose sentences are their embeddings."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def columns(count: int, batch: int = 9, features: int = 7, **own: Any) -> list[Tensor]:
    """Related columns: each pair is closer than two of the batch."""
    base = rows(batch, features, seed=1, **own)
    return [base + 0.8 * rows(batch, features, seed=2 + i, **own) for i in range(count)]


def results(loss: Any, embeddings: list[Tensor], labels: Tensor | None) -> list[Tensor]:
    leaves = [one.clone().requires_grad_() for one in embeddings]
    value = loss([{"sentence_embedding": one} for one in leaves], labels)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def assert_same(
    name: str, options: dict[str, Any], embeddings: list[Tensor], labels: Tensor | None = None
) -> None:
    ours = results(getattr(fused, name)(Given(), **options), embeddings, labels)
    theirs = results(getattr(originals, name)(Given(), **options), embeddings, labels)
    narrow = embeddings[0].dtype == torch.float32
    tolerance = {"rtol": 2e-4, "atol": 2e-5} if narrow else {"rtol": 1e-8, "atol": 1e-10}
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, **tolerance)


TRIPLETS = [
    *("BatchAllTripletLoss", "BatchHardTripletLoss", "BatchHardSoftMarginTripletLoss"),
    "BatchSemiHardTripletLoss",
]
# Whole classes; rows without a positive; one class, where no row has a negative; one row.
LABELS = {
    "classes": [0, 1, 2, 0, 1, 2, 0, 1, 2, 2],
    "single rows": [0, 1, 2, 0, 3, 4, 0, 5, 5, 6],
    "none alike": list(range(10)),
    "one class": [3] * 10,
    "one row": [3],
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("name", TRIPLETS)
def test_batch_triplets(name: str, kind: str, metric: str) -> None:
    labels = torch.tensor(LABELS[kind])
    options = {"distance_metric": METRICS[metric]}
    if name != "BatchHardSoftMarginTripletLoss":
        options["margin"] = 0.4 if metric == "cosine" else 2.0
    embeddings = rows(len(labels), 6)
    if (name, kind, metric) == ("BatchHardTripletLoss", "one class", "cosine"):
        # There two equal distances cancel, of which the original may name two different rows.
        embeddings = rows(len(labels), 6, seed=3)
    assert_same(name, options, [embeddings], labels)


@pytest.mark.parametrize("name", TRIPLETS)
def test_batch_triplets_at_their_defaults_in_float32(name: str) -> None:
    labels = torch.arange(64)[:, None] % 9
    assert_same(name, {}, [rows(64, 24, dtype=torch.float32)], labels)


def subsets() -> list[tuple[str, ...]]:
    every = range(2 ** len(DIRECTIONS))
    chosen = (tuple(d for i, d in enumerate(DIRECTIONS) if mask >> i & 1) for mask in every)
    return [some for some in chosen if "query_to_doc" in some]


def initials(directions: Any) -> str:
    return "+".join("".join(word[0] for word in d.split("_")) for d in directions)


@pytest.mark.parametrize(
    "hardness", [None, "in_batch_negatives", "hard_negatives", "all_negatives"]
)
@pytest.mark.parametrize("similarity", [util.cos_sim, util.dot_score])
@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize("directions", subsets(), ids=initials)
def test_ranking(directions: Any, negatives: int, similarity: Any, hardness: str | None) -> None:
    """All directions in one softmax, with every number of hard negatives and every weighting."""
    options = {
        "directions": directions,
        "similarity_fct": similarity,
        "scale": 20.0 if similarity is util.cos_sim else 0.7,
        "hardness_mode": hardness,
        "hardness_strength": 5.0 if hardness else 0.0,
    }
    assert_same("MultipleNegativesRankingLoss", options, columns(2 + negatives))


@pytest.mark.parametrize("hardness", [None, "in_batch_negatives"])
@pytest.mark.parametrize("negatives", [0, 2])
def test_ranking_with_a_softmax_a_direction(negatives: int, hardness: str | None) -> None:
    options = {
        "directions": ("query_to_doc", "doc_to_query"),
        "partition_mode": "per_direction",
        "hardness_mode": hardness,
        "hardness_strength": 5.0 if hardness else 0.0,
    }
    assert_same("MultipleNegativesRankingLoss", options, columns(2 + negatives))


@pytest.mark.parametrize("negatives", [0, 1])
def test_symmetric_ranking(negatives: int) -> None:
    assert_same("MultipleNegativesSymmetricRankingLoss", {}, columns(2 + negatives))


@pytest.mark.parametrize("directions", [DIRECTIONS[:1], DIRECTIONS], ids=initials)
def test_ranking_in_float32_where_similarities_are_far_apart(directions: Any) -> None:
    """A softmax whose largest exponent is 100 and whose smallest is -100."""
    near = columns(3, 40, 24, dtype=torch.float32)
    options = {"scale": 100.0, "directions": directions}
    assert_same("MultipleNegativesRankingLoss", options, near)
    opposite = [near[0], -near[1], near[2]]
    assert_same("MultipleNegativesRankingLoss", options, opposite)


def test_ranking_by_euclidean_similarity() -> None:
    options = {"similarity_fct": util.euclidean_sim, "scale": 2.0, "directions": DIRECTIONS[:3]}
    assert_same("MultipleNegativesRankingLoss", options, columns(3))


def test_ranking_of_one_pair() -> None:
    assert_same("MultipleNegativesRankingLoss", {}, columns(2, batch=1))


def test_a_learned_scale() -> None:
    """Where the original leaves pairs out, by -inf, its own derivative is not a number."""
    found = []
    for module in (fused, originals):
        scale = torch.tensor(15.0, dtype=torch.float64, requires_grad=True)
        options: dict[str, Any] = {"hardness_mode": "all_negatives", "hardness_strength": 5.0}
        loss = module.MultipleNegativesRankingLoss(
            Given(), scale=scale, directions=DIRECTIONS[::2], **options
        )
        value = loss([{"sentence_embedding": one} for one in columns(3)], None)
        found.append(torch.autograd.grad(value, scale)[0])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


def test_ranking_keeps_no_matrix() -> None:
    """The largest tensor that autograd keeps is of the size of the embeddings."""
    kept: list[int] = []
    leaves = [one.requires_grad_() for one in columns(2, 512, 16, dtype=torch.float32)]
    for options in ({}, {"directions": DIRECTIONS}):
        loss = fused.MultipleNegativesRankingLoss(Given(), **options)
        pack = lambda t: kept.append(t.numel()) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss([{"sentence_embedding": one} for one in leaves], None)
    assert max(kept) <= 3 * 512 * 17


@pytest.mark.parametrize("labels", [[0, 1] * 6, [1] * 12, [0] * 12], ids=["both", "ones", "zeros"])
@pytest.mark.parametrize("metric", ["EUCLIDEAN", "COSINE_DISTANCE", "MANHATTAN"])
def test_online_contrastive(metric: str, labels: list[int]) -> None:
    options = {"distance_metric": getattr(originals.SiameseDistanceMetric, metric), "margin": 1.2}
    assert_same("OnlineContrastiveLoss", options, columns(2, 12), torch.tensor(labels))


def test_online_contrastive_leaves_other_labels_out() -> None:
    labels = torch.tensor([0, 1, 2] * 4)
    loss = fused.OnlineContrastiveLoss(Given())
    features = [{"sentence_embedding": one} for one in columns(2, 12)]
    with pytest.warns(UserWarning, match="neither 0 nor 1"):
        value = loss(features, labels)
    theirs = originals.OnlineContrastiveLoss(Given())
    theirs._checked_labels = True
    torch.testing.assert_close(value, theirs(features, labels))
    with pytest.raises(ValueError, match="takes one label a pair, got 3 labels for 12 pairs"):
        loss(features, labels[:3])


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """One to train, one of the same tokens as a guide, and one of other tokens."""
    folder = tmp_path_factory.mktemp("encoders")
    return (
        make_encoder(folder / "trained"),
        make_encoder(folder / "guide", seed=1, features=16),
        make_encoder(folder / "other", seed=2, features=16, words=WORDS[::-1]),
    )


def texts(count: int, batch: int = 10) -> list[list[str]]:
    """Columns of which the first two share most words."""
    found = [sentences(batch, seed=i) for i in range(count)]
    found[1] = [f"{one} {two.split()[0]}" for one, two in zip(found[0], found[1], strict=True)]
    return found


def text_results(loss: Any, encoder: Any, batch: list[list[str]], labels: Any) -> list[Tensor]:
    """The value, and the gradients of all weights."""
    features = [encoder.preprocess(column) for column in batch]
    encoder.zero_grad()
    value = loss(features, labels)
    value.backward()
    return [value.detach(), *(p.grad.clone() for p in encoder.parameters() if p.grad is not None)]


GUIDED: dict[str, dict[str, Any]] = {
    "defaults": {},
    "anchors only": {"contrast_positives": False, "margin": 0.05},
    "positives only": {"contrast_anchors": False, "margin": -0.02},
    "pairs only": {"contrast_anchors": False, "contrast_positives": False, "temperature": 0.1},
    "relative": {"margin_strategy": "relative", "margin": 0.03},
}


@pytest.mark.parametrize("guide", [1, 2], ids=["same tokens", "other tokens"])
@pytest.mark.parametrize("negatives", [0, 1, 2])
@pytest.mark.parametrize("name", ["GISTEmbedLoss", "CachedGISTEmbedLoss"])
@pytest.mark.parametrize("options", GUIDED.values(), ids=GUIDED)
def test_guided(
    options: Any,
    name: str,
    negatives: int,
    guide: int,
    encoders: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With blocks of three rows."""
    trained = encoders[0].double()
    monkeypatch.setattr(guided, "BLOCK_ELEMENTS", 3 * 10 * (2 + negatives))
    if name.startswith("Cached"):
        options = {"mini_batch_size": 4, **options}
    made = [
        getattr(module, name)(trained, encoders[guide], **options) for module in (fused, originals)
    ]
    if name == "GISTEmbedLoss" and negatives == 2:
        with pytest.raises(ValueError, match=r"takes anchors, .* got 4 column"):
            text_results(made[0], trained, texts(4), None)
        return
    ours, theirs = (text_results(one, trained, texts(2 + negatives), None) for one in made)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-8)


def test_equal_texts_are_no_false_negatives(encoders: Any) -> None:
    """Row 3 of the positives is row 2 again, for the guide too: products of the same rows may round
    differently, which must not count as more similar than the positive."""
    guides = columns(2, 37, 384, dtype=torch.float32)
    guides[1][3] = guides[1][2]
    for margin_strategy in ("absolute", "relative"):
        ours, theirs = (
            module.CachedGISTEmbedLoss(*encoders[:2], 1.0, margin_strategy=margin_strategy)
            for module in (fused, originals)
        )
        reps = [[one] for one in columns(2, 37, 16)]
        values = [one.calculate_loss(reps, [[g] for g in guides]) for one in (ours, theirs)]
        torch.testing.assert_close(*values)


def test_a_guide_drops_something(encoders: Any) -> None:
    """Otherwise the test above would compare nothing: one more margin is another number."""
    trained, guide, _ = encoders
    values = [
        text_results(fused.GISTEmbedLoss(trained, guide, margin=m), trained, texts(3), None)[0]
        for m in (-2.0, 0.0, 0.3)
    ]
    assert values[0] > values[1] > values[2]


CACHED = ["CachedMultipleNegativesRankingLoss", "CachedMultipleNegativesSymmetricRankingLoss"]


@pytest.mark.parametrize("name", CACHED)
def test_cached_ranking(name: str, encoders: Any) -> None:
    trained = encoders[0].double()
    ours, theirs = (
        text_results(getattr(module, name)(trained, mini_batch_size=4), trained, texts(2), None)
        for module in (fused, originals)
    )
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        loss = getattr(fused, name)(trained, mini_batch_size=4)
        value = loss([trained.preprocess(column) for column in texts(2)], None)
    torch.testing.assert_close(value, ours[0])


def test_an_option_of_a_cached_loss_reaches_it(encoders: Any) -> None:
    loss = fused.CachedMultipleNegativesRankingLoss(encoders[0])
    assert isinstance(loss.loss, fused.MultipleNegativesRankingLoss)
    loss.scale = 5.0
    assert loss.loss.scale == 5.0 and loss.temperature == 0.2


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("MultipleNegativesRankingLoss", 3),
        ("CachedMultipleNegativesRankingLoss", 3),
        ("BatchHardTripletLoss", 1),
        ("OnlineContrastiveLoss", 2),
        ("TripletLoss", 3),
    ],
)
def test_matryoshka_around_them(name: str, count: int, encoders: Any) -> None:
    trained = encoders[0].double()
    labels = torch.tensor([0, 1] * 5)
    found = []
    for module in (fused, originals):
        inner = getattr(module, name)(trained)
        loss = module.MatryoshkaLoss(trained, inner, [32, 16, 8], [1, 2, 3])
        batch = texts(max(count, 2))[:count]
        found.append(text_results(loss, trained, batch, labels))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("one", fused.FUSED, ids=lambda one: one.__name__)
def test_they_are_the_originals_but_for_the_computation(one: Any, encoders: Any) -> None:
    """Constructor, defaults, configuration, citation and place in a class hierarchy."""
    original = getattr(originals, one.__name__)
    assert issubclass(one, original)
    mine, theirs = (inspect.signature(c).parameters.values() for c in (one, original))
    assert [(p.name, p.kind, p.default) for p in mine] == [
        (p.name, p.kind, p.default) for p in theirs
    ]
    models = encoders[:2] if "GIST" in one.__name__ else encoders[:1]
    ours, other = one(*models), original(*models)
    assert ours.get_config_dict() == other.get_config_dict()
    assert getattr(ours, "citation", None) == getattr(other, "citation", None)
    assert list(ours.state_dict()) == list(other.state_dict())


def test_the_module_stands_in_for_theirs() -> None:
    assert set(fused.__all__) == set(originals.__all__)
    replaced = {one.__name__ for one in fused.FUSED}
    for name in originals.__all__:
        same = getattr(fused, name) is getattr(originals, name)
        assert same == (name not in replaced), name


def test_what_they_refuse() -> None:
    """When they are made, and where an option is changed later, when they run."""
    for name in TRIPLETS:
        with pytest.raises(ValueError, match=rf"{name} computes .* got distance_metric=<function"):
            getattr(fused, name)(Given(), distance_metric=lambda x: torch.cdist(x, x, p=1))
    with pytest.raises(ValueError, match="computes util.cos_sim, .* got similarity_fct=<function"):
        fused.MultipleNegativesRankingLoss(Given(), similarity_fct=util.manhattan_sim)
    with pytest.raises(ValueError, match="doc_to_doc and hardness weighting for"):
        fused.MultipleNegativesRankingLoss(
            Given(), similarity_fct=util.euclidean_sim, directions=DIRECTIONS
        )
    loss = fused.MultipleNegativesRankingLoss(Given())
    loss.similarity_fct = util.manhattan_sim
    with pytest.raises(ValueError, match="got similarity_fct"):
        loss([{"sentence_embedding": one} for one in columns(2)], None)
    with pytest.raises(ValueError, match=r"at least one of documents, got 1 column"):
        loss([{"sentence_embedding": columns(1)[0]}], None)
    with pytest.raises(ValueError, match="one label for each row"):
        fused.BatchHardTripletLoss(Given())([{"sentence_embedding": rows(4, 3)}], torch.arange(3))


def test_without_the_package_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("dmlap_kernels.compat")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match="sentence"):
        import dmlap_kernels.compat.sentence_transformers  # noqa: F401


# A column of texts, or several, and labels where the loss takes them.
TRAINED: dict[str, tuple[int, bool, dict[str, Any]]] = {
    "BatchHardTripletLoss": (1, True, {"margin": 1.0}),
    "MultipleNegativesRankingLoss": (3, False, {"directions": DIRECTIONS}),
    "CachedMultipleNegativesRankingLoss": (2, False, {"mini_batch_size": 4}),
    "GISTEmbedLoss": (2, False, {}),
}


@pytest.mark.parametrize("name", TRAINED)
def test_training_logs_the_same_losses(name: str, encoders: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is absent")
    pytest.importorskip("accelerate", reason="accelerate is absent")
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )

    count, labelled, options = TRAINED[name]
    table: dict[str, Any] = dict(zip("abc", texts(max(count, 2), 40)[:count], strict=False))
    if labelled:
        table["label"] = [i % 4 for i in range(40)]
    logged = []
    for module in (fused, originals):
        encoder = make_encoder(tmp_path / "encoder")
        guides = encoders[1:2] if "GIST" in name else ()
        arguments = SentenceTransformerTrainingArguments(
            str(tmp_path / "run"),
            per_device_train_batch_size=8,
            max_steps=8,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = SentenceTransformerTrainer(
            encoder,
            arguments,
            train_dataset=datasets.Dataset.from_dict(table),
            loss=getattr(module, name)(encoder, *guides, **options),
        )
        trainer.train()
        logged.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
        card = encoder.model_card_data
        card.set_losses([trainer.loss])
        assert f"loss:{name}" in card.tags
    assert len(logged[0]) == 8 and logged[0][0] != logged[0][-1]
    torch.testing.assert_close(*map(torch.tensor, logged), rtol=1e-3, atol=1e-4)


_RANKS = """
import os, sys
from pathlib import Path
import torch
import torch.distributed as dist
from sentence_transformers.sentence_transformer import losses as originals
from dmlap_kernels.compat import sentence_transformers as fused
from tests.compat.tiny_texts import make_encoder

rank = int(os.environ["RANK"])
# Before the processes know of each other: afterwards transformers saves on one of them alone.
encoder = make_encoder(Path(sys.argv[1]) / f"encoder{rank}")
dist.init_process_group("gloo", f"file://{sys.argv[1]}/store", rank=rank, world_size=2)
g = torch.Generator().manual_seed(rank)
columns = [torch.randn(5, 6, generator=g, dtype=torch.float64) for _ in range(3)]
guides = [torch.randn(5, 8, generator=g, dtype=torch.float64) for _ in range(3)]
class Given(torch.nn.Module):
    def forward(self, features):
        return features

def found(module, name, options):
    leaves = [one.clone().requires_grad_() for one in columns]
    if name == "CachedGISTEmbedLoss":
        loss = module.CachedGISTEmbedLoss(encoder, encoder, **options)
        value = loss.calculate_loss([[one] for one in leaves], [[one] for one in guides])
    else:
        loss = getattr(module, name)(Given(), **options)
        value = loss([{"sentence_embedding": one} for one in leaves], None)
    value.backward()
    return value.detach(), *(leaf.grad for leaf in leaves)

every = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
hard = {"hardness_mode": "all_negatives", "hardness_strength": 5.0}
for name, options in (
    ("MultipleNegativesRankingLoss", {}),
    ("MultipleNegativesRankingLoss", {"directions": every}),
    ("MultipleNegativesRankingLoss", hard),
    ("CachedGISTEmbedLoss", {"temperature": 0.1}),
):
    options["gather_across_devices"] = True
    ours, theirs = (found(module, name, options) for module in (fused, originals))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)
dist.destroy_process_group()
"""


def test_embeddings_of_two_processes(tmp_path: Path) -> None:
    """``gather_across_devices``: values, and gradients that return to their process."""
    script = tmp_path / "ranks.py"
    script.write_text(_RANKS)
    places = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, script, tmp_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **places, "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(outputs)
