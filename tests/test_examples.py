"""The examples run, in seconds, and learn."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

import dmlap_kernels

FOLDER = Path(__file__).resolve().parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path) -> None:
    """Each returns Recall@1 on unseen classes before and after training."""
    before, after = runpy.run_path(str(path))["main"]()
    assert before < 0.1 and after > 0.4


def test_the_memory_bank_names_its_anchors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each anchor's `self_index` is the row of the memory that holds it."""
    loss = dmlap_kernels.fused_contrastive_loss
    calls = []

    def checked(x, labels, memory, memory_labels, self_index):
        assert torch.equal(memory[self_index], x) and torch.equal(memory_labels[self_index], labels)
        calls.append(len(memory))
        return loss(x, labels, memory, memory_labels, self_index=self_index)

    monkeypatch.setattr(dmlap_kernels, "fused_contrastive_loss", checked)
    runpy.run_path(str(FOLDER / "memory_bank.py"))["main"]()
    assert calls[0] == 32 and calls[-1] == 512


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path: Path) -> None:
    assert 30 <= len(path.read_text().splitlines()) <= 60
