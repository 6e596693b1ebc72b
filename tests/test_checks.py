"""Bad input: the sentence names the argument, what was given and what is accepted.

Every backend's kernels are replaced by one that fails the test, so that nothing may run before the
error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import dmlap_kernels
from dmlap_kernels import fused_triplet_loss, hard_classes, nearest
from dmlap_kernels.backends.registry import backends
from dmlap_kernels.memory import CrossBatchMemory
from tests.losses.losses_table import ALL, FUNCTIONS

X = torch.zeros(6, 4)
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
Y = torch.zeros(5, 4)
REF_LABELS = torch.tensor([0, 0, 1, 1, 2])
META = torch.device("meta")
Row = tuple[dict[str, Any], type[Exception] | tuple[type[Exception], ...], list[str]]


@pytest.fixture(autouse=True)
def no_kernel_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a kernel ran before the input was refused")

    for backend in backends().values():
        for name in ("forward", "backward", "nearest", "hard_classes"):
            monkeypatch.setattr(type(backend), name, refuse)


# what is changed in a good call, the error, and what the sentence must hold
BAD_TENSORS: dict[str, Row] = {
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
    "sparse": ({"embeddings": X.to_sparse()}, TypeError, ["embeddings", "dense", "sparse_coo"]),
    "mkldnn": ({"embeddings": X.to_mkldnn()}, TypeError, ["embeddings", "dense", "mkldnn"]),
    "labels-fraction": ({"labels": LABELS / 4}, ValueError, ["labels", "whole", r"0\.25"]),
    "labels-nan": ({"labels": LABELS * torch.nan}, ValueError, ["labels", "whole", "nan"]),
    "labels-complex": ({"labels": LABELS + 0j}, TypeError, ["labels", "complex64", "integer"]),
    "labels-sparse": ({"labels": LABELS.to_sparse()}, TypeError, ["labels", "dense", "sparse"]),
    "labels-short": (
        {"labels": LABELS[:5]},
        ValueError,
        ["labels", r"\(5,\)", r"\(6,\)", "embeddings"],
    ),
    "labels-rank": (
        {"labels": LABELS.reshape(2, 3)},
        ValueError,
        ["labels", r"\(2, 3\)", r"\(6,\)"],
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
        {"ref_embeddings": Y, "ref_labels": REF_LABELS / 4},
        ValueError,
        ["ref_labels", "whole", r"0\.25"],
    ),
}
BAD_SELF_INDEX: dict[str, Row] = {
    "self-index-alone": (
        {"self_index": LABELS},
        ValueError,
        ["self_index", "without ref_embeddings"],
    ),
    "self-index-large": (
        {"ref_embeddings": Y, "ref_labels": REF_LABELS, "self_index": LABELS + 3},
        ValueError,
        ["self_index", r"-1\.\.4", "got 5"],
    ),
    "self-index-negative": (
        {"ref_embeddings": Y, "ref_labels": REF_LABELS, "self_index": LABELS - 2},
        ValueError,
        ["self_index", r"-1\.\.4", "got -2"],
    ),
    "self-index-short": (
        {"ref_embeddings": Y, "ref_labels": REF_LABELS, "self_index": LABELS[:4]},
        ValueError,
        ["self_index", r"\(4,\)", r"\(6,\)"],
    ),
}
PROXIES: dict[str, Any] = {"proxies": Y, "proxy_labels": REF_LABELS}
# Rows of BAD_TENSORS about references do not concern proxies.
BAD_PROXIES: dict[str, Row] = {
    **{name: row for name, row in BAD_TENSORS.items() if not name.startswith("ref")},
    "proxies-list": ({"proxies": [[1.0]]}, TypeError, ["proxies", "list", "Tensor"]),
    "proxies-none": ({"proxies": None}, TypeError, ["proxies", "NoneType", "Tensor"]),
    "proxies-rank": ({"proxies": torch.zeros(5)}, ValueError, ["proxies", r"\(5,\)"]),
    "proxies-features": (
        {"proxies": torch.zeros(5, 3)},
        ValueError,
        ["proxies", r"\(5, 3\)", "4", "embeddings"],
    ),
    "proxies-dtype": ({"proxies": Y.long()}, TypeError, ["proxies", "int64", "float32"]),
    "proxies-device": (
        {"proxies": Y.to(META), "proxy_labels": REF_LABELS.to(META)},
        ValueError,
        ["proxies", "meta", "cpu"],
    ),
    "proxy-labels-length": (
        {"proxy_labels": LABELS},
        ValueError,
        ["proxy_labels", r"\(6,\)", r"\(5,\)", "proxies"],
    ),
    "proxy-labels-float": (
        {"proxy_labels": REF_LABELS / 4},
        ValueError,
        ["proxy_labels", "whole", r"0\.25"],
    ),
    "proxy-labels-device": (
        {"proxy_labels": REF_LABELS.to(META)},
        ValueError,
        ["proxy_labels", "meta", "cpu"],
    ),
}
BAD_OPTIONS: dict[str, Row] = {
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
NUMBER, POSITIVE = "finite", "greater than 0"


def bad_numbers(name: str, bound: str) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for bad in ("0.2", True, [1.0]):
        words = [name, "number", re.escape(repr(bad))]
        rows[f"{name}-{bad!r}"] = ({name: bad}, TypeError, words)
    for bad in (math.nan, math.inf, *((0.0, -1.0) if bound == POSITIVE else ())):
        rows[f"{name}-{bad}"] = ({name: bad}, ValueError, [name, bound, str(bad)])
    return rows


def bad_calls(loss: str) -> dict[str, Row]:
    """By the row of the loss: its distances and numbers; and what only it refuses."""
    row = FUNCTIONS[loss]
    rows = (BAD_PROXIES if row.proxies else BAD_TENSORS | BAD_SELF_INDEX) | BAD_OPTIONS
    if row.distances:
        accepted = [repr(name) for name in row.distances]
        refused = [name for name in ALL if name not in row.distances]
        for bad in ("manhattan", None, ["cosine"], *refused):
            error = (ValueError, TypeError)
            rows[f"distance-{bad}"] = ({"distance": bad}, error, ["distance", *accepted])
        words = ["normalize", "yes", "True", "False"]
        rows["normalize"] = ({"normalize": "yes"}, TypeError, words)
    for name in row.numbers:
        rows |= bad_numbers(name, POSITIVE if name in row.positive else NUMBER)
    return rows | OWN.get(loss, {})


DRAWN = {"mining": "distance_weighted"}
BAD_HARDNESS: Row = ({"hardness": -1.0}, ValueError, ["hardness", "at least 0", "-1.0"])
# What only one loss refuses.
OWN: dict[str, dict[str, Row]] = {
    "triplet": {
        "margin-None": ({"margin": None}, TypeError, ["margin", "None", "number"]),
        "mining": (
            {"mining": "easy"},
            ValueError,
            ["mining", "easy", "'hard'", "'semihard'", "'all'", "'distance_weighted'"],
        ),
        "mining-none": ({"mining": None}, ValueError, ["mining", "None", "hard"]),
        "smooth": ({"smooth": 1}, TypeError, ["smooth", "1", "True", "False"]),
        "swap": ({"swap": "no"}, TypeError, ["swap", "no", "True", "False"]),
        "cutoff-alone": ({"cutoff": 0.4}, ValueError, ["cutoff", "0.4", "distance_weighted"]),
        "nonzero-alone": (
            {"nonzero_loss_cutoff": 1.0, "mining": "all"},
            ValueError,
            ["nonzero_loss_cutoff", "1.0", "'all'", "distance_weighted"],
        ),
        "seed-alone": ({"seed": 1}, ValueError, ["seed", "1", "distance_weighted"]),
        "seed-float": ({"seed": 1.0, **DRAWN}, TypeError, ["seed", "1.0", "integer"]),
        "seed-below": ({"seed": -1, **DRAWN}, ValueError, ["seed", "-1", "0"]),
        "seed-beyond": ({"seed": 2**53, **DRAWN}, ValueError, ["seed", str(2**53), "2.53"]),
        "cutoff": ({"cutoff": -0.1, **DRAWN}, ValueError, ["cutoff", "-0.1", "at least 0"]),
        "cutoff-order": (
            {"cutoff": 1.4, **DRAWN},
            ValueError,
            ["nonzero_loss_cutoff", "1.4", "greater than 1.4"],
        ),
        "drawn-normalize": ({"normalize": 1, **DRAWN}, TypeError, ["normalize", "1", "True"]),
    },
    "contrastive": {
        "squared": ({"squared": None}, TypeError, ["squared", "None", "True", "False"])
    },
    "margin": {
        "beta-shape": ({"beta": X}, ValueError, ["beta", r"\(6, 4\)", "classes"]),
        "beta-empty": ({"beta": X[0, :0]}, ValueError, ["beta", r"\(0,\)", "classes"]),
        "beta-dtype": ({"beta": LABELS}, TypeError, ["beta", "int64", "floating"]),
        "beta-device": (
            {"beta": torch.zeros(3, device=META)},
            ValueError,
            ["beta", "meta", "cpu", "embeddings"],
        ),
        "beta-too-short": ({"beta": torch.ones(2)}, ValueError, ["beta", "label 2", r"0\.\.1"]),
        "beta-negative-label": (
            {"beta": torch.ones(4), "labels": LABELS - 1},
            ValueError,
            ["beta", "label -1", r"0\.\.3"],
        ),
    },
    "multi_similarity": bad_numbers("epsilon", NUMBER),
    "lifted_structure": {
        "form": ({"form": "new"}, ValueError, ["form", "new", "'generalized'", "'original'"])
    },
    "nt_xent": {"hardness-below": BAD_HARDNESS},
    "sup_con": {"hardness-below": BAD_HARDNESS},
    "angular": {"alpha-large": ({"alpha": 70.5}, ValueError, ["alpha", "70.5", "at most 70"])},
}
BAD_LOSS_CALLS = [
    pytest.param(loss, *row, id=f"{loss}-{what}")
    for loss in FUNCTIONS
    for what, row in bad_calls(loss).items()
]
BAD_NEAREST: dict[str, Row] = {
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
BAD_CLASSES: dict[str, Row] = {
    "rows": ({"representatives": 3}, TypeError, ["representatives", "int", "Tensor"]),
    "rank": ({"representatives": X[0]}, ValueError, ["representatives", r"\(4,\)"]),
    "labels": ({"labels": LABELS[:3]}, ValueError, ["labels", r"\(3,\)", r"\(6,\)"]),
    "labels-dtype": ({"labels": LABELS / 4}, ValueError, ["labels", "whole", r"0\.25"]),
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


def call(loss: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function, and the arguments of a good call."""
    good = {"embeddings": X, "labels": LABELS} | (PROXIES if FUNCTIONS[loss].proxies else {})
    return getattr(dmlap_kernels, f"fused_{loss}_loss"), good


@pytest.mark.parametrize(("loss", "change", "error", "words"), BAD_LOSS_CALLS)
def test_losses(
    loss: str, change: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    function, good = call(loss)
    assert_refused(function, good | change, error, words)


@pytest.mark.parametrize(("change", "error", "words"), BAD_NEAREST.values(), ids=BAD_NEAREST.keys())
def test_nearest(change: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    assert_refused(nearest, {"queries": X} | change, error, words)


@pytest.mark.parametrize(("change", "error", "words"), BAD_CLASSES.values(), ids=BAD_CLASSES.keys())
def test_hard_classes(change: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    good = {"representatives": X, "labels": LABELS, "k": 1}
    assert_refused(hard_classes, good | change, error, words)


@pytest.mark.parametrize("loss", FUNCTIONS)
@pytest.mark.parametrize("option", ["margins", "squares"])
def test_unknown_keywords(loss: str, option: str) -> None:
    function, good = call(loss)
    with pytest.raises(TypeError, match=option):
        function(**good, **{option: 1.0})


@pytest.mark.parametrize("loss", [loss for loss, row in FUNCTIONS.items() if not row.distances])
@pytest.mark.parametrize("option", [{"distance": "cosine"}, {"normalize": True}])
def test_losses_of_cosines_take_no_distance(loss: str, option: dict[str, Any]) -> None:
    function, good = call(loss)
    with pytest.raises(TypeError, match=next(iter(option))):
        function(**good, **option)


@pytest.mark.parametrize("k", [np.int64(2), np.uint8(2), torch.tensor(2)])
def test_integers_of_other_kinds_are_integers(k: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert nearest(X, k=k).indices.shape == (6, 2)
    assert hard_classes(X, LABELS, k).neighbors.shape == (3, 2)
    assert len(dmlap_kernels.per_class_mean(X[:, 0], LABELS, k).means) == 2
    module = dmlap_kernels.losses.SoftTripleLoss(k, k, k)
    assert module.proxies.shape == (4, 2)
    assert CrossBatchMemory(module.forward, k, k).embeddings.shape == (2, 2)


@pytest.mark.parametrize("k", [np.bool_(True), torch.tensor(True), np.float64(2.0), np.array([2])])
def test_what_is_no_integer_is_refused(k: Any) -> None:
    for function in (lambda: nearest(X, k=k), lambda: dmlap_kernels.losses.ArcFaceLoss(3, k)):
        with pytest.raises(TypeError, match="must be an integer"):
            function()


def test_what_has_no_data_is_refused_where_it_is_looked_at() -> None:
    x, labels = X.to("meta"), LABELS.to("meta")
    with pytest.raises(TypeError, match="representatives must be a tensor with data"):
        hard_classes(x, labels, 1)
    with pytest.raises(TypeError, match="losses must be a tensor with data"):
        dmlap_kernels.per_class_mean(x[:, 0], labels)
    with pytest.raises(TypeError, match="a number of the loss must be a tensor with data"):
        fused_triplet_loss(X, LABELS, margin=torch.tensor(0.2, device="meta"))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", ["margin", "beta"])
def test_numbers_are_dense(name: str) -> None:
    number = torch.tensor([0.2])
    for given in (number.to_sparse(), torch.nested.nested_tensor([number])):
        with pytest.raises(TypeError, match=f"{name} must be a dense tensor"):
            dmlap_kernels.fused_margin_loss(X, LABELS, **{name: given})


def test_an_integer_beyond_all_floats_is_refused() -> None:
    with pytest.raises(ValueError, match="margin must be finite"):
        fused_triplet_loss(X, LABELS, margin=10**400)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_tensor_of_one_number_is_finite(value: float) -> None:
    with pytest.raises(ValueError, match="beta must be finite"):
        dmlap_kernels.fused_margin_loss(X, LABELS, beta=torch.tensor(value, requires_grad=True))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_labels_are_dense() -> None:
    with pytest.raises(TypeError, match="labels must be a dense tensor"):
        fused_triplet_loss(X, torch.nested.nested_tensor([LABELS]))


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
