"""`self_index` with kernels that run on the CPU."""

from __future__ import annotations

import pytest
import torch

from dmlap_kernels.backends.cuda import WITHOUT
from tests.losses.cases import Case, Problem
from tests.losses.compare import compare, compare_stats, run
from tests.losses.losses_table import LOSSES
from tests.losses.test_self_index import WITH_REFERENCES, containing_the_batch, few_cases

CASES = [case for case in few_cases() if case.loss not in WITHOUT]
LABELS = pytest.mark.parametrize("labels_agree", [True, False], ids=["same-label", "other-label"])


@LABELS
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_value_and_gradient(case: Case, labels_agree: bool, emulated_backend: str) -> None:
    compare(case.loss, containing_the_batch(case, labels_agree), emulated_backend)


@LABELS
@pytest.mark.parametrize("case", CASES[::2], ids=lambda case: case.id)
def test_statistics(case: Case, labels_agree: bool, emulated_backend: str) -> None:
    compare_stats(case.loss, containing_the_batch(case, labels_agree), emulated_backend)


@pytest.mark.parametrize("loss", [loss for loss in WITH_REFERENCES if loss not in WITHOUT])
def test_memory_of_many_tiles(loss: str, emulated_backend: str) -> None:
    """Anchors scattered in a memory of several tiles, some of them with another label there."""
    g = torch.Generator().manual_seed(0)
    memory = torch.randn(180, 20, generator=g)
    labels = torch.randint(0, 12, (180,), generator=g)
    itself = torch.randperm(180, generator=g)[:70]
    own = torch.where(torch.arange(70) % 3 == 0, labels[itself] + 1, labels[itself])
    keywords = {"seed": 5} if loss == "triplet_distance_weighted" else {}
    tensors = memory[itself], own, memory, labels
    problem = Problem(*tensors, keywords | {"self_index": itself})
    value, gradients = run(LOSSES[loss].fused, problem, backend=emulated_backend)
    exact = problem.cast(torch.float64)
    truth, true_gradients = run(LOSSES[loss].fused, exact, backend="torch")
    torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=1e-6)
    for mine, true in zip(gradients, true_gradients, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=0, atol=2e-5 * true.abs().max())
