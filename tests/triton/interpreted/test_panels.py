"""Losses by panels, whatever the features: tables, ties, near pairs, and panels of few rows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmlap_kernels import (
    fused_angular_loss,
    fused_n_pairs_loss,
    fused_soft_triple_loss,
    fused_triplet_loss,
)
from dmlap_kernels.backends import registry
from dmlap_kernels.backends.triton import configurations, kinds, steps
from dmlap_kernels.backends.triton.hard_of_panels import HARD
from dmlap_kernels.backends.triton.plans import plan_of
from dmlap_kernels.backends.triton.triton_backend import step_of
from dmlap_kernels.problem import PairProblem, PairSpec
from tests.losses import device_checks as checks
from tests.losses import test_degenerate
from tests.losses.cases import Case, Problem, make_problem, usual, variants
from tests.losses.compare import compare, compare_stats, run
from tests.losses.losses_table import LOSSES
from tests.losses.test_self_index import containing_the_batch, few_cases
from tests.triton.selection import selection

BY_PANELS = (
    *HARD,
    "contrastive",
    "margin",
    "siglip",
    "multi_similarity",
    "lifted_structure",
    "lifted_structure_original",
    "nt_xent",
    "n_pairs",
    "nt_xent_hardness",
    "sup_con",
    "sup_con_hardness",
    "circle",
    "proxy_nca",
    "cosface",
    "arcface",
    "proxy_anchor",
    "soft_triple",
    "triplet_all",
    "triplet_semihard",
    "triplet_distance_weighted",
)
EACH = pytest.mark.parametrize("loss", BY_PANELS)
CASES = [case for loss in BY_PANELS for case in selection(loss)]


@pytest.fixture(autouse=True)
def steps_made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Panels of one block of 16 rows, and the losses that went by them."""
    made: list[str] = []
    init = steps.Step.__init__

    def noted(self: Any, plan: Any, spec: PairSpec, problem: PairProblem) -> None:
        init(self, plan, spec, problem)
        made.append(spec.loss)

    monkeypatch.setattr(steps.Step, "__init__", noted)
    monkeypatch.setattr(configurations, "PANEL_FEATURES", 0)
    monkeypatch.setattr(configurations, "PANEL_BYTES", 4 * 16 * 60)
    return made


def by_panels(loss: str, problem: Problem) -> bool:
    """Not so triplets of which pairs of references count, unless all is one panel, nor what has no
    pair of rows."""
    if problem.keywords.get("swap"):
        columns = len(problem.x if problem.y is None else problem.y)
        one_panel = max(len(problem.x), columns) <= configurations.panel_height(columns)
        return loss in HARD or (loss in TRIPLETS and one_panel)
    return not (loss == "n_pairs" and problem.y is None and len(problem.x) < 2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_value_and_gradient(case: Case, backend: str, steps_made: list[str]) -> None:
    problem = make_problem(case)
    compare(case.loss, problem, backend)
    assert bool(steps_made) == by_panels(case.loss, problem)


@pytest.mark.parametrize("case", CASES[::20], ids=lambda case: case.id)
def test_statistics(case: Case, backend: str) -> None:
    compare_stats(case.loss, make_problem(case), backend)


def assert_like_the_torch_backend(
    loss: Callable[..., Tensor], sides: list[Tensor], backend: str
) -> None:
    """Value and gradients, terms weighted, compared with those in float64."""
    results = []
    for name, dtype in ((backend, torch.float32), ("torch", torch.float64)):
        leaves = [side.to(dtype).requires_grad_() for side in sides]
        value = loss(*leaves, name)
        weights = torch.linspace(0.5, 1.5, value.numel(), dtype=dtype).view_as(value)
        results.append([value.detach(), *torch.autograd.grad((value * weights).sum(), leaves)])
    for ours, truth in zip(*results, strict=True):
        scale = truth.abs().max().item()
        torch.testing.assert_close(ours.double(), truth, rtol=0, atol=2e-5 * scale)


def many_tiles() -> list[Case]:
    """More than one panel, ragged in rows, columns and features; every distance of a few losses."""
    cases = []
    for loss in BY_PANELS:
        ends, row = variants(loss), LOSSES[loss]
        some = ("contrastive", "sup_con", "nt_xent_hardness", "sup_con_hardness")
        every = row.distances if loss in some else ()
        for i, refs in enumerate(("more",) if row.proxies else ("self", "more")):
            for distance in every or (row.default_distance,):
                case = usual(loss, rows=37, features=19, refs=refs, distance=distance)
                cases.append(replace(case, options=ends[i % len(ends)]))
    return cases


@pytest.mark.parametrize("case", many_tiles(), ids=lambda case: case.id)
def test_many_tiles(case: Case, backend: str) -> None:
    compare(case.loss, make_problem(case), backend)


TRIPLETS = ("triplet_all", "triplet_semihard", "triplet_distance_weighted")
SWAPPED = [
    replace(usual(loss, rows=29, features=19, refs=refs, distance=distance), options=options)
    for loss in TRIPLETS
    for refs in ("self", "fewer", "more")
    for distance in ("euclidean", "cosine")
    for options in variants(loss)
    if dict(options).get("swap")
]


@pytest.mark.parametrize("case", SWAPPED, ids=lambda case: case.id)
def test_swap_of_one_panel(
    case: Case, backend: str, steps_made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configurations, "PANEL_BYTES", 1 << 20)
    compare(case.loss, make_problem(case), backend)
    assert steps_made


def triplet_sides(refs: str) -> tuple[list[Tensor], list[Any]]:
    """Classes of one row to many, near pairs of both kinds; references with anchors among them."""
    generator = torch.Generator().manual_seed(3)
    labels = (torch.rand(45, generator=generator) ** 2 * 25).long() * 2**33 - 3
    x = torch.randn(45, 19, generator=generator) + 1.0
    x[[3, 30, 31]] = x[[40, 2, 2]]
    x[[3, 30, 31], [1, 2, 3]] += 0.02
    if refs == "self":
        return [x], [labels, None, None]
    order = torch.randperm(45, generator=generator)
    y = torch.cat((x[order], torch.randn(11, 19, generator=generator)))
    ref_labels = torch.cat((labels[order], labels[:11]))
    itself = order.argsort()
    itself[::5] = -1
    y[4] = x[40]
    y[4, 2] += 0.02
    return [x, y], [labels, ref_labels, itself]


@pytest.mark.parametrize(
    "mining",
    [
        *("all", "semihard", "hard", "distance_weighted"),
        *("easy_positive", "easy_positive_semihard"),
    ],
)
@pytest.mark.parametrize("refs", ["self", "named"])
@pytest.mark.parametrize(
    ("distance", "smooth", "swap", "panels"),
    [
        ("euclidean", True, False, "few"),
        ("sqeuclidean", False, False, "many"),
        ("euclidean", False, True, "few"),
        ("cosine", True, True, "few"),
    ],
)
def test_triplets_of_classes_of_many_sizes(
    distance: str,
    smooth: bool,
    swap: bool,
    panels: str,
    refs: str,
    mining: str,
    backend: str,
    steps_made: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if panels == "few":
        monkeypatch.setattr(configurations, "PANEL_BYTES", 1 << 20)
    sides, (labels, ref_labels, itself) = triplet_sides(refs)
    how: dict[str, Any] = {"smooth": smooth, "distance": distance, "mining": mining, "swap": swap}
    how["reduction"] = "none" if smooth else "mean_nonzero"
    how |= {"seed": 2**40 + 5} if mining == "distance_weighted" else {}

    def loss(x: Tensor, *rest: Any) -> Tensor:
        *y, name = rest
        others = (y[0], ref_labels) if y else ()
        return fused_triplet_loss(
            x, labels, *others, self_index=itself, margin=0.5, backend=name, **how
        )

    assert_like_the_torch_backend(loss, sides, backend)
    assert steps_made


@pytest.mark.parametrize(("cutoff", "beyond"), [(0.0, 0.55), (0.5, 1.4)])
def test_draws_from_many_references(cutoff: float, beyond: float, backend: str) -> None:
    """More groups of them than are looked through at once; some anchors have nothing to draw from,
    others more positives than are taken at once."""
    generator = torch.Generator().manual_seed(11)
    x, y = (torch.randn(rows, 12, generator=generator) for rows in (7, 1100))
    labels, ref_labels = torch.tensor([0, 1, 1, 2, 3, 0, 9]), torch.arange(1100) % 150 + 10
    for label, positives in ((0, 3), (1, 9), (2, 1), (3, 6)):
        ref_labels[label::100][:positives] = label
    y[4] = x[1] + 0.02
    how = {"cutoff": cutoff, "nonzero_loss_cutoff": beyond, "seed": 5, "reduction": "mean"}

    def loss(rows: Tensor, others: Tensor, name: str) -> Tensor:
        return fused_triplet_loss(
            rows, labels, others, ref_labels, mining="distance_weighted", backend=name, **how
        )

    assert_like_the_torch_backend(loss, [x, y], backend)
    params = 0.2, 0.0, 0.0, cutoff, beyond, 5.0
    spec = PairSpec("triplet_distance_weighted", params, normalize=True)
    terms = saved_table(spec, PairProblem(x, labels, y, ref_labels))[1].tolist()
    drawn = [3.0, 9.0, 9.0, 1.0, 6.0, 3.0, 0.0]
    assert terms[1] == 9.0 and (terms == drawn) == (beyond > 1)


@pytest.mark.parametrize("distance", LOSSES["triplet_hard"].distances)
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_hardest_negatives_nearer_to_positives(distance: str, refs: bool, backend: str) -> None:
    """With swap, of half of the first class; several anchors have the same pair."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(37) % 3 * 2**33
    x = 1.0 + 0.3 * torch.randn(37, 19, generator=generator)
    x[:, 0] += torch.tensor([-10.0, 3.0, 25.0, 10.0, 4.0, 26.0]).repeat(7)[:37]
    y = x.flip(0) + 0.1

    def loss(rows: Tensor, *rest: Any) -> Tensor:
        *others, name = rest
        ends = (others[0], labels.flip(0)) if others else ()
        return fused_triplet_loss(
            rows, labels, *ends, margin=9.0, swap=True, distance=distance, backend=name
        )

    assert_like_the_torch_backend(loss, [x, y] if refs else [x], backend)
    spec = PairSpec("triplet_hard", (9.0, 0.0, 1.0), distance)
    ends = (y, labels.flip(0)) if refs else (None, None)
    table = saved_table(spec, PairProblem(x, labels, *ends))
    assert (table[6] < table[5]).sum() > 3


@pytest.mark.parametrize("case", selection("angular"), ids=lambda case: case.id)
def test_angular(
    case: Case, backend: str, steps_made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one panel."""
    monkeypatch.setattr(configurations, "PANEL_BYTES", 1 << 20)
    problem = make_problem(case)
    compare(case.loss, problem, backend)
    assert steps_made == ["angular"] * len(steps_made) and steps_made


@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize("reduction", ["mean_nonzero", "none"])
def test_angular_of_classes_of_many_sizes(
    reduction: str, refs: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With references some labels are on one side alone, and some anchors are references, which
    have other labels now and then."""
    monkeypatch.setattr(configurations, "PANEL_BYTES", 1 << 20)
    generator = torch.Generator().manual_seed(3)
    labels = (torch.rand(45, generator=generator) ** 2 * 25).long() * 2**33 - 3
    x = torch.randn(45, 11, generator=generator)
    other, own, sides = None, None, [x]
    if refs:
        other = (torch.rand(53, generator=generator) ** 2 * 29).long() * 2**33 - 3
        own = torch.arange(45).roll(2)
        other[own[::2]] = labels[::2]
        own[::5] = -1
        sides.append(torch.randn(53, 11, generator=generator))

    def loss(*given: Any) -> Tensor:
        rows, name, y = given[0], given[-1], given[1] if refs else None
        how: dict[str, Any] = {"reduction": reduction, "backend": name}
        return fused_angular_loss(rows, labels, y, other, self_index=own, alpha=50.0, **how)

    assert_like_the_torch_backend(loss, sides, backend)


@pytest.mark.parametrize("labels_agree", [True, False], ids=["same-label", "other-label"])
@pytest.mark.parametrize(
    "case", [case for case in few_cases() if case.loss == "angular"], ids=lambda case: case.id
)
def test_angular_with_self_index(
    case: Case,
    labels_agree: bool,
    backend: str,
    steps_made: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(configurations, "PANEL_BYTES", 1 << 20)
    compare(case.loss, containing_the_batch(case, labels_agree), backend)
    assert steps_made


@pytest.mark.parametrize("case", many_tiles()[::4], ids=lambda case: case.id)
def test_panels_that_are_kept(case: Case, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configurations, "PANEL_BYTES", 1 << 20)
    compare(case.loss, make_problem(case), backend)


@pytest.mark.parametrize("case", many_tiles()[1::3], ids=lambda case: case.id)
def test_products_of_split_rows(case: Case, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As exact as those of float32."""
    monkeypatch.setattr(configurations, "splits_products", lambda *_: True)
    monkeypatch.setattr(kinds, "_kinds", {})
    wide = []
    product = steps._wide_product
    monkeypatch.setattr(steps, "_wide_product", lambda *args: wide.append(1) or product(*args))
    compare(case.loss, make_problem(case), backend)
    assert bool(wide) == by_panels(case.loss, make_problem(case))


@pytest.mark.parametrize("labels_agree", [True, False], ids=["same-label", "other-label"])
@pytest.mark.parametrize(
    "case", [case for case in few_cases() if case.loss in BY_PANELS], ids=lambda case: case.id
)
def test_self_index(case: Case, labels_agree: bool, backend: str) -> None:
    compare(case.loss, containing_the_batch(case, labels_agree), backend)


@pytest.mark.parametrize(
    "loss",
    [
        *TRIPLETS[:2],
        "triplet_hard",
        "margin",
        "lifted_structure",
        "lifted_structure_original",
        "nt_xent",
        "nt_xent_hardness",
        "sup_con_hardness",
    ],
)
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_pairs_a_ten_thousandth_apart(loss: str, refs: bool, backend: str) -> None:
    """Whose distances and gradients come from differences, in more than one panel."""
    options, scale = variants(loss)[0], 30.0 if refs else 1.0
    test_degenerate.test_pairs_a_ten_thousandth_apart(loss, options, refs, scale, backend)


@EACH
@pytest.mark.parametrize("rows", [0, 1])
def test_no_pairs(loss: str, rows: int, backend: str) -> None:
    refs = "more" if LOSSES[loss].proxies else "self"
    problem = make_problem(replace(usual(loss, rows=20, features=8), refs=refs))
    problem.x, problem.labels = problem.x[:rows], problem.labels[:rows]
    if problem.y is not None:
        assert problem.ref_labels is not None
        problem.y, problem.ref_labels = problem.y[:rows], problem.ref_labels[:rows] + 1000
    problem.keywords["reduction"] = "mean"
    if loss.startswith("proxy"):
        problem.labels = problem.labels + 5
    value, grads = run(LOSSES[loss].fused, problem, backend=backend)
    assert value.isfinite()
    assert all(grad.isfinite().all() for grad in grads)


@EACH
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_non_finite_embeddings(loss: str, bad: float, reduction: str, backend: str) -> None:
    refs = "more" if LOSSES[loss].proxies else "self"
    problem = make_problem(replace(usual(loss, rows=20, features=8), refs=refs))
    problem.x[3, 2] = bad
    problem.keywords["reduction"] = reduction
    value, grads = run(LOSSES[loss].fused, problem, backend=backend)
    assert not value.isfinite().any()
    assert all(not grad.isfinite().any() for grad in grads[: 1 if problem.y is None else 2])


@EACH
def test_the_same_twice(loss: str, backend: str) -> None:
    refs = "more" if LOSSES[loss].proxies else "self"
    problem = make_problem(replace(usual(loss, rows=33, features=8), refs=refs))
    first, second = (run(LOSSES[loss].fused, problem, backend=backend) for _ in range(2))
    for one, other in zip((first[0], *first[1]), (second[0], *second[1]), strict=True):
        assert torch.equal(one, other)


@EACH
def test_lazily_negated(loss: str, backend: str) -> None:
    checks.check_lazily_negated(loss, backend)


@pytest.mark.parametrize("length", checks.LENGTHS)
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize("loss", ["nt_xent", "sup_con", "sup_con_hardness", "contrastive"])
def test_lengths(loss: str, length: float, refs: bool, backend: str) -> None:
    checks.check_lengths(loss, length, refs, backend)


@EACH
def test_a_second_backward(loss: str, backend: str) -> None:
    """It packs and multiplies again, as that of an operator does."""
    refs = "more" if LOSSES[loss].proxies else "self"
    problem = make_problem(replace(usual(loss, rows=33, features=8), refs=refs))
    x = problem.x.requires_grad_()
    value = LOSSES[loss].fused(*problem.args(), backend=backend, **problem.keywords).sum()
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    (second,) = torch.autograd.grad(value, x)
    assert torch.equal(first, second)


@EACH
def test_one_side(loss: str, backend: str) -> None:
    """A side that needs no gradient gets none, and the other one the same."""
    problem = make_problem(usual(loss, rows=20, features=8, refs="more"))

    def gradients(*wanted: bool) -> list[Tensor | None]:
        assert problem.y is not None
        x, y = problem.x.detach(), problem.y.detach()
        x.requires_grad_(wanted[0]), y.requires_grad_(wanted[1])
        value = LOSSES[loss].fused(
            x, problem.labels, y, problem.ref_labels, backend=backend, **problem.keywords
        )
        value.sum().backward()
        return [x.grad, y.grad]

    both = gradients(True, True)
    for wanted in ((True, False), (False, True)):
        for mine, full, needed in zip(gradients(*wanted), both, wanted, strict=True):
            if needed:
                assert mine is not None and full is not None and torch.equal(mine, full)
            else:
                assert mine is None


@pytest.mark.parametrize("height", [16, 64])
def test_centres_in_any_order(height: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes of one centre to many, more than a tile has, some of them no anchor's; anchors of a
    class that has none."""
    monkeypatch.setattr(configurations, "PANEL_BYTES", 4 * height * 150)
    generator = torch.Generator().manual_seed(5)
    centre_labels = (torch.rand(150, generator=generator) ** 2 * 60).long() * 2**33 - 3
    centres = torch.randn(150, 8, generator=generator)
    labels = torch.cat((centre_labels[:50], torch.tensor([5])))
    x = torch.randn(51, 8, generator=generator)
    assert_like_the_torch_backend(
        lambda rows, proxies, name: fused_soft_triple_loss(
            rows, labels, proxies, centre_labels, gamma=0.2, backend=name
        ),
        [x, centres],
        backend,
    )


@pytest.mark.parametrize("distance", LOSSES["n_pairs"].distances)
@pytest.mark.parametrize("normalize", [False, True])
def test_first_pairs_of_many_classes(distance: str, normalize: bool, backend: str) -> None:
    """Classes of one row to many, in more than one panel, whose first two rows may be near."""
    how: dict[str, Any] = {"distance": distance, "normalize": normalize}
    how["reduction"] = "none" if normalize else "mean"
    generator = torch.Generator().manual_seed(7)
    labels = (torch.rand(75, generator=generator) ** 2 * 40).long() * 2**33 - 3
    x = torch.randn(75, 17, generator=generator)
    first, second = (labels == -3).nonzero().flatten()[:2]
    x[second] = x[first]
    x[second, 0] += 0.02
    assert_like_the_torch_backend(
        lambda rows, name: fused_n_pairs_loss(rows, labels, backend=name, **how), [x], backend
    )


def saved_table(spec: PairSpec, problem: PairProblem) -> Tensor:
    plan = plan_of(spec, problem.y is None)
    assert plan is not None
    _, saved = step_of(plan, spec, problem).forward()
    return saved[kinds.HEADER :].view(plan.rows, -1)


def mined(x: Tensor, labels: Tensor) -> Tensor:
    spec = PairSpec("triplet_hard", (0.2, 0.0, 0.0))
    return saved_table(spec, PairProblem(x, labels, None, None))[[1, 3]].long()


def test_ties_go_to_the_lower_label_then_the_lower_index() -> None:
    x = torch.tensor([[0.0], [1.0], [-1.0], [2.0], [-2.0], [2.0]])
    labels = torch.tensor([1, 1, 1, 3, 2, 2])
    assert mined(x, labels).tolist() == [[1, 2, 1, -1, 5, 4], [4, 5, 4, 5, 2, 3]]
    far = torch.tensor([2**40, 2**40, 2**40, 2**62, -(2**40), -(2**40)])
    assert mined(x, far).tolist() == [[1, 2, 1, -1, 5, 4], [4, 5, 4, 5, 2, 3]]


def test_ties_between_tiles_that_one_program_visits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same place of its tile the lower label comes last."""
    monkeypatch.setattr(configurations, "_RESIDENT", 0)  # one program for each block of rows
    x = torch.ones(128, 1)
    x[0] = 0.0
    assert mined(x, torch.arange(128).flip(0))[1, 0] == 127
    assert mined(x, torch.arange(128))[1, 0] == 1


def test_the_operator(backend: str) -> None:
    """What is saved has the shape that was promised to the compiler."""
    x, labels = torch.randn(20, 8, requires_grad=True), torch.arange(20) // 4

    @torch.compile(fullgraph=True, backend="eager")
    def step(rows: Tensor) -> Tensor:
        return fused_triplet_loss(rows, labels, backend=backend)

    (found,) = torch.autograd.grad(step(x), x)
    (wanted,) = torch.autograd.grad(fused_triplet_loss(x, labels, backend=backend), x)
    assert torch.equal(found, wanted)


def test_the_backend_takes_panels_from_some_features_on(
    monkeypatch: pytest.MonkeyPatch, steps_made: list[str], backend: str
) -> None:
    monkeypatch.setattr(configurations, "PANEL_FEATURES", 32)
    assert backend in registry.backends() and "triton" in sys.modules
    labels = torch.arange(20) // 4
    for features in (31, 32):
        fused_triplet_loss(torch.randn(20, features), labels, backend=backend)
    assert steps_made == ["triplet_hard"]
