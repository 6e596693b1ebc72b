"""Batches that workers prepare: the same bits, from however many; what is said when one ends."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import get_worker_info

pytest.importorskip("safetensors")
pytest.importorskip("PIL.Image")

from dmlap_kernels import cli
from dmlap_kernels.data import Dataset, RandomCrop
from dmlap_kernels.trainer import Interrupted, Trainer
from dmlap_kernels.trainer.loading import BatchLoader, default_workers, known_until
from tests.data.photo_layouts import make_cub
from tests.trainer.helpers import TIMES, DropoutEncoder, quick_config, tiny_data

PHOTOS = {"image_size": 16, "steps": 9, "eval_every": 6, "encoder": "conv:4,8", "hard_refresh": 4}


def _finished(trainer: Trainer) -> tuple[list[torch.Tensor], list[dict[str, float]]]:
    trainer.run()
    entries = [
        {name: value for name, value in entry.items() if name not in TIMES}
        for entry in trainer.history["train"]
    ]
    return list(trainer.encoder.state_dict().values()), entries


def _assert_same(first: Any, second: Any) -> None:
    assert all(map(torch.equal, first[0], second[0]))
    assert first[1] == second[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"projection_steps": 3},
        {"projection_steps": 3, "augment_representatives": True, "classes": "uniform"},
        {"projection_steps": 4, "representative_choice": "medoid"},
        {"method": "plain", "augment": False},
    ],
    ids=["hard", "uniform", "medoid", "plain"],
)
def test_any_number_of_workers_gives_the_same_bits(changes: dict, tmp_path: Path) -> None:
    config = quick_config(data=f"cub:{make_cub(tmp_path)}", **{**PHOTOS, **changes})
    alone = _finished(Trainer(config, workers=0))
    for workers in (1, 2):
        _assert_same(alone, _finished(Trainer(config, workers=workers)))


@pytest.mark.parametrize("patience", [None, 1])
def test_images_in_memory_and_random_encoders_too(patience: int | None) -> None:
    found = []
    for workers in (0, 2):
        torch.manual_seed(1)
        config = quick_config(patience=patience, monitor_every=2, validation=0.4, steps=14)
        trainer = Trainer(config, tiny_data(), encoder=DropoutEncoder(), workers=workers)
        found.append(_finished(trainer))
    _assert_same(*found)


def test_a_run_is_resumed_with_another_number(tmp_path: Path) -> None:
    config = quick_config(data=f"cub:{make_cub(tmp_path / 'data')}", **PHOTOS)
    whole = _finished(Trainer(config, workers=0))
    cut = Trainer(config, out=tmp_path / "run", workers=2)
    with pytest.raises(Interrupted):
        cut.run(stop=lambda: cut.step == 5)
    _assert_same(whole, _finished(Trainer.resume(tmp_path / "run", workers=1)))


def test_few_batches_are_prepared_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = []
    take = BatchLoader.take

    def noted(self: BatchLoader, *arguments: Any) -> Any:
        found = take(self, *arguments)
        ahead.append(len(self._ahead))
        return found

    monkeypatch.setattr(BatchLoader, "take", noted)
    Trainer(quick_config(classes="uniform"), tiny_data(), workers=2).run()
    # Of the last steps fewer are left.
    assert ahead == [4] * 20 + [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("changes", "until"),
    [
        ({"method": "plain"}, 24),
        ({"classes": "uniform"}, 24),
        ({"classes": "hard"}, 14),
        ({"classes": "uniform", "representative_choice": "k_center"}, 11),
        ({"classes": "uniform", "patience": 1, "monitor_every": 2, "validation": 0.5}, 10),
        ({"classes": "uniform", "patience": 1, "monitor_every": 9, "validation": 0.5}, 11),
        ({"classes": "uniform", "steps": 9}, 9),
        ({"classes": "uniform", "steps": 2}, 9),
    ],
)
def test_batches_are_known_until_weights_decide(changes: dict, until: int) -> None:
    """At step 8 of a projection that began at 6, of at most 5 batches."""
    assert known_until(quick_config(**changes), 8, 6) == until


def test_the_default_is_for_images_in_files(tmp_path: Path) -> None:
    assert default_workers(tiny_data().train) == 0
    trainer = Trainer(quick_config(data=f"cub:{make_cub(tmp_path)}", image_size=16))
    assert trainer.loader.workers == default_workers(trainer.data.train)
    for workers in (-1, 1.0, True):
        with pytest.raises(ValueError, match="workers must be an integer of at least 0"):
            Trainer(quick_config(), tiny_data(), workers=workers)


def test_a_broken_image_is_named_as_without_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"cub:{make_cub(tmp_path / 'data')}"
    for image in range(4):
        (tmp_path / f"data/images/002.Bird_2/Bird_{image}.jpg").write_bytes(b"hello")
    said = []
    for workers in (0, 2):
        out = f"--out={tmp_path / str(workers)}"
        arguments = ["train", f"--data={source}", "--method=plain", "--image-size=16", "--steps=9"]
        assert cli.main([*arguments, "--classes-per-batch=4", out, f"--workers={workers}"]) == 1
        said.append(capsys.readouterr().err.splitlines()[-1].replace(out[6:], ""))
    assert "stopped: data 'cub': " in said[0] and "is not a readable image" in said[0]
    assert said[0] == said[1]


class _Deadly:
    """An augmentation that ends the worker it runs in."""

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return images


def test_the_end_of_a_worker_is_told_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    data = tiny_data()
    data = Dataset("tiny", data.train, data.test, augment=_Deadly())
    trainer = Trainer(quick_config(classes="uniform"), data, out=tmp_path, workers=1)
    with pytest.raises(ChildProcessError, match=r"fewer of them need less \(workers, --workers\)"):
        trainer.run()
    Trainer.resume(tmp_path, data, workers=0).run()


def test_the_log_tells_how_long_steps_waited() -> None:
    logged = []

    class Watcher:
        def on_step(self, step: int, loss: float, violated: float) -> None: ...

        def on_log(self, entry: dict[str, float]) -> None:
            logged.append(entry)

        def on_evaluation(self, entry: dict[str, float]) -> None: ...

    Trainer(quick_config(), tiny_data(), observers=[Watcher()]).run()
    waits = [entry["waited"] for entry in logged]
    assert all(a < b for a, b in itertools.pairwise(waits))
    assert all(entry["waited"] < entry["seconds"] for entry in logged)
    spans = [b["seconds"] - a["seconds"] for a, b in itertools.pairwise(logged)]
    speeds = [12 / span for span in spans]
    assert [entry["images_per_second"] for entry in logged[1:]] == pytest.approx(speeds)


def test_random_crops_keep_their_augmentation_in_workers() -> None:
    """What a worker gets is the run's own augmentation, not a default."""
    data = tiny_data()
    crop = Dataset("tiny", data.train, data.test, augment=RandomCrop())
    runs = [_finished(Trainer(quick_config(), crop, workers=workers)) for workers in (0, 1)]
    _assert_same(*runs)
