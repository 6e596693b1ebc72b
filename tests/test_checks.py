"""Bad input: the sentence names the argument, what was given and what is accepted.

Every backend's kernels are replaced by one that fails the test, so that nothing may run before the
error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dmlap_kernels import fused_contrastive_loss, fused_triplet_loss, hard_classes, nearest
from dmlap_kernels.backends.registry import backends

X = torch.zeros(6, 4)
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
Y = torch.zeros(5, 4)
REF_LABELS = torch.tensor([0, 0, 1, 1, 2])
META = torch.device("meta")
LOSSES = {"triplet": fused_triplet_loss, "contrastive": fused_contrastive_loss}


@pytest.fixture(autouse=True)
def no_kernel_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a kernel ran before the input was refused")

    for backend in backends().values():
        for name in ("forward", "backward", "nearest", "hard_classes"):
            monkeypatch.setattr(type(backend), name, refuse)


# what is changed in a good call, the error, and what the sentence must hold
BAD_TENSORS: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "list": ({"embeddings": [[1.0]]}, TypeError, ["embeddings", "list", "Tensor"]),
    "none": ({"embeddings": None}, TypeError, ["embeddings", "NoneType", "Tensor"]),
    "rank-1": ({"embeddings": torch.zeros(6)}, ValueError, ["embeddings", r"\(6,\)", "features"]),
    "rank-3": (
        {"embeddings": torch.zeros(6, 4, 1)},
        ValueError,
        ["embeddings", r"\(6, 4, 1\)", "features"],
    ),
    "no-features": ({"embeddings": torch.zeros(6, 0)}, ValueError, ["embeddings", r"\(6, 0\)"]),
    "integers": (
        {"embeddings": torch.zeros(6, 4, dtype=torch.int64)},
        TypeError,
        ["embeddings", "int64", "float32", "bfloat16"],
    ),
    "complex": (
        {"embeddings": torch.zeros(6, 4, dtype=torch.complex64)},
        TypeError,
        ["embeddings", "complex64", "float32"],
    ),
    "labels-list": ({"labels": [0, 0, 1, 1, 2, 2]}, TypeError, ["labels", "list", "Tensor"]),
    "labels-float": ({"labels": LABELS.float()}, TypeError, ["labels", "float32", "integer"]),
    "labels-bool": ({"labels": LABELS.bool()}, TypeError, ["labels", "bool", "integer"]),
    "labels-short": (
        {"labels": LABELS[:5]},
        ValueError,
        ["labels", r"\(5,\)", r"\(6,\)", "embeddings"],
    ),
    "labels-rank": (
        {"labels": LABELS[:, None]},
        ValueError,
        ["labels", r"\(6, 1\)", r"\(6,\)"],
    ),
    "labels-device": (
        {"labels": LABELS.to(META)},
        ValueError,
        ["labels", "meta", "cpu", "device"],
    ),
    "ref-labels-missing": ({"ref_embeddings": Y}, ValueError, ["ref_labels", "ref_embeddings"]),
    "ref-embeddings-missing": (
        {"ref_labels": REF_LABELS},
        ValueError,
        ["ref_embeddings", "ref_labels"],
    ),
    "ref-features": (
        {"ref_embeddings": torch.zeros(5, 3), "ref_labels": REF_LABELS},
        ValueError,
        ["ref_embeddings", r"\(5, 3\)", "4", "embeddings"],
    ),
    "ref-rank": (
        {"ref_embeddings": torch.zeros(5), "ref_labels": REF_LABELS},
        ValueError,
        ["ref_embeddings", r"\(5,\)"],
    ),
    "ref-dtype": (
        {"ref_embeddings": Y.double(), "ref_labels": REF_LABELS},
        TypeError,
        ["ref_embeddings", "float64", "float32"],
    ),
    "ref-device": (
        {"ref_embeddings": Y.to(META), "ref_labels": REF_LABELS.to(META)},
        ValueError,
        ["ref_embeddings", "meta", "cpu"],
    ),
    "ref-labels-length": (
        {"ref_embeddings": Y, "ref_labels": LABELS},
        ValueError,
        ["ref_labels", r"\(6,\)", r"\(5,\)", "ref_embeddings"],
    ),
    "ref-labels-float": (
        {"ref_embeddings": Y, "ref_labels": REF_LABELS.float()},
        TypeError,
        ["ref_labels", "float32", "integer"],
    ),
}
BAD_OPTIONS: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "distance": (
        {"distance": "manhattan"},
        ValueError,
        ["distance", "manhattan", "euclidean", "sqeuclidean", "cosine"],
    ),
    "distance-none": ({"distance": None}, ValueError, ["distance", "None", "euclidean"]),
    "distance-list": ({"distance": ["cosine"]}, (ValueError, TypeError), ["distance", "cosine"]),
    "reduction": (
        {"reduction": "average"},
        ValueError,
        ["reduction", "average", "mean", "mean_nonzero", "sum", "none"],
    ),
    "reduction-none": ({"reduction": None}, ValueError, ["reduction", "None", "'none'"]),
    "backend": ({"backend": "tpu"}, ValueError, ["backend", "tpu", "auto", "cpu", "torch", "cuda"]),
    "precision": (
        {"precision": "exact"},
        ValueError,
        ["precision", "exact", "highest", "high", "medium"],
    ),
    "normalize": ({"normalize": "yes"}, TypeError, ["normalize", "yes", "True", "False"]),
    "return-stats": (
        {"return_stats": "all"},
        ValueError,
        ["return_stats", "all", "class_scores", "True", "False"],
    ),
    "return-stats-number": (
        {"return_stats": 2},
        (ValueError, TypeError),
        ["return_stats", "2", "class_scores"],
    ),
}
OWN_OPTIONS: dict[str, dict[str, tuple[dict[str, Any], type[Exception], list[str]]]] = {
    "triplet": {
        "margin-text": ({"margin": "0.2"}, TypeError, ["margin", "0.2", "number"]),
        "margin-none": ({"margin": None}, TypeError, ["margin", "None", "number"]),
        "margin-nan": ({"margin": float("nan")}, ValueError, ["margin", "nan", "finite"]),
        "margin-bool": ({"margin": True}, TypeError, ["margin", "True", "number"]),
        "mining": (
            {"mining": "easy"},
            ValueError,
            ["mining", "easy", "'hard'", "'semihard'", "'all'", "'distance_weighted'"],
        ),
        "cutoff-alone": ({"cutoff": 0.4}, ValueError, ["cutoff", "0.4", "distance_weighted"]),
        "seed-alone": ({"seed": 1}, ValueError, ["seed", "1", "distance_weighted"]),
        "mining-none": ({"mining": None}, ValueError, ["mining", "None", "hard"]),
        "smooth": ({"smooth": 1}, TypeError, ["smooth", "1", "True", "False"]),
        "swap": ({"swap": "no"}, TypeError, ["swap", "no", "True", "False"]),
    },
    "contrastive": {
        "pos-margin": ({"pos_margin": "0"}, TypeError, ["pos_margin", "0", "number"]),
        "neg-margin": ({"neg_margin": [1.0]}, TypeError, ["neg_margin", "1.0", "number"]),
        "neg-margin-inf": (
            {"neg_margin": float("inf")},
            ValueError,
            ["neg_margin", "inf", "finite"],
        ),
        "squared": ({"squared": None}, TypeError, ["squared", "None", "True", "False"]),
    },
}
BAD_LOSS_CALLS = [
    pytest.param(loss, *row, id=f"{loss}-{name}")
    for loss in LOSSES
    for name, row in (BAD_TENSORS | BAD_OPTIONS | OWN_OPTIONS[loss]).items()
]
BAD_NEAREST: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "queries-list": ({"queries": [1.0]}, TypeError, ["queries", "list", "Tensor"]),
    "queries-rank": ({"queries": torch.zeros(6)}, ValueError, ["queries", r"\(6,\)"]),
    "queries-dtype": (
        {"queries": torch.zeros(6, 4, dtype=torch.int32)},
        TypeError,
        ["queries", "int32", "float32"],
    ),
    "references-list": ({"references": [1.0]}, TypeError, ["references", "list", "Tensor"]),
    "references-features": (
        {"references": torch.zeros(5, 3)},
        ValueError,
        ["references", r"\(5, 3\)", "4", "queries"],
    ),
    "references-dtype": (
        {"references": Y.half()},
        TypeError,
        ["references", "float16", "float32"],
    ),
    "references-device": ({"references": Y.to(META)}, ValueError, ["references", "meta", "cpu"]),
    "k-zero": ({"k": 0}, ValueError, ["k ", "0", r"1\.\.5"]),
    "k-negative": ({"k": -1}, ValueError, ["k ", "-1", r"1\.\.5"]),
    "k-self": ({"k": 6}, ValueError, ["k ", "6", r"1\.\.5"]),
    "k-refs": ({"references": Y, "k": 6}, ValueError, ["k ", "6", r"1\.\.5", "references"]),
    "k-float": ({"k": 1.0}, TypeError, ["k ", "1.0", "integer"]),
    "k-bool": ({"k": True}, TypeError, ["k ", "True", "integer"]),
    "distance": ({"distance": "dot"}, ValueError, ["distance", "dot", "cosine"]),
    "normalize": ({"normalize": 1}, TypeError, ["normalize", "1", "True"]),
    "backend": ({"backend": "gpu"}, ValueError, ["backend", "gpu", "torch"]),
}
BAD_CLASSES: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "rows": ({"representatives": 3}, TypeError, ["representatives", "int", "Tensor"]),
    "rank": ({"representatives": X[0]}, ValueError, ["representatives", r"\(4,\)"]),
    "labels": ({"labels": LABELS[:3]}, ValueError, ["labels", r"\(3,\)", r"\(6,\)"]),
    "labels-dtype": ({"labels": LABELS.double()}, TypeError, ["labels", "float64", "integer"]),
    "k-zero": ({"k": 0}, ValueError, ["k ", "0", r"1\.\.2"]),
    "k-all": ({"k": 3}, ValueError, ["k ", "3", r"1\.\.2", "class"]),
    "k-text": ({"k": "2"}, TypeError, ["k ", "2", "integer"]),
    "margin": ({"margin": "1"}, TypeError, ["margin", "1", "number"]),
    "margin-nan": ({"margin": float("nan")}, ValueError, ["margin", "nan", "finite"]),
    "distance": ({"distance": "l2"}, ValueError, ["distance", "l2", "euclidean"]),
    "backend": ({"backend": None}, ValueError, ["backend", "None", "torch"]),
}


def assert_refused(
    function: Callable[..., Any],
    arguments: dict[str, Any],
    error: type[Exception],
    words: list[str],
) -> None:
    with pytest.raises(error) as caught:
        function(**arguments)
    message = str(caught.value)
    for word in words:
        assert re.search(word, message), f"{word!r} is missing in: {message}"
    assert "\n" not in message


@pytest.mark.parametrize(("loss", "change", "error", "words"), BAD_LOSS_CALLS)
def test_losses(
    loss: str, change: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    good = {"embeddings": X, "labels": LABELS}
    assert_refused(LOSSES[loss], good | change, error, words)


@pytest.mark.parametrize(("change", "error", "words"), BAD_NEAREST.values(), ids=BAD_NEAREST.keys())
def test_nearest(change: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    assert_refused(nearest, {"queries": X} | change, error, words)


@pytest.mark.parametrize(("change", "error", "words"), BAD_CLASSES.values(), ids=BAD_CLASSES.keys())
def test_hard_classes(change: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    good = {"representatives": X, "labels": LABELS, "k": 1}
    assert_refused(hard_classes, good | change, error, words)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("option", ["margins", "temperature"])
def test_unknown_keywords(loss: str, option: str) -> None:
    with pytest.raises(TypeError, match=option):
        LOSSES[loss](X, LABELS, **{option: 1.0})


def test_nearest_without_any_candidate() -> None:
    with pytest.raises(ValueError, match="k "):
        nearest(X[:1])
    with pytest.raises(ValueError, match="k "):
        nearest(X, Y[:0])


def test_a_backend_that_cannot_run_says_why() -> None:
    for name, backend in backends().items():
        reason = backend.unavailable()
        if reason is None:
            continue
        with pytest.raises(RuntimeError) as caught:
            fused_triplet_loss(X, LABELS, backend=name)
        assert name in str(caught.value) and reason in str(caught.value)


def test_backend_for_another_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the backend and the device at fault."""
    backend = backends()["cpu"]
    monkeypatch.setattr(type(backend), "unavailable", lambda self: None)
    with pytest.raises(ValueError, match=r"cpu.*meta|meta.*cpu"):
        fused_triplet_loss(X.to(META), LABELS.to(META), backend="cpu")
