"""Counts of violated constraints per class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dmlap_kernels.trainer import Trainer, class_violations
from dmlap_kernels.trainer import checkpoint as files
from dmlap_kernels.trainer.class_violations import WINDOWS, ClassViolations, shares
from tests.trainer.helpers import quick_config, tiny_data


def _plain(x: torch.Tensor, labels: torch.Tensor, leading: int) -> dict[int, tuple[int, int]]:
    """Violated and all constraints of each class, by loops."""
    found: dict[int, tuple[int, int]] = {}
    others = range(leading) if leading else range(len(x))
    for i in range(leading, len(x)):
        far, near = -1.0, float("inf")
        for j in others:
            d = float((x[i].double() - x[j].double()).norm())
            if labels[i] == labels[j] and i != j:
                far = max(far, d)
            elif labels[i] != labels[j]:
                near = min(near, d)
        if far >= 0 and near < float("inf"):
            violated, known = found.get(int(labels[i]), (0, 0))
            found[int(labels[i])] = violated + (near <= far), known + 1
    return found


@pytest.mark.parametrize("leading", [0, 5])
@pytest.mark.parametrize("pairs", [8, 2**22])
def test_counts_are_those_of_loops(
    leading: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_violations, "_PAIRS", pairs)
    random = torch.Generator().manual_seed(3)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 0, 1, 1, 2, 3, 3, 6])
    x = 2 * torch.randn(7, 4, generator=random)[labels] + torch.randn(13, 4, generator=random)
    counts = ClassViolations(7)
    counts.record(0, x, labels, leading)
    expected = torch.zeros(2, 7, dtype=torch.int32)
    for label, pair in _plain(x, labels, leading).items():
        expected[:, label] = torch.tensor(pair)
    assert 0 < expected[0].sum() < expected[1].sum()
    assert torch.equal(counts.counts[:, 0], expected)
    # A class alone in the batch has no constraint; one that is not in it neither.
    assert shares(counts.counts).isnan()[0, 5:].all()


def test_windows_grow_with_the_run() -> None:
    counts = ClassViolations(2)
    x = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
    for step in range(WINDOWS * 4 + 1):
        counts.record(step, x, torch.tensor([0, 0, 1, 1]))
    assert counts.length == 8
    assert counts.counts[1].sum() == 4 * (WINDOWS * 4 + 1) and not counts.counts[0].any()
    found = shares(counts.counts)
    assert found.shape == (WINDOWS // 2 + 1, 2) and not found.any()


def test_directions_alone_count_for_cosines() -> None:
    x = torch.tensor([[1.0, 0.0], [9.0, 1.0], [0.0, 1.0], [1.0, 9.0]])
    for options, violated in (({"distance": "cosine"}, 0), ({"distance": "euclidean"}, 2)):
        counts = ClassViolations(2, **options)
        counts.record(0, x, torch.tensor([0, 0, 1, 1]))
        assert counts.counts[0].sum() == violated


@pytest.mark.parametrize("method", ["dmlap", "plain"])
def test_a_run_that_is_resumed_counts_as_one_that_was_not(method: str, tmp_path: Path) -> None:
    config = quick_config(method=method, steps=8)
    Trainer(config, tiny_data(), out=tmp_path / "whole").run()
    first = Trainer(config, tiny_data(), out=tmp_path / "cut", checkpoint_every=3)
    for _ in range(4):
        first.train_step()
        if first.step == 3:
            first.save()
    Trainer.resume(tmp_path / "cut", tiny_data()).run()
    counts = [
        files.load_checkpoint(tmp_path / name)[0]["violations.counts"] for name in ("whole", "cut")
    ]
    assert torch.equal(*counts) and counts[0][1].any()
