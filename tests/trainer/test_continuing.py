"""Continuing a run with its data elsewhere, for more steps, or in less memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmlap_kernels.trainer import CheckpointError, Interrupted, Trainer, evaluate_run
from dmlap_kernels.trainer import checkpoint as files
from tests.trainer.helpers import DropoutEncoder, TinyEncoder, quick_config, tiny_data

pillow = pytest.importorskip("PIL.Image")


def _folder(path: Path, seed: int = 0, tests_seed: int = 0) -> Path:
    """Class folders of images that the seeds decide."""
    for part, classes, of_seed in (("train", 6, seed), ("test", 3, tests_seed)):
        random = np.random.default_rng(of_seed)
        for c in range(classes):
            (folder := path / part / f"{part}{c}").mkdir(parents=True)
            for i in range(4):
                pixels = random.integers(0, 255, (8, 8), dtype=np.uint8)
                pillow.fromarray(pixels).save(folder / f"{i}.png")
    return path


def _interrupted(config: Any, out: Path, at: int, **given: Any) -> None:
    trainer = Trainer(config, out=out, **given)
    with pytest.raises(Interrupted):
        trainer.run(stop=lambda: trainer.step >= at)


def _weights(trainer: Trainer) -> list[torch.Tensor]:
    return [t.clone() for t in trainer.encoder.state_dict().values()]


def test_the_same_images_at_a_new_path(tmp_path: Path) -> None:
    old = _folder(tmp_path / "old")
    config = quick_config(data=f"folder:{old}", encoder="conv:4,4", steps=8)
    whole = Trainer(config)
    whole.run()
    _interrupted(config, tmp_path / "run", 3)
    new = tmp_path / "new"
    shutil.move(old, new)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Trainer.resume(tmp_path / "run")
    second = Trainer.resume(tmp_path / "run", f"folder:{new}")
    results = second.run()
    assert all(map(torch.equal, _weights(whole), _weights(second)))
    assert results["config"]["data"] == f"folder:{new}"
    # From here on the run knows where they are.
    assert evaluate_run(tmp_path / "run") == results["test"]


@pytest.mark.parametrize(
    ("seeds", "named"), [((1, 0), "train"), ((0, 1), "test"), ((1, 1), "train, test")]
)
def test_other_images_are_refused(seeds: tuple[int, int], named: str, tmp_path: Path) -> None:
    config = quick_config(data=f"folder:{_folder(tmp_path / 'old')}", encoder="conv:4,4", steps=8)
    _interrupted(config, tmp_path / "run", 3)
    other = _folder(tmp_path / "other", *seeds)
    with pytest.raises(
        CheckpointError, match=rf"had other images \({named}\) than 'folder:.*other"
    ):
        Trainer.resume(tmp_path / "run", f"folder:{other}")


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({"schedule": "constant"}, {}),
        ({"schedule": "constant", "method": "plain", "chunk_size": 5}, {}),
        ({"schedule": "constant", "loss": "proxy_anchor", "proximal_decay": 0.5}, {}),
        ({}, {"schedule": lambda step: 0.01 / (1 + step)}),
    ],
)
def test_more_steps_are_those_of_a_longer_run(
    changes: dict, given: dict, finished: bool, tmp_path: Path
) -> None:
    whole = Trainer(quick_config(**{**changes, "steps": 20}), tiny_data(), **_new(given))
    expected = whole.run()
    short = quick_config(**{**changes, "steps": 12})
    if finished:
        Trainer(short, tiny_data(), out=tmp_path, **_new(given)).run()
    else:
        _interrupted(short, tmp_path, 7, data=tiny_data(), **_new(given))
    second = Trainer.resume(tmp_path, tiny_data(), steps=20, **_new(given))
    assert second.step == (12 if finished else 7)
    results = second.run()
    assert all(map(torch.equal, _weights(whole), _weights(second)))
    assert results["test"] == expected["test"]
    assert results["config"]["steps"] == files.load_checkpoint(tmp_path)[1]["step"] == 20


def _new(given: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(8)
    return {"encoder": DropoutEncoder(), **given}


def test_a_prolonged_run_is_unfinished_until_its_end(tmp_path: Path) -> None:
    config = quick_config(steps=4, schedule="constant")
    Trainer(config, tiny_data(), encoder=TinyEncoder(), out=tmp_path).run()
    assert (tmp_path / "metrics.json").exists()
    second = Trainer.resume(tmp_path, tiny_data(), encoder=TinyEncoder(), steps=9)
    with pytest.raises(Interrupted, match="after step 6 of 9"):
        second.run(stop=lambda: second.step >= 6)
    assert not (tmp_path / "metrics.json").exists()
    assert Trainer.resume(tmp_path, tiny_data(), encoder=TinyEncoder()).config.steps == 9


@pytest.mark.parametrize(
    ("changes", "steps", "error", "named"),
    [
        ({}, 30, ValueError, "steps must stay 12, got 30: the schedule 'one_cycle' of the run"),
        ({"schedule": "cosine"}, 13, ValueError, "the schedule 'cosine' of the run depends on"),
        ({"schedule": "constant"}, 11, ValueError, "steps must be at least 12, which the run has"),
        ({"schedule": "constant"}, 13.5, TypeError, "steps must be an integer, got 13.5"),
        (
            {"schedule": "constant", "patience": 1, "validation": 0.4},
            30,
            ValueError,
            "the run is finished, and with patience it ended with the best weights",
        ),
    ],
)
def test_steps_that_a_run_cannot_have(
    changes: dict, steps: Any, error: type[Exception], named: str, tmp_path: Path
) -> None:
    config = quick_config(**{**changes, "steps": 12})
    Trainer(config, tiny_data(), encoder=TinyEncoder(), out=tmp_path).run()
    before = (tmp_path / files.FILE_NAME).read_bytes()
    with pytest.raises(error, match=named):
        Trainer.resume(tmp_path, tiny_data(), encoder=TinyEncoder(), steps=steps)
    assert (tmp_path / files.FILE_NAME).read_bytes() == before
    # As many as it has are no change.
    Trainer.resume(tmp_path, tiny_data(), encoder=TinyEncoder(), steps=12)
