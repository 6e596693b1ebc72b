"""Whatever would fail after hours is refused before step 0 in one sentence; nothing is lost."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dmlap_kernels.data import Dataset, Split
from dmlap_kernels.trainer import (
    Interrupted,
    NonFiniteEmbeddings,
    OutOfMemory,
    Trainer,
    evaluate_run,
    load_encoder,
)
from dmlap_kernels.trainer import checkpoint as files
from dmlap_kernels.trainer.model import build_encoder, resolve_device
from tests.trainer.helpers import TinyEncoder, quick_config, tiny_data


def _fewer(split: Split, keep: dict[int, int]) -> Split:
    """``split`` with only so many images of some classes."""
    seen: dict[int, int] = {}
    rows = []
    for row, label in enumerate(split.labels.tolist()):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= keep.get(label, 10**9):
            rows.append(row)
    return Split(split.images[rows], split.labels[rows], split.class_names)


def _data(part: str, keep: dict[int, int], **sizes: int) -> Dataset:
    data = tiny_data(**sizes)
    splits = {"train": data.train, "test": data.test}
    splits[part] = _fewer(splits[part], keep)
    return Dataset("tiny", splits["train"], splits["test"], augment=data.augment)


@pytest.mark.parametrize("changes", [{}, {"validation": 0.4}, {"validation_fold": 0}])
def test_test_classes_of_one_image_are_refused_at_once(changes: dict, tmp_path: Path) -> None:
    data = _data("test", dict.fromkeys(range(4), 1))
    with pytest.raises(ValueError, match="none of the 4 images of 4 test classes has one"):
        Trainer(quick_config(**changes), data, encoder=TinyEncoder(), out=tmp_path / "run")
    assert not list(tmp_path.iterdir())
    # One class that can be judged is enough.
    Trainer(quick_config(**changes), _data("test", {0: 1, 1: 1, 2: 1}), encoder=TinyEncoder())


def test_validation_classes_of_one_image_are_refused_at_once() -> None:
    data = _data("train", {0: 1, 1: 1, 2: 1})
    with pytest.raises(ValueError, match="images of 3 validation classes has one"):
        Trainer(quick_config(validation_fold=0), data, encoder=TinyEncoder())


def test_a_gallery_without_the_queries_classes_is_refused() -> None:
    data = tiny_data()
    labels = data.test.labels
    apart = Split(data.test.images, labels, data.test.class_names)
    object.__setattr__(apart, "labels", labels + 100)
    data = Dataset("tiny", data.train, data.test, gallery=apart)
    with pytest.raises(ValueError, match="another one in the gallery to be found"):
        Trainer(quick_config(), data, encoder=TinyEncoder())


@pytest.mark.parametrize(
    ("small", "named"),
    [
        ({3: 1}, "but class 'c3' has 1; they can be left out with drop_small_classes"),
        ({1: 1, 4: 1}, "but 2 classes have fewer: 'c1', 'c4'; they can be left out"),
        (dict.fromkeys(range(3, 15), 1), "12 classes have fewer: 'c3', .*, 'c12' and 2 more; "),
    ],
)
def test_all_classes_of_one_image_are_named_or_left_out(small: dict, named: str) -> None:
    data = _data("train", small, train_classes=20)
    with pytest.raises(ValueError, match=named):
        Trainer(quick_config(), data, encoder=TinyEncoder())
    trainer = Trainer(quick_config(drop_small_classes=True), data, encoder=TinyEncoder())
    names = trainer.data.train.class_names
    assert names == tuple(f"c{i}" for i in range(20) if i not in small)
    assert int(torch.bincount(trainer.data.train.labels).min()) >= 2
    trainer.train_step()


def test_leaving_out_all_classes_is_refused() -> None:
    config = quick_config(drop_small_classes=True)
    data = _data("train", dict.fromkeys(range(10), 1))
    with pytest.raises(ValueError, match="but all 10 have fewer"):
        Trainer(config, data, encoder=TinyEncoder())
    data = _data("train", dict.fromkeys(range(9), 1))
    with pytest.raises(ValueError, match="at least two training classes, got 1"):
        Trainer(config, data, encoder=TinyEncoder())


@pytest.mark.parametrize("place", ["file/run", "null\0byte", "x" * 300])
def test_a_folder_that_cannot_be_made_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OSError, match="out must be a folder that can be made|too long"):
        Trainer(quick_config(), tiny_data(), encoder=TinyEncoder(), out=tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_can_be_made_is_not_left_behind(tmp_path: Path) -> None:
    out = tmp_path / "some" / "run"
    trainer = Trainer(quick_config(steps=2), tiny_data(), encoder=TinyEncoder(), out=out)
    assert not list(tmp_path.iterdir())
    trainer.run()
    assert (out / "metrics.json").exists()


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OSError, match="out must be a folder .*: Permission denied"):
        Trainer(quick_config(), tiny_data(), encoder=TinyEncoder(), out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["meta", "tpu9", "cuda:77", "", "xla", "vulkan", "cpu:x", "hpu"])
def test_a_device_that_cannot_compute_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="device must be auto or a device of this machine") as e:
        Trainer(quick_config(device=name), tiny_data(), encoder=TinyEncoder())
    assert len(str(e.value)) < 300 and "\n" not in str(e.value)
    with pytest.raises(ValueError, match="device must be auto"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loss_options": {"backend": "triton"}}, "'contrastive' here: backend 'triton' is not"),
        (
            {"loss": "nt_xent", "loss_options": {"backend": "cuda"}},
            "'nt_xent' here: backend 'cuda'",
        ),
        ({"loss": "margin", "loss_options": {"learn_beta": True, "num_classes": 2}}, "beta has an"),
        ({"optimizer_options": {"betas": [0.9]}}, "do not suit optimizer 'adam'"),
        ({"optimizer_options": {"capturable": True}}, "do not suit optimizer 'adam' here"),
        ({"optimizer_options": {"differentiable": True}}, "do not suit optimizer 'adam' here"),
        ({"learning_rate": 1e300}, "or rates do not suit optimizer 'adam' here"),
    ],
)
@pytest.mark.parametrize("method", ["dmlap", "plain"])
def test_options_are_tried_before_the_first_step(
    changes: dict, named: str, method: str, tmp_path: Path
) -> None:
    if torch.cuda.is_available() and "backend" in changes.get("loss_options", {}):
        pytest.skip("the backend may run here")
    with pytest.raises(ValueError, match=named):
        Trainer(
            quick_config(method=method, **changes), tiny_data(), encoder=TinyEncoder(), out=tmp_path
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"seed": 2**70}, ValueError, "seed must be less than 2..63, got 118"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"data_seed": 2**63}, ValueError, "data_seed must be less than"),
        ({"steps": 10**400}, ValueError, "steps must be less than .*, got a number of 1329 bits"),
        ({"hard_warmup": 2**63}, ValueError, "hard_warmup must be less than"),
        ({"image_size": 4}, ValueError, "image_size must be at least 8"),
        ({"image_size": 10**6}, ValueError, "image_size must be at most 16384"),
        ({"image_size": 9.5}, TypeError, "image_size must be an integer, got 9.5"),
        ({"device": 3}, TypeError, "device must be a string, got 3"),
        ({"data": None}, TypeError, "data must be a string, got None"),
        ({"augment": "yes"}, TypeError, "augment must be True or False, got 'yes'"),
        ({"drop_small_classes": 1}, TypeError, "drop_small_classes must be True or False"),
        ({"loss_options": [1]}, TypeError, "loss_options must be a dict"),
        ({"loss_options": {"beta": torch.ones(2)}}, TypeError, "values that JSON knows"),
        ({"optimizer_options": {1: 2}}, TypeError, "optimizer_options must be a dict"),
    ],
)
def test_values_of_a_wrong_kind_are_named(
    changes: dict, error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        quick_config(**changes)


class Constant(nn.Module):
    """An encoder without parameters."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


class Refusing(TinyEncoder):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("input height 8 does not match 224")


class Mapping(TinyEncoder):
    def forward(self, images: torch.Tensor) -> Any:
        return {"embeddings": super().forward(images)}


class Flat(TinyEncoder):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images)[:, 0]


class WithExtra(TinyEncoder):
    """Has state that is no tensor, which its output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = {"calls": 0, "name": "ä", "past": [torch.zeros(2)]}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.extra["calls"] += 1
            self.extra["past"] = [self.extra["past"][0] + 0.5]
        return super().forward(images) * (1 + self.extra["calls"] + self.extra["past"][0][1])

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


class WithObject(TinyEncoder):
    def get_extra_state(self) -> Any:
        return object()


@pytest.mark.parametrize(
    ("encoder", "error", "named"),
    [
        (Constant, ValueError, "encoder Constant must have a parameter that requires grad"),
        (lambda: TinyEncoder().requires_grad_(False), ValueError, "encoder TinyEncoder must have"),
        (Refusing, ValueError, r"Refusing cannot embed images of shape \(1, 8, 8\): input height"),
        (Mapping, TypeError, "Mapping cannot embed .*must return a tensor .*, got dict"),
        (Flat, ValueError, r"Flat cannot embed .*must return floating-point embeddings \(2, D\)"),
        (WithObject, TypeError, "_extra_state is of type object, which a checkpoint"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(
    encoder: Callable[[], nn.Module], error: type[Exception], named: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=named):
        Trainer(quick_config(), tiny_data(), encoder=encoder(), out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("patience", [{}, {"patience": 1, "monitor_every": 3, "validation": 0.4}])
def test_extra_state_is_saved_and_resumed(patience: dict, tmp_path: Path) -> None:
    def made() -> WithExtra:
        torch.manual_seed(3)
        return WithExtra()

    config = quick_config(steps=12, classes="uniform", **patience)
    whole = Trainer(config, tiny_data(), encoder=made())
    whole.run()
    first = Trainer(config, tiny_data(), encoder=made(), out=tmp_path)
    with pytest.raises(Interrupted):
        first.run(stop=lambda: first.step >= 7)
    second = Trainer.resume(tmp_path, tiny_data(), encoder=made())
    second.run()
    assert second.encoder.extra["calls"] == whole.encoder.extra["calls"]
    assert torch.equal(second.encoder.extra["past"][0], whole.encoder.extra["past"][0])
    assert torch.equal(second.encoder.linear.weight, whole.encoder.linear.weight)
    loaded = load_encoder(tmp_path, WithExtra())
    assert loaded.extra["name"] == "ä" and loaded.extra["calls"] == whole.encoder.extra["calls"]


@pytest.mark.parametrize(
    ("given", "error", "named"),
    [
        ({"schedule": 0.1}, TypeError, "schedule must be a function from the step .*, got float"),
        ({"schedule": lambda step: None}, TypeError, "must return a number, got None for step 0"),
        ({"schedule": lambda step: -1.0}, ValueError, "rates of at least 0, got -1.0 for step 0"),
        ({"optimizer": lambda groups: None}, TypeError, "but it returned NoneType"),
        (
            {"optimizer": lambda groups: torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)},
            ValueError,
            "but 1 of its 1 are others",
        ),
        (
            {"optimizer": lambda groups: torch.optim.LBFGS(groups[0]["params"])},
            TypeError,
            "optimizer LBFGS takes its step with a closure",
        ),
        (
            {"optimizer": lambda groups: torch.optim.SGD([{**groups[0], "hook": print}], lr=1.0)},
            TypeError,
            "hook is of type builtin_function_or_method, which a checkpoint cannot hold",
        ),
    ],
)
def test_schedules_and_optimizers_that_do_not_fit(
    given: dict, error: type[Exception], named: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=named):
        Trainer(quick_config(), tiny_data(), encoder=TinyEncoder(), out=tmp_path, **given)
    assert not list(tmp_path.iterdir())


def test_trying_leaves_no_trace_in_the_random_numbers() -> None:
    """What follows is drawn as if nothing had been tried: torch's generator is where it was."""
    Trainer(quick_config(), tiny_data())
    after = torch.rand(3)
    torch.manual_seed(0)
    build_encoder(quick_config(), (1, 8, 8))
    assert torch.equal(after, torch.rand(3))


class Hungry(TinyEncoder):
    """Runs out of memory at its third training batch, as torch or Python says it."""

    def __init__(self, error: BaseException, evaluating: bool) -> None:
        super().__init__()
        self.error, self.evaluating = error, evaluating

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = super().forward(images)
        if len(self.seen) > 2 and self.training is not self.evaluating:
            raise self.error
        return found


@pytest.mark.parametrize("evaluating", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["python", "device", "cpu"],
)
def test_out_of_memory_says_what_helps_and_keeps_the_checkpoint(
    error: BaseException, evaluating: bool, tmp_path: Path
) -> None:
    config = quick_config(eval_every=4, classes="uniform")
    encoder = Hungry(error, evaluating)
    trainer = Trainer(config, tiny_data(), encoder=encoder, out=tmp_path, checkpoint_every=1)
    with pytest.raises(OutOfMemory, match=r"batches of 12 images: give .*\(chunk_size, --chunk-"):
        trainer.run()
    _, state = files.load_checkpoint(tmp_path)
    assert state["step"] == (4 if evaluating else 2)
    assert len(state["history"]["train"]) == state["step"]
    other = Trainer.resume(tmp_path, tiny_data(), encoder=TinyEncoder(), chunk_size=5)
    assert other.run()["config"]["chunk_size"] == 5


def test_other_errors_are_not_taken_for_it() -> None:
    encoder = Hungry(RuntimeError("shapes do not match"), False)
    with pytest.raises(RuntimeError, match="^shapes do not match$"):
        Trainer(quick_config(), tiny_data(), encoder=encoder).run()


def test_a_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(
        quick_config(steps=6), tiny_data(), encoder=TinyEncoder(), out=tmp_path, checkpoint_every=1
    )
    write = os.fsync

    def fill(number: int) -> None:
        if trainer.step >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(number)

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(OSError, match=r"safetensors cannot be written: No space left .*is kept$"):
        trainer.run()
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == [files.FILE_NAME]
    assert files.load_checkpoint(tmp_path)[1]["step"] == 2
    assert Trainer.resume(tmp_path, tiny_data(), encoder=TinyEncoder()).run()["recall@1"] >= 0


def test_metrics_are_written_if_the_picture_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr("dmlap_kernels.trainer.results.plot_curves", fail)
    trainer = Trainer(quick_config(steps=1), tiny_data(), encoder=TinyEncoder(), out=tmp_path)
    with pytest.warns(UserWarning, match="curves.png could not be drawn: no font"):
        trainer.run()
    assert json.loads((tmp_path / "metrics.json").read_text())["config"]["steps"] == 1


def test_an_evaluation_of_diverged_weights_names_the_image() -> None:
    class Diverging(TinyEncoder):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found = super().forward(images).clone()
            if not self.training and len(self.seen) == 10:
                found[7:9] = float("nan")
            return found

    trainer = Trainer(quick_config(classes="uniform"), tiny_data(), encoder=Diverging())
    with pytest.raises(NonFiniteEmbeddings, match=r"2 of 24 .*first that of image 7 \(class 'c1'"):
        trainer.run()
    assert trainer.step == 10


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    data = tiny_data()
    names = tuple(os.fsdecode(b"\xff%d" % i) for i in range(10))
    train = Split(data.train.images, data.train.labels, names)
    tests = Split(data.test.images, data.test.labels, names[:4])
    odd = Dataset("tiny", train, tests, augment=data.augment)
    Trainer(quick_config(steps=2), odd, encoder=TinyEncoder(), out=tmp_path / names[0]).run()
    (folder,) = tmp_path.iterdir()
    json.loads((folder / "metrics.json").read_text())
    Trainer.resume(folder, odd, encoder=TinyEncoder())


def test_ks_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    Trainer(quick_config(data="digits", steps=1), out=tmp_path).save()
    for ks in ((), (0,), (1, -3)):
        with pytest.raises(ValueError, match="ks must be one or more positive integers"):
            evaluate_run(tmp_path, ks=ks, data="folder:/nowhere")
