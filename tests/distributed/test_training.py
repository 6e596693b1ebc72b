"""Training on several processes against training in one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("safetensors")

from dmlap_kernels.trainer import Trainer
from tests.distributed import processes, training
from tests.trainer.helpers import TinyEncoder, tiny_data


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def of_two(folder: Path) -> list[dict[str, Any]]:
    first = training.trainer_of("batch normalisation", folder / "one")
    for _ in range(3):
        first.train_step()
    first.save()
    return processes.run(2, training.everything, folder, folder)


@pytest.mark.parametrize("name", training.RUNS)
def test_two_processes_train_as_one(name: str, of_two: list[dict[str, Any]]) -> None:
    trainer = training.trainer_of(name)
    trainer.run()
    expected, (first, second) = training.found(trainer), (ranks[name] for ranks in of_two)
    for part in ("weights", "loss", "violations"):
        torch.testing.assert_close(second[part], first[part], rtol=0, atol=0, equal_nan=True)
    tolerance = training.ROUNDED.get(name, 2e-5)
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(first["weights"], expected["weights"], **close)
    torch.testing.assert_close(first["loss"], expected["loss"], **close)
    counted = name not in training.ROUNDED
    for kind in ("train", "evaluation") if counted else ():
        assert len(first[kind]) == len(expected[kind])
        for one, other in zip(first[kind], expected[kind], strict=True):
            assert one == pytest.approx(other, rel=tolerance, abs=tolerance)
    if counted:
        assert torch.equal(first["violations"], expected["violations"])
        if expected["neighbors"] is not None:
            assert torch.equal(first["neighbors"], expected["neighbors"])


def test_a_run_goes_on_with_another_number_of_processes(
    of_two: list[dict[str, Any]], folder: Path
) -> None:
    whole = training.trainer_of("batch normalisation")
    whole.run()
    last = Trainer.resume(folder / "two", tiny_data(10))
    assert last.step == 3
    last.run()
    resumed = [of_one["resumed"] for of_one in of_two]
    assert all(of_one["metrics"] for of_one in resumed)
    for trained in (*resumed, training.found(last)):
        expected = training.found(whole)
        torch.testing.assert_close(trained["weights"], expected["weights"], rtol=2e-5, atol=2e-5)
        assert trained["evaluation"][-1] == pytest.approx(expected["evaluation"][-1])
        assert torch.equal(trained["violations"], expected["violations"])


def test_all_processes_end_together_and_say_the_same(of_two: list[dict[str, Any]]) -> None:
    first, second = (of_one["stopped"] for of_one in of_two)
    assert first == second
    assert first["interrupted"] == "Interrupted: interrupted after step 4 of 50"
    assert first["saved"] == 4
    # The sample is looked for in the batch of both.
    assert "sample 17 (class 'c2'" in first["nan"] and "its image holds" in first["nan"]
    assert first["other data"].startswith("ValueError: data must be the same for all processes")
    assert first["config"].startswith("ValueError: config must be the same for all processes")
    assert first["used folder"].startswith("FileExistsError: ")
    assert first["few"].startswith(
        "ValueError: classes_per_batch and samples_per_class must give each process a sample"
    )


def test_dropout_differs_between_processes_and_leaves_them_alike(
    of_two: list[dict[str, Any]],
) -> None:
    first, second = (of_one["draws"] for of_one in of_two)
    masks = len(first) - 1 - len(TinyEncoder().state_dict())
    assert masks >= 2
    assert not any(map(torch.equal, first[:masks], second[:masks]))
    assert all(map(torch.equal, first[masks:], second[masks:]))
