"""Statistics out of panels against those of the torch backend in float64: of batches with
themselves and against references, ragged in rows, columns and features, of several panels and of
one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmlap_kernels import (
    PairStats,
    fused_contrastive_loss,
    fused_sup_con_loss,
    fused_triplet_loss,
)
from dmlap_kernels.backends.device.backend import DeviceBackend
from dmlap_kernels.backends.triton import configurations
from dmlap_kernels.backends.triton.triton_backend import TritonBackend
from tests.losses.cases import Case, Problem, make_problem, usual, variants
from tests.losses.compare import compare_stats
from tests.losses.losses_table import LOSSES
from tests.losses.test_self_index import containing_the_batch
from tests.triton.interpreted.test_panels import BY_PANELS, TRIPLETS, triplet_sides

ONE_PANEL, SEVERAL = 1 << 20, 4 * 16 * 60
LOSSES_OF_PANELS = (*BY_PANELS, "angular")


@pytest.fixture(autouse=True)
def no_other_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """All losses go by panels, and statistics with them."""
    monkeypatch.setattr(configurations, "PANEL_FEATURES", 0)
    forward = DeviceBackend.forward

    def noted(self: DeviceBackend, *args: Any) -> Any:
        assert not isinstance(self, TritonBackend), "sweeps that make their own products"
        return forward(self, *args)

    monkeypatch.setattr(DeviceBackend, "forward", noted)


def statistics(loss: str, problem: Problem, backend: str) -> tuple[Tensor, PairStats]:
    call = LOSSES[loss].fused
    return call(*problem.args(), backend=backend, return_stats=True, **problem.keywords)


def assert_same(loss: str, problem: Problem, backend: str) -> None:
    """Counts and columns are equal, distances and sums to rounding, and the loss is the same."""
    value, found = statistics(loss, problem, backend)
    _, truth = statistics(loss, problem.cast(torch.float64), "torch")
    plain = LOSSES[loss].fused(*problem.args(), backend=backend, **problem.keywords)
    assert torch.equal(value, plain)
    for name in ("constraints", "violated", "hardest_positive", "hardest_negative"):
        ours, true = getattr(found, name), getattr(truth, name)
        assert ours.dtype == torch.int64 and torch.equal(ours, true), name
    for name in ("violation", "mean_positive_distance", "mean_negative_distance"):
        ours, true = getattr(found, name).double(), getattr(truth, name)
        torch.testing.assert_close(ours, true, rtol=2e-5, atol=1e-5, equal_nan=True)


def cases() -> list[Case]:
    found = []
    for loss in LOSSES_OF_PANELS:
        row, ends = LOSSES[loss], variants(loss)
        every = row.distances if loss in ("contrastive", "sup_con") else ()
        for i, refs in enumerate(("more",) if row.proxies else ("self", "more")):
            for distance in every or (row.default_distance,):
                case = usual(loss, rows=37, features=19, refs=refs, distance=distance)
                # Sharp exponentials underflow.
                options = ends[0 if "sharpness" in row.levels else i % len(ends)]
                found.append(replace(case, options=options))
    return found


def panels(loss: str, options: dict[str, Any]) -> int:
    """Bytes of one, where the loss goes by several."""
    alone = loss == "angular" or (loss in TRIPLETS and options.get("swap"))
    return ONE_PANEL if alone else SEVERAL


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
def test_several_panels(case: Case, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(case)
    monkeypatch.setattr(configurations, "PANEL_BYTES", panels(case.loss, problem.keywords))
    assert_same(case.loss, problem, backend)


@pytest.mark.parametrize("case", cases()[::5], ids=lambda case: case.id)
def test_one_panel(case: Case, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class scores among them."""
    monkeypatch.setattr(configurations, "PANEL_BYTES", ONE_PANEL)
    compare_stats(case.loss, make_problem(case), backend)


@pytest.mark.parametrize("labels_agree", [True, False], ids=["same-label", "other-label"])
@pytest.mark.parametrize("loss", [loss for loss in LOSSES_OF_PANELS if not LOSSES[loss].proxies])
def test_self_index(
    loss: str, labels_agree: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = usual(loss, rows=25, features=17, refs="more")
    problem = containing_the_batch(case, labels_agree)
    monkeypatch.setattr(configurations, "PANEL_BYTES", panels(loss, problem.keywords))
    assert_same(loss, problem, backend)


@pytest.mark.parametrize("mining", ["hard", "all", "semihard"])
@pytest.mark.parametrize(("refs", "swap"), [("self", False), ("named", True)])
def test_hinges_of_smooth_triplets(
    refs: str, mining: str, swap: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of classes of many sizes, with near pairs."""
    monkeypatch.setattr(configurations, "PANEL_BYTES", ONE_PANEL)
    sides, (labels, ref_labels, itself) = triplet_sides(refs)
    y = sides[1] if len(sides) > 1 else None
    how = {"margin": 0.5, "smooth": True, "swap": swap, "reduction": "mean"}
    problem = Problem(sides[0], labels, y, ref_labels, how | {"self_index": itself})
    assert_same(f"triplet_{mining}", problem, backend)


def test_more_triplets_than_a_float_tells_apart(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an anchor, whose row of the table is float32."""
    monkeypatch.setattr(configurations, "PANEL_BYTES", ONE_PANEL)
    monkeypatch.setattr(configurations, "ROWS_OF_FORMULAS", 1024)
    table, tiles = configurations._INTERPRETED_PANELS, {"triplets": (256, 4096), "rows": (1024, 0)}
    tiles |= dict.fromkeys(("panel_statistics", "triplet_pairs"), (16, 4096))
    for name, (rows, columns) in tiles.items():
        monkeypatch.setitem(table, name, table[name]._replace(BM=rows, BN=columns))
    positives, negatives = 4099, 4101
    x, y = torch.zeros(1, 16), torch.zeros(positives + negatives, 16)
    y[:, 0] = torch.rand(len(y)) + 1.0
    labels = torch.tensor([1]), (torch.arange(len(y)) < positives).long()
    how = {"mining": "all", "margin": 2.0, "backend": backend}
    _, found = fused_triplet_loss(x, labels[0], y, labels[1], return_stats=True, **how)
    assert found.constraints == found.violated == positives * negatives
    torch.testing.assert_close(found.mean_positive_distance, y[:positives, 0].mean())
    torch.testing.assert_close(found.mean_negative_distance, y[positives:, 0].mean())


@pytest.mark.parametrize("squared", [False, True])
def test_ties_go_to_the_lower_label_then_the_lower_index(
    squared: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles that are visited again are not added up twice."""
    monkeypatch.setattr(configurations, "PANEL_BYTES", SEVERAL)
    monkeypatch.setattr(configurations, "_RESIDENT", 0)  # one program for each block of rows
    x = torch.zeros(70, 19)
    x[:, 0] = torch.arange(70) % 3 * 1.0
    labels = (torch.arange(70).flip(0) // 4) * 2**33
    how = {"squared": squared, "pos_margin": 0.25, "neg_margin": 1.5, "reduction": "sum"}
    assert_same("contrastive", Problem(x, labels, None, None, how), backend)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_embeddings(bad: float, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No column is out of range, and rows that have nothing to do with the bad one are right."""
    monkeypatch.setattr(configurations, "PANEL_BYTES", SEVERAL)
    x, labels = torch.randn(37, 19), torch.arange(37) // 4
    x[5, 3] = bad
    _, found = fused_triplet_loss(x, labels, backend=backend, return_stats=True)
    for columns in (found.hardest_positive, found.hardest_negative):
        assert ((columns >= -1) & (columns < 37)).all()
    assert not found.mean_negative_distance.isfinite()


@pytest.mark.parametrize("labels", [torch.arange(20), torch.zeros(20, dtype=torch.int64)])
def test_no_positives_or_no_negatives(labels: Tensor, backend: str) -> None:
    x = torch.randn(20, 19)
    _, found = fused_contrastive_loss(x, labels, backend=backend, return_stats=True)
    positives = int(labels[0] == labels[1])
    some, none = found.mean_positive_distance, found.mean_negative_distance
    hardest, no = found.hardest_positive, found.hardest_negative
    if not positives:
        some, none, hardest, no = none, some, no, hardest
    assert some.isfinite() and none.isnan()
    assert (hardest >= 0).all() and (no == -1).all()


def test_statistics_of_every_call_are_its_own(backend: str) -> None:
    """Kinds and what they compiled are shared, results are not."""
    x, labels = torch.randn(20, 19), torch.arange(20) // 4
    first = fused_triplet_loss(x, labels, backend=backend, return_stats=True)[1]
    before = first.violation.clone(), first.hardest_negative.clone()
    fused_triplet_loss(3 * x.flip(0), labels, backend=backend, return_stats=True)
    assert torch.equal(first.violation, before[0])
    assert torch.equal(first.hardest_negative, before[1])


def test_ties_between_tiles_that_one_program_visits(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same place of its tile the lower label comes last; distances are less than 0."""
    monkeypatch.setattr(configurations, "_RESIDENT", 0)  # one program for each block of rows
    x, labels = torch.ones(128, 1), torch.arange(128).flip(0)
    options: dict[str, Any] = {"distance": "dot", "backend": backend, "return_stats": True}
    _, found = fused_sup_con_loss(x, labels, temperature=1.0, **options)
    assert found.hardest_negative.tolist() == [127] * 127 + [126]
