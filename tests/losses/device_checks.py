"""What holds on both GPU backends, which run on CPU tensors here: ties, short and long rows, a
single class, and settings of PyTorch or tensors that a user may come with."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import dmlap_kernels
from dmlap_kernels.backends.device import terms
from dmlap_kernels.problem import PairSpec
from tests.losses.cases import Problem, make_problem, usual
from tests.losses.compare import run
from tests.losses.losses_table import LOSSES

# Where the newer setting of the precision of products is.
PRECISIONS = ("backends.cuda.matmul", "backends")
TRIPLETS = ("triplet_hard", "triplet_semihard", "triplet_all", "triplet_distance_weighted")
LENGTHS = (0.0, 1e-30, 5e-13, 2e-12, 3e-10, 1e19, 1e30, 2e38)
# Not of the hardest triplet: from a row of zeros all others are as far.
NORMALIZED = ("triplet_all", "nt_xent", "sup_con", "n_pairs", "contrastive")


def check_precision(setting: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are taken in the precision that PyTorch's newer setting says."""
    owner = operator.attrgetter(setting)(torch)
    if not hasattr(owner, "fp32_precision"):
        pytest.skip("this PyTorch has the older setting alone")
    seen = []
    pack = terms.pack

    def noted(*args: Any) -> Any:
        sides = pack(*args)
        seen.append(sides.precision)
        return sides

    monkeypatch.setattr(terms, "pack", noted)
    before = owner.fp32_precision
    owner.fp32_precision = "tf32"
    try:
        run(LOSSES["nt_xent"].fused, problem_of("nt_xent"), backend=backend)
    finally:
        owner.fp32_precision = before
    assert set(seen) == {"high"}


def problem_of(loss: str, **options: Any) -> Problem:
    return make_problem(usual(loss, **({"rows": 20, "features": 8} | options)))


def assert_as_reference(loss: str, problem: Problem, backend: str) -> None:
    """The formula by eager PyTorch in float64, whose gradients are autograd's."""
    truth = run(LOSSES[loss].reference, problem.cast(torch.float64))
    assert_near(run(LOSSES[loss].fused, problem, backend=backend), truth)


def assert_near(found: tuple[Tensor, list[Tensor]], wanted: tuple[Tensor, list[Tensor]]) -> None:
    """Row by row, as gradients of short and of long rows differ by many orders."""
    (ours, our_gradients), (truth, gradients) = found, wanted
    torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-6)
    for mine, true in zip(our_gradients, gradients, strict=True):
        for row, true_row in zip(mine.double(), true, strict=True):
            scale = true_row.abs().max().item()
            torch.testing.assert_close(row, true_row, rtol=1e-5, atol=2e-5 * scale + 1e-45)


def check_ties(loss: str, refs: bool, backend: str) -> None:
    """A negative as near to the positive as to the anchor: each has half of the gradient."""
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.25, -2.0]])
    labels = torch.tensor([0, 0, 1, 2])
    y, ref_labels = (x.clone(), labels) if refs else (None, None)
    keywords: dict[str, Any] = {"margin": 0.5, "swap": True, "reduction": "mean"}
    if loss == "triplet_distance_weighted":
        keywords |= {"seed": 3, "cutoff": 0.5, "nonzero_loss_cutoff": 1.4}
    assert_as_reference(loss, Problem(x, labels, y, ref_labels, keywords), backend)


def check_lengths(loss: str, length: float, refs: bool, backend: str) -> None:
    """Rows brought to unit length, if they are not too short, as by `F.normalize` in float64."""
    g = torch.Generator().manual_seed(3)
    x, labels = torch.randn(9, 3, generator=g), torch.arange(9) % 3
    y, ref_labels = (torch.randn(12, 3, generator=g), torch.arange(12) % 3) if refs else (None,) * 2
    for rows in (x, y):
        if rows is not None:
            rows[4] *= length / rows[4].norm()
    keywords: dict[str, Any] = {"reduction": "mean"}
    if loss in ("n_pairs", "sup_con"):
        keywords |= {"distance": "cosine"}
    else:
        keywords |= {"normalize": True}
    if loss == "contrastive":
        keywords |= {"pos_margin": 0.1, "neg_margin": 1.1}
    problem = Problem(x, labels, y, ref_labels, keywords)
    truth = run(LOSSES[loss].fused, problem.cast(torch.float64), backend="torch")
    assert_near(run(LOSSES[loss].fused, problem, backend=backend), truth)


def check_single_class(refs: bool, backend: str) -> None:
    """Lifted structure: the logarithm of a sum over no negatives is -inf, and the hinge 0."""
    g = torch.Generator().manual_seed(1)
    x, labels = torch.randn(5, 4, generator=g), torch.zeros(5, dtype=torch.int64)
    y, ref_labels = (torch.randn(7, 4, generator=g), labels[:1].expand(7)) if refs else (None,) * 2
    keywords = {"pos_margin": 0.0, "neg_margin": 3.0, "reduction": "mean"}
    problem = Problem(x, labels, y, ref_labels, keywords)
    value, gradients = run(LOSSES["lifted_structure_original"].fused, problem, backend=backend)
    assert value == 0
    assert all(not gradient.any() for gradient in gradients)
    # Of one more class, which all references are negatives of, and no anchor of the others sees.
    problem = replace(problem, labels=torch.tensor([0, 0, 0, 0, 1]))
    assert_as_reference("lifted_structure_original", problem, backend)


def negated(tensor: Tensor) -> Tensor:
    """The same values, whose sign is to be changed by whoever reads them."""
    view = torch._neg_view(-tensor)
    assert view.is_neg() and torch.equal(view.resolve_neg(), tensor)
    return view


def check_lazily_negated(loss: str, backend: str) -> None:
    """Embeddings, references, labels, numbers of anchors and upstream gradients are read with
    their sign."""
    proxies = LOSSES[loss].proxies
    problem = problem_of(loss, refs="more", reduction="none")
    assert problem.y is not None
    upstream = torch.linspace(-1, 1, len(problem.y if loss == "proxy_anchor" else problem.x))
    if not proxies:
        problem.keywords["self_index"] = torch.arange(len(problem.x)) - 1
    truth = run(LOSSES[loss].fused, problem, upstream, backend=backend)
    lazy = replace(problem, keywords=dict(problem.keywords))
    lazy.x, lazy.y, lazy.labels = (negated(t) for t in (problem.x, problem.y, problem.labels))
    if problem.ref_labels is not None:
        lazy.ref_labels = negated(problem.ref_labels)
    for name, value in problem.keywords.items():
        if isinstance(value, Tensor):
            lazy.keywords[name] = negated(value)
    found = run(LOSSES[loss].fused, lazy, negated(upstream), backend=backend)
    for mine, true in zip((found[0], *found[1]), (truth[0], *truth[1]), strict=True):
        assert torch.equal(mine, true)


def check_defaults(loss: str, backend: str) -> None:
    """Default device and dtype are for tensors that a user makes, not for those made here."""
    problem = problem_of(loss, refs="more")
    call = LOSSES[loss].fused
    options = problem.keywords | {"backend": backend, "return_stats": "class_scores"}

    def both() -> list[Tensor]:
        value, gradients = run(call, problem, backend=backend)
        _, stats = call(*problem.args(), **options)
        scores = stats.class_scores
        return [value, *gradients, stats.violation, stats.hardest_negative, scores.mean_violation]

    truth = both()
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        found = both()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)
    for mine, true in zip(found, truth, strict=True):
        assert mine.dtype == true.dtype
        assert torch.equal(mine, true)


def check_searches_under_defaults(backend: str) -> None:
    x, labels = torch.randn(9, 4), torch.arange(9) // 3
    calls: tuple[Callable[[], Any], ...] = (
        lambda: dmlap_kernels.nearest(x, None, 3, backend=backend),
        lambda: dmlap_kernels.hard_classes(x, labels, 2, backend=backend),
    )
    for call in calls:
        truth = call()
        torch.set_default_device("meta")
        try:
            found = call()
        finally:
            torch.set_default_device(None)
        for mine, true in zip(found, truth, strict=True):
            assert torch.equal(mine, true)


def check_without_memory(backend: Any) -> None:
    """One sentence before any pointer is taken."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from dmlap_kernels.problem import PairProblem

    spec = PairSpec("triplet_hard", (0.2, 0.0, 0.0))
    x, labels = torch.randn(4, 2), torch.tensor([0, 0, 1, 1])
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        fake_labels = mode.from_tensor(labels)
        problems = [PairProblem(fake, fake_labels, None, None)]
    problems.append(PairProblem(x.to_sparse(), labels, None, None))
    for problem in problems:
        with pytest.raises(TypeError, match="reads dense tensors that lie in memory, got a"):
            backend.forward(spec, problem, False, False)

    def mapped(rows: Tensor) -> Tensor:
        return backend.forward(spec, PairProblem(rows, labels, None, None), False, False).loss

    with pytest.raises(TypeError, match="reads dense tensors that lie in memory, got a"):
        torch.func.vmap(mapped)(torch.randn(3, 4, 2))
