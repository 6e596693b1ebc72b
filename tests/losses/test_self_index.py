"""`self_index`: an anchor that lies among the references is not paired with itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import dmlap_kernels
from tests.losses.cases import Case, Problem, far_from_kinks, make_problem, usual, variants
from tests.losses.compare import compare, compare_stats, run
from tests.losses.losses_table import LOSSES

WITH_REFERENCES = [loss for loss, row in LOSSES.items() if not row.proxies]
CASES = [
    usual(loss, rows=25, features=17, refs="more", distance=distance, options=options)
    for loss in WITH_REFERENCES
    for distance in (LOSSES[loss].distances or (LOSSES[loss].default_distance,))
    for options in variants(loss)
]


def few_cases() -> list[Case]:
    """For backends that are slow in tests: every set of options of a loss, with some distance."""
    found = []
    for loss in WITH_REFERENCES:
        distances = LOSSES[loss].distances or (LOSSES[loss].default_distance,)
        ends = variants(loss)
        for i in range(max(2, len(ends))):
            pair = (distances[i % len(distances)], ends[i % len(ends)])
            cases = (case for case in CASES if case.loss == loss)
            found += [case for case in cases if (case.distance, case.options) == pair]
    return found


def containing_the_batch(case: Case, labels_agree: bool = True) -> Problem:
    """References that hold most of the anchors somewhere among others, and where."""
    for seed in range(1, 40):
        problem = make_problem(case)
        assert problem.y is not None and problem.ref_labels is not None
        g = torch.Generator().manual_seed(seed)
        at = torch.randperm(len(problem.y), generator=g)[: len(problem.x)]
        y, ref_labels = problem.y.clone(), problem.ref_labels.clone()
        known = torch.arange(len(problem.x)) % 4 != 3
        y[at[known]] = problem.x[known]
        if labels_agree:
            ref_labels[at[known]] = problem.labels[known]
        itself = torch.where(known, at, -1)
        keywords = problem.keywords | {"self_index": itself}
        problem = replace(problem, y=y, ref_labels=ref_labels, keywords=keywords)
        if far_from_kinks(case.loss, problem):
            return problem
    raise AssertionError(f"no draw of {case.id} keeps away from kinks")


@pytest.mark.parametrize("labels_agree", [True, False], ids=["same-label", "other-label"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_value_and_gradient(case: Case, labels_agree: bool, backend: str) -> None:
    compare(case.loss, containing_the_batch(case, labels_agree), backend)


@pytest.mark.parametrize("labels_agree", [True, False], ids=["same-label", "other-label"])
@pytest.mark.parametrize("loss", WITH_REFERENCES)
def test_statistics(loss: str, labels_agree: bool, backend: str) -> None:
    case = usual(loss, rows=25, features=17, refs="more", dtype=torch.float64)
    compare_stats(loss, containing_the_batch(case, labels_agree), backend)


@pytest.mark.parametrize("loss", WITH_REFERENCES)
def test_the_batch_as_its_own_references_is_the_batch(loss: str, backend: str) -> None:
    """Value as in the self case, and the gradients of both roles add up to it."""
    if loss == "n_pairs":
        pytest.skip("without references it takes one pair a class, with references all")
    problem = make_problem(usual(loss, rows=33, dtype=torch.float64))
    value, (gradient,) = run_plain(loss, problem, backend)
    itself = torch.arange(len(problem.x))
    twice = replace(problem, y=problem.x.clone(), ref_labels=problem.labels)
    twice.keywords = problem.keywords | {"self_index": itself}
    other, gradients = run_plain(loss, twice, backend)
    torch.testing.assert_close(other, value)
    torch.testing.assert_close(gradients[0] + gradients[1], gradient)


def run_plain(loss: str, problem: Problem, backend: str):
    value, gradients = run(LOSSES[loss].fused, problem, backend=backend)
    return value, gradients[: 1 if problem.y is None else 2]


@pytest.mark.parametrize("loss", WITH_REFERENCES)
def test_memory_of_many_tiles(loss: str, native: str) -> None:
    """Anchors at the end of a memory of many tiles, found again at their indices."""
    g = torch.Generator().manual_seed(0)
    memory = torch.randn(700, 24, generator=g, dtype=torch.float64)
    labels = torch.randint(0, 40, (700,), generator=g)
    itself = torch.arange(540, 700)
    # A circle that is not so sharp that the pair of a row and itself is lost to rounding.
    keywords = {"triplet_distance_weighted": {"seed": 5}, "circle": {"gamma": 3.0}}.get(loss, {})
    tensors = memory[itself], labels[itself], memory, labels
    keywords |= {"reduction": "mean"}  # a positive at a distance of zero counts, too
    problem = Problem(*tensors, keywords | {"self_index": itself})
    value, gradients = run(LOSSES[loss].fused, problem, backend=native)
    truth, true_gradients = run(LOSSES[loss].fused, problem, backend="torch")
    torch.testing.assert_close(value, truth, rtol=1e-9, atol=1e-9)
    for mine, true in zip(gradients, true_gradients, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-8, atol=1e-9 * true.abs().max() + 1e-15)
    unaware, _ = run(LOSSES[loss].fused, Problem(*tensors, keywords), backend=native)
    # The farthest positive is another row than the anchor.
    assert torch.equal(value, unaware) == (loss == "triplet_hard")


@pytest.mark.parametrize("labels_agree", [True, False], ids=["same-label", "other-label"])
@pytest.mark.parametrize(
    ("loss", "options"), [(loss, dict(o)) for loss in WITH_REFERENCES for o in variants(loss)]
)
def test_classes_of_hundreds(loss: str, options: dict, labels_agree: bool, native: str) -> None:
    """Classes of more rows than a panel holds, and more positives than a sweep keeps."""
    case = usual(loss, rows=30, features=6, refs="more", dtype=torch.float64)
    keywords = make_problem(replace(case, options=tuple(options.items()))).keywords
    g = torch.Generator().manual_seed(1)
    memory = torch.randn(230, 6, generator=g, dtype=torch.float64)
    labels = torch.randint(0, 2, (230,), generator=g)
    itself = torch.where(torch.arange(90) % 5 == 4, -1, torch.arange(100, 190))
    own = labels[100:190] if labels_agree else 1 - labels[100:190]
    # Where nothing is left out the anchor is no row of the memory: a copy would be as far from each
    # negative as the anchor is, but for rounding, and `swap` would have no choice.
    anchors = torch.where(itself[:, None] < 0, 2 - memory[100:190], memory[100:190])
    problem = Problem(anchors, own, memory, labels, keywords | {"self_index": itself})
    for name in problem.parameters():
        problem.keywords = problem.keywords | {name: problem.keywords[name].flatten()[0]}
    value, gradients = run(LOSSES[loss].fused, problem, backend=native)
    truth, true_gradients = run(LOSSES[loss].fused, problem, backend="torch")
    torch.testing.assert_close(value, truth, rtol=1e-9, atol=1e-9)
    for mine, true in zip(gradients, true_gradients, strict=True):
        largest = true.abs().max().clamp(min=1e-3)  # weights of a boundary may cancel
        torch.testing.assert_close(mine, true, rtol=1e-8, atol=1e-9 * largest)


@pytest.mark.parametrize("normalize", [False, True])
def test_nearest(normalize: bool, backend: str) -> None:
    g = torch.Generator().manual_seed(3)
    y = torch.randn(50, 7, generator=g)
    itself = torch.tensor([4, -1, 49, 0])
    queries = y[itself.clamp(min=0)] + torch.tensor([[0.0], [1.0], [0.0], [0.0]])
    found = dmlap_kernels.nearest(
        queries, y, 49, normalize=normalize, self_index=itself, backend=backend
    )
    for row, own in enumerate(itself.tolist()):
        others = [j for j in range(50) if j != own]
        d = torch.cdist(
            *(
                torch.nn.functional.normalize(t.double()) if normalize else t.double()
                for t in (queries[row : row + 1], y)
            )
        )[0]
        expected = sorted(others, key=lambda j: (float(d[j]), j))[:49]
        assert found.indices[row].tolist() == expected
    with pytest.raises(ValueError, match=r"k must be in 1\.\.49"):
        dmlap_kernels.nearest(queries, y, 50, self_index=itself, backend=backend)
