from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dmlap_kernels.trainer import Trainer
from dmlap_kernels.trainer.patience import Patience
from tests.trainer.helpers import TinyEncoder, quick_config, tiny_data

SETTINGS = {"patience": 1, "monitor_every": 2, "projection_steps": 50, "validation": 0.3}


def trainer_with(recalls: list[float], **changes: object) -> Trainer:
    """A trainer whose validation classes give these values of Recall@1, one after the other."""
    trainer = Trainer(quick_config(**(SETTINGS | changes)), tiny_data(), encoder=TinyEncoder())
    values = iter(recalls)
    trainer._monitored = lambda: next(values)  # type: ignore[method-assign]
    return trainer


def weight(trainer: Trainer) -> torch.Tensor:
    return trainer.encoder.linear.weight.detach().clone()  # type: ignore[union-attr]


def test_it_runs_out_after_so_many_evaluations_without_gain() -> None:
    encoder, patience = TinyEncoder(), Patience(2)
    found = []
    for value in (0.5, 0.5, 0.6, 0.4, 0.6):
        with torch.no_grad():
            encoder.linear.weight.fill_(value)
        found.append(patience.runs_out(value, encoder))
    assert found == [False, False, False, False, True]
    patience.restore(encoder)
    assert (encoder.linear.weight == 0.6).all()
    assert (patience.best, patience.stale, patience.weights) == (float("-inf"), 0, {})
    for limit in (0, True, 1.5):
        with pytest.raises(ValueError, match="limit must be an integer of at least 1, got"):
            Patience(limit)  # type: ignore[arg-type]


def test_a_projection_ends_with_its_best_weights() -> None:
    # Evaluated after 2, 4, 6 steps: the second was the best.
    trainer = trainer_with([0.2, 0.7, 0.6, 0.1])
    for _ in range(4):
        trainer.train_step()
    best, pinned = weight(trainer), trainer.pinned.indices
    for _ in range(3):
        trainer.train_step()
    assert trainer.projection.index == 1
    assert trainer.projection_began == 6
    assert torch.equal(trainer.projection.centers[0], best)
    assert pinned is not None and trainer.pinned.indices is not None
    assert not torch.equal(trainer.pinned.indices, pinned)


def test_l_batches_are_the_most() -> None:
    trainer = trainer_with([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], projection_steps=5)
    for _ in range(11):
        trainer.train_step()
    assert trainer.projection.index == 2
    assert trainer.projection_began == 10


def test_the_run_ends_with_the_best_weights_of_its_last_projection() -> None:
    trainer = trainer_with([0.9, 0.1], monitor_every=3, steps=5)
    while trainer.step < 3:
        trainer.train_step()
    best = weight(trainer)
    trainer.run()
    assert torch.equal(weight(trainer), best)


def test_resume_equals_uninterrupted(tmp_path: Path) -> None:
    config = quick_config(**(SETTINGS | {"steps": 20}))
    whole = Trainer(config, tiny_data())
    whole.run()
    assert whole.projection.index > 0
    first = Trainer(config, tiny_data(), out=tmp_path)
    while first.step < 9:
        first.train_step()
    first.save()
    second = Trainer.resume(tmp_path, tiny_data())
    second.run()
    for mine, theirs in zip(
        second.encoder.state_dict().values(), whole.encoder.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_it_needs_validation_classes() -> None:
    config = quick_config(patience=2)
    with pytest.raises(ValueError, match="patience needs validation classes to watch"):
        Trainer(config, tiny_data())


def test_a_validation_split_of_the_data_will_do() -> None:
    data = tiny_data()
    data = replace(data, validation=data.test)
    assert Trainer(quick_config(patience=2), data).patience is not None
