"""The hardest pairs that TensorBoard shows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dmlap_kernels.data import Split
from dmlap_kernels.trainer import TrainConfig, Trainer
from dmlap_kernels.trainer.hard_pairs import HardPairs
from dmlap_kernels.trainer.tensorboard import EventWriter
from tests.trainer.helpers import quick_config, tiny_data


def _run(values: list[list[int]], **options: Any) -> Any:
    """An encoder that reads the first pixel; a list of values for each class."""
    pixels = torch.tensor([v for group in values for v in group], dtype=torch.uint8)
    images = pixels[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    sizes = torch.tensor([len(group) for group in values])
    labels = torch.arange(len(values)).repeat_interleave(sizes)
    split = Split(images, labels, tuple("abcdefgh"[: len(values)]))
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 1, bias=False))
    nn.init.constant_(encoder[1].weight, 255 / 64)
    return SimpleNamespace(config=TrainConfig(**options), encoder=encoder, watched=split)


def test_pairs_are_the_hardest_and_share_no_image() -> None:
    found = HardPairs(_run([[0, 10, 200], [12, 15, 90], [205, 250]])).find()
    assert found["nearest of different classes"].lines == [
        "a (image 1) and b (image 3): 2.000",
        "a (image 2) and c (image 6): 5.000",
        "a (image 0) and b (image 4): 15.000",
        "b (image 5) and c (image 7): 160.000",
    ]
    farthest = found["farthest of one class"]
    assert farthest.lines[0] == "a (image 0) and a (image 2): 200.000"
    # A frame of 2 around 8 pixels, two columns.
    assert farthest.picture.shape == (1, 3 * 12, 24)
    assert farthest.picture[0, 6, 6] == 0 and farthest.picture[0, 6, 18] > 0.7


def test_classes_of_one_image_leave_an_empty_picture() -> None:
    found = HardPairs(_run([[1], [2], [3]])).find()
    assert found["farthest of one class"].lines == []
    assert len(found["nearest of different classes"].lines) == 1


def test_events_hold_them_and_the_run_is_the_same(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trained = []
    for shown in (False, True):
        trainer = Trainer(quick_config(steps=4, eval_every=2), tiny_data())
        pairs = HardPairs(trainer) if shown else None
        writer = EventWriter(tmp_path / str(shown), hard_pairs=pairs)
        trainer.observers.append(writer)
        trainer.run()
        writer.close()
        trained.append([t.clone() for t in trainer.encoder.state_dict().values()])
    assert all(map(torch.equal, *trained))
    found = events.EventAccumulator(str(tmp_path / "True"))
    found.Reload()
    names = ["pairs/nearest of different classes", "pairs/farthest of one class"]
    assert sorted(found.Tags()["images"]) == sorted(names)
    for name in names:
        assert [event.step for event in found.Images(name)] == [0, 2, 4]
