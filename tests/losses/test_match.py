"""Positives by a matrix or a rule, against the formulas over whole matrices."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import dmlap_kernels
from dmlap_kernels import fused_contrastive_loss, fused_margin_loss, fused_triplet_loss, sweep
from dmlap_kernels.backends.panels import panel
from dmlap_kernels.losses import LOSSES as MODULES
from dmlap_kernels.losses import NPairsLoss, SupConLoss
from dmlap_kernels.memory import CrossBatchMemory
from tests.losses.losses_table import LOSSES
from tests.reference.losses import FORMULAS
from tests.reference.pairs import make_pairs, reduce_terms

TAGS = 9
# Of each loss its numbers, at which some hinges are active and others are not.
OPTIONS: dict[str, dict[str, Any]] = {
    "triplet_hard": {"margin": 0.3, "swap": True},
    "triplet_easy_positive": {"margin": 0.3},
    "triplet_easy_positive_semihard": {"margin": 0.3},
    "triplet_semihard": {"margin": 0.3},
    "triplet_all": {"margin": 0.2},
    "contrastive": {"pos_margin": 0.2, "neg_margin": 1.3},
    "margin": {"margin": 0.2, "beta": 1.1},
    "siglip": {"scale": 5.0, "bias": -3.0},
    "multi_similarity": {"alpha": 2.0, "beta": 9.0, "epsilon": 0.1},
    "lifted_structure": {"neg_margin": 1.5},
    "lifted_structure_original": {"neg_margin": 1.5},
    "nt_xent": {"temperature": 0.3},
    "sup_con": {"temperature": 0.3},
    "circle": {"m": 0.3, "gamma": 8.0},
}
EVERY = pytest.mark.parametrize("loss", OPTIONS)
REFS = pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])


@pytest.fixture(params=["one", "many"])
def panels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One panel that is kept, or several that are made again."""
    if request.param == "many":
        monkeypatch.setattr(panel, "PANEL_BYTES", {"cpu": 8 * 30 * 4, "other": 8 * 30 * 4})
        monkeypatch.setattr(panel, "KEPT_BYTES", 0)
    yield


def share_a_tag(rows: Tensor, columns: Tensor) -> Tensor:
    return (rows.double() @ columns.double().T) > 0


def draw(refs: bool, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
    """Rows of unit length with none, one or several of nine tags; of references some have tags that
    no anchor has."""
    g = torch.Generator().manual_seed(5)
    count = 21 + 26 * refs
    x = torch.nn.functional.normalize(torch.randn(count, 5, generator=g, dtype=dtype))
    tags = torch.rand(count, TAGS, generator=g) < 0.22
    tags[3] = False
    assert (tags.sum(1) > 1).any()
    if not refs:
        return [x, tags, None, None]
    return [x[:21], tags[:21], x[21:], tags[21:]]


def expected(
    loss: str, tensors: list[Tensor | None], match: Tensor, reduction: str, **options: Any
) -> list[Tensor]:
    row = LOSSES[loss]
    x, _, y, _ = tensors
    assert x is not None
    leaves = [t.clone().requires_grad_() for t in (x, y) if t is not None]
    zeros = [torch.zeros(len(leaf), dtype=torch.int64) for leaf in leaves]
    geometry = row.geometry(options)
    args = (leaves[0], zeros[0], *((leaves[1], zeros[1]) if y is not None else (None, None)))
    pairs = make_pairs(*args, **geometry)  # type: ignore[arg-type]
    exists = pairs.positives | pairs.negatives
    pairs = replace(pairs, positives=match & exists, negatives=~match & exists)
    own = {k: v for k, v in options.items() if k not in ("distance", "normalize")}
    value = reduce_terms(FORMULAS[loss](pairs, **own), reduction)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


def found(loss: str, tensors: list[Tensor | None], **options: Any) -> list[Tensor]:
    x, labels, y, ref_labels = tensors
    assert x is not None
    leaves = [t.clone().requires_grad_() for t in (x, y) if t is not None]
    value = LOSSES[loss].fused(
        leaves[0], labels, leaves[1] if y is not None else None, ref_labels, **options
    )
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


def agree(one: list[Tensor], other: list[Tensor]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


@REFS
@EVERY
@pytest.mark.parametrize("reduction", ["mean", "mean_nonzero", "none"])
@pytest.mark.usefixtures("panels")
def test_overlapping_labels(loss: str, refs: bool, reduction: str) -> None:
    tensors, options = draw(refs), OPTIONS[loss]
    _, tags, _, ref_tags = tensors
    assert tags is not None
    matrix = share_a_tag(tags, tags if ref_tags is None else ref_tags)
    # No partition of the rows gives these positives.
    assert ((matrix.double() @ matrix.double().T > 0) & ~share_a_tag(tags, tags)).any()
    truth = expected(loss, tensors, matrix, reduction, **options)
    assert truth[0].any() and truth[1].any()
    agree(found(loss, tensors, match=share_a_tag, reduction=reduction, **options), truth)
    x, _, y, _ = tensors
    agree(found(loss, [x, None, y, None], match=matrix, reduction=reduction, **options), truth)


@EVERY
@pytest.mark.usefixtures("panels")
def test_a_match_need_not_be_symmetric(loss: str) -> None:
    """But for the negatives of both ends, of which the formula has one list."""
    tensors = draw(False)
    matrix = torch.rand(21, 21, generator=torch.Generator().manual_seed(1)) < 0.3
    if loss != "lifted_structure_original":
        truth = expected(loss, tensors, matrix, "mean", **OPTIONS[loss])
        agree(found(loss, tensors, match=matrix, **{"reduction": "mean"} | OPTIONS[loss]), truth)
    x = tensors[0]
    assert x is not None
    leaf = x.clone().requires_grad_()
    keywords = {k: v for k, v in OPTIONS[loss].items() if k != "swap"}
    if loss == "circle":
        return  # whose gradient is by definition not the derivative
    assert torch.autograd.gradcheck(
        lambda rows: LOSSES[loss].fused(rows, None, match=matrix, **keywords), (leaf,)
    )


@REFS
@EVERY
def test_equal_labels_as_a_match(loss: str, refs: bool) -> None:
    """The same numbers as without, statistics included."""
    x, _, y, _ = draw(refs, torch.float32)
    labels = torch.arange(21) % 5
    ref_labels = torch.arange(26) % 6 if refs else None
    names = {"reduction": "mean"} | OPTIONS[loss]
    own = {"self_index": torch.arange(21)} if refs else {}
    rule = {"match": lambda a, b: a[:, None] == b}
    args = x, labels, y, ref_labels
    fused = LOSSES[loss].fused
    one, two = (
        fused(*args, **own, **more, **names, return_stats=True, backend="torch")
        for more in ({}, rule)
    )
    torch.testing.assert_close(one[0], two[0])
    for name in ("constraints", "violated", "mean_positive_distance", "hardest_negative"):
        torch.testing.assert_close(getattr(one[1], name), getattr(two[1], name))


def test_the_rule_sees_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panel, "PANEL_BYTES", {"cpu": 4 * 500 * 4, "other": 0})
    monkeypatch.setattr(panel, "KEPT_BYTES", 0)
    seen: list[tuple[int, int]] = []

    def rule(rows: Tensor, columns: Tensor) -> Tensor:
        seen.append((len(rows), len(columns)))
        return rows[:, None] == columns

    x = torch.randn(500, 3, requires_grad=True)
    fused_contrastive_loss(x, torch.arange(500) % 9, match=rule).backward()
    assert max(seen) == (4, 500)


def test_numbers_learn_with_a_match() -> None:
    x, tags, *_ = draw(False)
    assert x is not None and tags is not None
    for loss, name in (("sup_con", "temperature"), ("contrastive", "neg_margin")):
        number = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda n, loss=loss, name=name: LOSSES[loss].fused(
                x, tags, match=share_a_tag, **{name: n}
            ),
            (number,),
        )
    beta = torch.full((3,), 1.1, dtype=torch.float64, requires_grad=True)
    value = fused_margin_loss(x, torch.arange(21) % 3, beta=beta, match=lambda a, b: a[:, None] > b)
    assert torch.autograd.grad(value, beta)[0].any()


def test_degenerate_matches() -> None:
    x = torch.randn(6, 3, requires_grad=True)
    for matrix in (torch.zeros(6, 6), torch.ones(6, 6), torch.eye(6)):
        for loss, options in OPTIONS.items():
            value = LOSSES[loss].fused(x, None, match=matrix.bool(), **options)
            (grad,) = torch.autograd.grad(value, x)
            assert value.isfinite() and grad.isfinite().all()
    nothing = torch.empty(0, 3, requires_grad=True)
    empty = torch.empty(0, 0, dtype=torch.bool)
    assert fused_contrastive_loss(nothing, None, match=empty) == 0
    for loss, options in OPTIONS.items():
        none = torch.empty(6, 0, dtype=torch.bool)
        assert LOSSES[loss].fused(x, None, x[:0], None, match=none, **options).sum() == 0


def test_modules() -> None:
    x, tags, *_ = draw(False)
    assert x is not None and tags is not None
    module = copy.deepcopy(SupConLoss(match=share_a_tag))
    matrix = share_a_tag(tags, tags)
    torch.testing.assert_close(module(x, tags), SupConLoss()(x, None, match=matrix))
    assert torch.equal(module(x, None, match=matrix), SupConLoss()(x, None, match=matrix))
    memory = CrossBatchMemory(SupConLoss(match=lambda a, b: a[:, None] // 2 == b // 2), 5)
    plain = CrossBatchMemory(SupConLoss(backend="torch"), 5)
    labels = torch.arange(21) % 6
    for _ in range(2):
        torch.testing.assert_close(memory(x, labels), plain(x, labels // 2))
    with pytest.raises(TypeError, match="match must be a function, got a tensor"):
        SupConLoss(match=matrix)
    with pytest.raises(TypeError, match="NPairsLoss accepts"):
        NPairsLoss(match=share_a_tag)
    takes = {n for n, m in MODULES.items() if "match" in m.function.__annotations__}
    assert takes == {LOSSES[loss].loss for loss in OPTIONS}


def test_refusals() -> None:
    x, tags, *_ = draw(False)
    assert x is not None and tags is not None
    matrix = share_a_tag(tags, tags)
    call = fused_contrastive_loss
    with pytest.raises(ValueError, match=r"match must be a bool matrix \(21, 21\)"):
        call(x, None, match=matrix[:5])
    with pytest.raises(ValueError, match="match must be a bool matrix"):
        call(x, None, match=matrix.float())
    with pytest.raises(TypeError, match="match must be a bool matrix or a function"):
        call(x, None, match="equal")
    with pytest.raises(TypeError, match="labels must be a tensor or an array"):
        call(x, None, match=share_a_tag)
    with pytest.raises(ValueError, match="labels must have the 21 rows of embeddings"):
        call(x, tags[:3], match=share_a_tag)
    with pytest.raises(TypeError, match=r"match must return a bool tensor, got torch\.float64"):
        call(x, tags, match=lambda a, b: a.double() @ b.double().T)
    with pytest.raises(ValueError, match=r"match must return \(21, 21\)"):
        call(x, tags, match=lambda a, b: a[:, 0] == b[:, 0])
    with pytest.raises(ValueError, match="backend 'cpu' cannot run this call: it finds"):
        call(x, None, match=matrix, backend="cpu")
    with pytest.raises(ValueError, match="distance_weighted"):
        fused_triplet_loss(x, None, match=matrix, mining="distance_weighted")
    with pytest.raises(ValueError, match="beta must be one number where labels are not"):
        fused_margin_loss(x, tags, match=share_a_tag, beta=torch.ones(3))
    with pytest.raises(ValueError, match="return_stats must be True or False with match"):
        call(x, None, match=matrix, return_stats="class_scores")
    with pytest.raises(RuntimeError, match="match cannot be compiled or traced"):
        call(x.to("meta"), None, match=matrix.to("meta"))
    with pytest.raises(TypeError, match="labels"):
        call(x, None)
    with pytest.raises(TypeError, match="match"):
        dmlap_kernels.fused_n_pairs_loss(x, None, match=matrix)


def test_a_global_batch_refuses() -> None:
    x, *_ = draw(False)
    token = sweep.sharing.set(cast(Any, object()))
    try:
        with pytest.raises(ValueError, match="match is not served in a global batch"):
            fused_contrastive_loss(x, None, match=torch.eye(21) > 0)
    finally:
        sweep.sharing.reset(token)


PEAK = """
import resource, torch, dmlap_kernels
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def step(rows):
    x, labels = torch.randn(rows, 64, requires_grad=True), torch.arange(rows) % 50
    rule = lambda a, b: a[:, None] == b
    dmlap_kernels.fused_sup_con_loss(x, labels, match=rule).backward()
torch.set_num_threads(1)
step(64)
before = peak()
step(10000)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts in KiB")
def test_peak_memory_of_a_rule() -> None:
    """Well below a matrix of all pairs, which takes 381 MiB of float32, the holes of the allocator
    included."""
    command = [sys.executable, "-c", PEAK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 120
