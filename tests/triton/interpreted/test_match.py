"""Positives by a matrix or a rule, by panels, against the `torch` backend in float64."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from dmlap_kernels import fused_triplet_loss
from dmlap_kernels.backends import planted, registry
from dmlap_kernels.backends.triton import configurations, steps
from dmlap_kernels.backends.triton.triton_backend import MATCHED
from dmlap_kernels.match import Match
from dmlap_kernels.problem import PairSpec
from tests.losses import test_match
from tests.losses.losses_table import LOSSES
from tests.losses.test_match import OPTIONS, share_a_tag

EACH = pytest.mark.parametrize("loss", MATCHED)
REFS = pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
ROWS, REFERENCES, FEATURES = 37, 45, 19


@pytest.fixture(autouse=True)
def steps_made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Panels of one block of 16 rows, and the losses that went by them."""
    made: list[str] = []
    init = steps.Step.__init__

    def noted(self: Any, plan: Any, spec: PairSpec, problem: Any) -> None:
        init(self, plan, spec, problem)
        made.append(spec.loss)

    monkeypatch.setattr(steps.Step, "__init__", noted)
    monkeypatch.setattr(configurations, "PANEL_BYTES", 4 * 16 * 60)
    return made


@pytest.fixture
def one_panel(monkeypatch: pytest.MonkeyPatch, steps_made: list[str]) -> None:
    """That stays for the backward half, as its bytes do."""
    monkeypatch.setattr(configurations, "PANEL_BYTES", 1 << 20)


def draw(refs: bool) -> list[Tensor]:
    """Rows of which some are near and some coincide, and of references some with anchors."""
    g = torch.Generator().manual_seed(3)
    x = torch.nn.functional.normalize(torch.randn(ROWS, FEATURES, generator=g))
    x[5] = x[21] + 3e-3 * torch.randn(FEATURES, generator=g)
    x[30] = x[6] + 3e-3 * torch.randn(FEATURES, generator=g)
    x[33] = x[2]
    if not refs:
        return [x]
    y = torch.nn.functional.normalize(torch.randn(REFERENCES, FEATURES, generator=g))
    y[17], y[40] = x[9], x[11]
    y[3] = x[35] + 3e-3 * torch.randn(FEATURES, generator=g)
    return [x, y]


def one_sided(columns: int) -> Tensor:
    """Positives of one end alone for the most part, near pairs among them; rows without any, and
    without a negative."""
    found = torch.rand(ROWS, columns, generator=torch.Generator().manual_seed(8)) < 0.2
    found[4], found[20] = False, True
    found[[5, 6, 35], [21, 30, 3]], found[[21, 30], [5, 6]] = True, False
    return found


def assert_like_the_torch_backend(
    loss: str, sides: list[Tensor], labels: tuple[Any, Any], **options: Any
) -> None:
    """Value and gradients."""
    results = []
    for backend, dtype in (("triton", torch.float32), ("torch", torch.float64)):
        leaves = [side.to(dtype).requires_grad_() for side in sides]
        y, ref_labels = (leaves[1], labels[1]) if len(leaves) > 1 else (None, None)
        value = LOSSES[loss].fused(
            leaves[0], labels[0], y, ref_labels, backend=backend, **OPTIONS[loss] | options
        )
        weights = torch.linspace(0.5, 1.5, value.numel(), dtype=dtype).view_as(value)
        results.append([value.detach(), *torch.autograd.grad((value * weights).sum(), leaves)])
    assert results[1][0].any() and results[1][1].any()
    for ours, truth in zip(*results, strict=True):
        scale = truth.abs().max().item()
        torch.testing.assert_close(ours.double(), truth, rtol=0, atol=3e-5 * scale)


@EACH
@REFS
def test_a_matrix_that_is_not_symmetric(loss: str, refs: bool, steps_made: list[str]) -> None:
    sides = draw(refs)
    given: dict[str, Any] = {"match": one_sided(len(sides[-1])), "reduction": "none"}
    if refs:
        # Of all anchors but every fifth one the reference that is the anchor itself.
        given["self_index"] = torch.arange(ROWS).roll(2)
        given["self_index"][::5] = -1
    assert_like_the_torch_backend(loss, sides, (None, None), **given)
    assert steps_made == [loss]


@EACH
@REFS
@pytest.mark.usefixtures("one_panel")
def test_one_panel(loss: str, refs: bool) -> None:
    sides = draw(refs)
    given = {"match": one_sided(len(sides[-1])), "reduction": "mean_nonzero"}
    assert_like_the_torch_backend(loss, sides, (None, None), **given)


DISTANCES = [(loss, distance) for loss in MATCHED for distance in LOSSES[loss].distances]


@pytest.mark.parametrize(("loss", "distance"), DISTANCES, ids="-".join)
def test_distances(loss: str, distance: str) -> None:
    """Of a batch with itself and with references in turn."""
    refs = DISTANCES.index((loss, distance)) % 2 == 1
    sides = draw(refs)
    given = {"match": one_sided(len(sides[-1])), "distance": distance, "normalize": not refs}
    assert_like_the_torch_backend(loss, sides, (None, None), **given)


@EACH
@REFS
def test_a_rule(loss: str, refs: bool, steps_made: list[str]) -> None:
    """Over several labels a row, of which no partition of the rows gives the positives."""
    sides = draw(refs)
    g = torch.Generator().manual_seed(1)
    tags = [torch.rand(len(side), test_match.TAGS, generator=g) < 0.22 for side in sides]
    seen: list[tuple[int, int]] = []

    def rule(rows: Tensor, columns: Tensor) -> Tensor:
        seen.append((len(rows), len(columns)))
        return share_a_tag(rows, columns)

    assert_like_the_torch_backend(loss, sides, (tags[0], tags[-1]), match=rule)
    assert steps_made == [loss]
    ours = seen[: -(-ROWS // configurations.panel_height(len(sides[-1])))]
    assert sum(rows for rows, _ in ours) == ROWS


@pytest.mark.parametrize("loss", ["triplet_hard", "sup_con"])
@pytest.mark.usefixtures("one_panel")
def test_a_second_backward(loss: str) -> None:
    """It fills the bytes again."""
    (x,) = draw(False)
    x.requires_grad_()
    matrix = one_sided(ROWS)
    value = LOSSES[loss].fused(x, None, match=matrix, backend="triton", **OPTIONS[loss])
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    (second,) = torch.autograd.grad(value, x)
    assert first.any() and torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype) -> None:
    sides = [side.to(dtype) for side in draw(True)]
    matrix = one_sided(REFERENCES)
    found = []
    for backend in ("triton", "torch"):
        leaves = [side.clone().requires_grad_() for side in sides]
        value = LOSSES["sup_con"].fused(
            leaves[0], None, leaves[1], None, match=matrix, temperature=0.3, backend=backend
        )
        found.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=2e-4)


@pytest.mark.parametrize("loss", ["triplet_hard", "margin", "nt_xent"])
@REFS
def test_statistics(loss: str, refs: bool) -> None:
    sides = draw(refs)
    y = sides[1] if refs else None
    stats = [
        LOSSES[loss].fused(
            sides[0], None, y, None, match=one_sided(len(sides[-1])), backend=backend,
            return_stats=True, **OPTIONS[loss],
        )
        for backend in ("triton", "torch")
    ]  # fmt: skip
    torch.testing.assert_close(stats[0][0], stats[1][0], rtol=1e-4, atol=1e-6)
    for name in ("constraints", "violated", "hardest_positive", "hardest_negative"):
        assert torch.equal(getattr(stats[0][1], name), getattr(stats[1][1], name))


@pytest.mark.parametrize("loss", ["triplet_hard", "contrastive", "nt_xent"])
def test_nothing_to_compare(loss: str) -> None:
    x = draw(False)[0][:6].requires_grad_()
    fused, how = LOSSES[loss].fused, {"backend": "triton", **OPTIONS[loss]}
    for matrix in (torch.zeros(6, 6), torch.ones(6, 6), torch.eye(6)):
        value = fused(x, None, match=matrix > 0, **how)
        (grad,) = torch.autograd.grad(value, x)
        assert value.isfinite() and grad.isfinite().all()
    empty = fused(x, None, x[:0], None, match=torch.empty(6, 0, dtype=torch.bool), **how)
    assert empty == 0 and torch.autograd.grad(empty, x)[0].count_nonzero() == 0
    assert fused(x[:0], None, match=torch.empty(0, 0, dtype=torch.bool), **how) == 0
    assert fused(x[:1], None, match=torch.ones(1, 1) > 0, **how) == 0


def test_equal_distances_go_to_the_lower_column() -> None:
    """Whatever labels there are beside the match."""
    x = torch.tensor([[0.0], [1.0], [-1.0], [1.0], [-1.0]])
    labels = torch.tensor([4, 3, 2, 1, 0])
    _, stats = fused_triplet_loss(
        x, labels, match=torch.zeros(5, 5) > 0, return_stats=True, backend="triton"
    )
    assert stats.hardest_negative.tolist() == [1, 3, 4, 1, 2]
    same = torch.ones(5, 5) > 0
    same[0, 3:] = same[0, 1] = False
    leaf = x.clone().requires_grad_()
    how: dict[str, Any] = {"distance": "sqeuclidean", "reduction": "none"}
    value = fused_triplet_loss(leaf, labels, match=same, backend="triton", **how)
    (grad,) = torch.autograd.grad(value[0], leaf)
    assert grad.flatten().nonzero().flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("loss", "distance"),
    [("triplet_hard", "euclidean"), ("margin", "euclidean"), ("circle", "dot")],
)
@pytest.mark.usefixtures("one_panel")
def test_the_self_check(loss: str, distance: str) -> None:
    ours, judge = (registry.backends()[name] for name in ("triton", "torch"))
    spec = PairSpec(loss, planted.PARAMS[loss], distance, True, match=Match(None))
    assert planted.check(ours, judge, spec, torch.float32, "cpu") is None


def test_a_match_leaves_nothing_behind() -> None:
    """What is remembered of a kind of steps holds no tensors of a call."""
    matrix = one_sided(ROWS)
    left = weakref.ref(matrix)
    x = draw(False)[0].requires_grad_()
    LOSSES["sup_con"].fused(x, None, match=matrix, backend="triton").backward()
    del matrix
    gc.collect()
    assert left() is None
