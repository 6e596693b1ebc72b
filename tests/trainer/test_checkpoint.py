from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from dmlap_kernels.trainer import checkpoint as files
from dmlap_kernels.trainer.checkpoint import CheckpointError


def test_round_trip(tmp_path: Path) -> None:
    shared = torch.randn(3)
    tensors = {
        "a": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "b": torch.arange(4),
        "tied": shared,
        "tied again": shared,
    }
    state = {"step": 3, "loss": 0.1 + 0.2, "history": [{"x": 1}]}
    files.save_checkpoint(tmp_path, tensors, state)
    loaded, found = files.load_checkpoint(tmp_path)
    assert {n: t.tolist() for n, t in loaded.items()} == {n: t.tolist() for n, t in tensors.items()}
    assert {name: found[name] for name in state} == state


def test_a_write_that_dies_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.save_checkpoint(tmp_path, {"a": torch.zeros(2)}, {"step": 1})

    def die(*args: object) -> None:
        raise OSError("killed")

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(OSError, match="killed"):
        files.save_checkpoint(tmp_path, {"a": torch.ones(2)}, {"step": 2})
    monkeypatch.undo()
    assert files.load_checkpoint(tmp_path)[1]["step"] == 1
    files.save_checkpoint(tmp_path, {"a": torch.ones(2)}, {"step": 2})
    assert files.load_checkpoint(tmp_path)[1]["step"] == 2
    assert [p.name for p in tmp_path.iterdir()] == [files.FILE_NAME]


@pytest.mark.parametrize("damage", ["cut", "garbage", "foreign"])
def test_a_broken_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    path = files.save_checkpoint(tmp_path, {"a": torch.zeros(100)}, {"step": 1})
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "garbage":
        path.write_bytes(b"not a checkpoint")
    else:
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="checkpoint.safetensors is not a readable"):
        files.load_checkpoint(tmp_path)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint.safetensors"):
        files.load_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_optimizers_continue_bit_for_bit(kind: type[torch.optim.Optimizer]) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
        extra = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        return model, kind(model.parameters(), lr=0.1, **extra)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            optimizer.zero_grad()
            torch.manual_seed(number)
            model(torch.randn(2, 2, 5, 5)).square().sum().backward()
            optimizer.step()

    whole, optimizer = made()
    steps(whole, optimizer, range(6))
    half, optimizer = made()
    steps(half, optimizer, range(3))
    saved = {n: t.contiguous().clone() for n, t in files.optimizer_tensors(optimizer).items()}
    rest, optimizer = made()
    rest.load_state_dict(half.state_dict())
    files.load_optimizer(optimizer, saved)
    steps(rest, optimizer, range(3, 6))
    assert all(map(torch.equal, whole.parameters(), rest.parameters()))
