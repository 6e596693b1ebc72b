"""Weights from files, frozen parts, and the groups that an optimizer gets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("safetensors")

import safetensors.torch as safetensors

from dmlap_kernels import cli
from dmlap_kernels.encoders import ConvEncoder, TimmEncoder
from dmlap_kernels.trainer import Trainer
from dmlap_kernels.trainer.optimization import RATE_FACTOR, freeze, parameter_groups
from dmlap_kernels.trainer.weights import load_weights_file, read_weights
from tests.trainer.helpers import TinyEncoder, quick_config, tiny_data


class Backbone(nn.Module):
    """What a network of timm has: parts by name, and ``num_features``."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(nn.Conv2d(4, 5, 3), nn.Conv2d(5, 6, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.norm(self.stem(images))).mean((2, 3))


def _encoder() -> TimmEncoder:
    torch.manual_seed(0)
    return TimmEncoder(embedding_dim=8, backbone=Backbone())


def _given(seed: int = 1, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    network = Backbone()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape))
    return network.state_dict() | more


def _taken(encoder: TimmEncoder, given: dict[str, torch.Tensor]) -> bool:
    return all(
        torch.equal(tensor, given[name])
        for name, tensor in encoder.backbone.state_dict().items()
        if "num_batches" not in name
    )


@pytest.mark.parametrize("wrapper", ["", "module.", "module.backbone.", "_orig_mod."])
@pytest.mark.parametrize("entry", [None, "state_dict", "model", "safetensors"])
def test_names_are_matched(entry: str | None, wrapper: str, tmp_path: Path) -> None:
    given = {wrapper + name: tensor for name, tensor in _given().items()}
    path = tmp_path / ("weights.safetensors" if entry == "safetensors" else "weights.pth")
    if entry == "safetensors":
        safetensors.save_file(given, path)
    else:
        torch.save(given if entry is None else {entry: given, "epoch": 3}, path)
    encoder = _encoder()
    head = encoder.head.weight.clone()
    found = load_weights_file(encoder, path)
    assert _taken(encoder, _given()) and torch.equal(encoder.head.weight, head)
    assert not found.by_order and not found.unused
    assert found.kept == ("head.weight", "head.bias")
    assert str(found).splitlines()[0] == f"{path}: 9 tensors taken"
    assert "not in the file: head.weight, head.bias" in str(found)


def test_a_classifier_is_left_over(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(_given(**{"fc.weight": torch.ones(9, 6), "fc.bias": torch.ones(9)}), path)
    found = load_weights_file(_encoder(), path)
    assert found.unused == ("fc.weight", "fc.bias")
    assert "not used: fc.weight, fc.bias" in str(found)


def test_other_names_are_matched_in_order(tmp_path: Path) -> None:
    """As in weights of the same network from another library."""
    path = tmp_path / "w.pth"
    given = {f"layer{i}": tensor for i, tensor in enumerate(_given().values())}
    torch.save(given | {"classifier": torch.ones(9, 6)}, path)
    counter = next(n for n, t in given.items() if t.dtype == torch.int64)
    renamed = {n.replace(counter, "num_batches_tracked"): t for n, t in given.items()}
    torch.save(renamed | {"classifier": torch.ones(9, 6)}, path)
    encoder = _encoder()
    found = load_weights_file(encoder, path)
    assert found.by_order and found.unused == ("classifier",)
    assert "by their order, because the names differ" in str(found)
    assert _taken(encoder, _given())


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    before = {n: t.clone() for n, t in _encoder().state_dict().items()}
    given = _given()

    def refused(tensors: object, words: str) -> None:
        torch.save(tensors, path)
        encoder = _encoder()
        with pytest.raises(ValueError, match=words):
            load_weights_file(encoder, path)
        assert all(torch.equal(t, before[n]) for n, t in encoder.state_dict().items())

    refused({n: t for n, t in given.items() if "stem" not in n}, r"1 are not in it: stem.weight$")
    other = r"1 have other shapes in it: backbone.stem.weight \(4, 3, 3, 3\) against \(4, 3, 5, 5\)"
    refused(given | {"stem.weight": torch.ones(4, 3, 5, 5)}, other)
    refused({"a": torch.ones(2), "b": torch.ones(3)}, "none of their shape in order")
    refused({"epoch": 3}, "has none$")
    refused([1, 2], "has none$")
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match="cannot be read as one"):
        load_weights_file(_encoder(), path)
    with pytest.raises(ValueError, match="does not exist"):
        load_weights_file(_encoder(), tmp_path / "none.pth")


def test_a_file_cannot_run_code(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"stem.weight": Planted()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="without other objects"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_a_run_goes_on_from_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoint of a run, its last layer included; and a resumed run needs no file."""
    plain = ["train", "--data=digits", "--classes-per-batch=4", "--samples-per-class=3"]
    assert cli.main([*plain, "--steps=2", f"--out={tmp_path / 'first'}"]) == 0
    whole = tmp_path / "first" / "checkpoint.safetensors"
    file = tmp_path / "moved.safetensors"
    file.write_bytes(whole.read_bytes())
    second = [*plain, "--learning-rate=0", f"--weights={file}", f"--out={tmp_path / 'second'}"]
    second += ["--schedule=constant"]
    assert cli.main([*second, "--steps=1"]) == 0
    assert f"{file}: " in capsys.readouterr().out
    first, found = read_weights(whole), read_weights(tmp_path / "second/checkpoint.safetensors")
    names = [n for n in first if n.startswith("model.head")]
    assert names and all(torch.equal(first[n], found[n]) for n in names)
    file.unlink()
    assert cli.main(["train", f"--resume={tmp_path / 'second'}", "--steps=2"]) == 0


def test_frozen_parts_learn_nothing() -> None:
    config = quick_config(freeze="blocks.0, blocks.1", steps=3)
    trainer = Trainer(config, tiny_data(), encoder=ConvEncoder((1, 8, 8), 8))
    frozen, norm = trainer.encoder.blocks[0].weight, trainer.encoder.blocks[1]
    before = frozen.clone(), norm.running_mean.clone(), norm.weight.clone()
    learned = trainer.encoder.blocks[4].weight.clone()
    trainer.run()
    assert torch.equal(frozen, before[0]) and torch.equal(norm.weight, before[2])
    assert torch.equal(norm.running_mean, before[1]) and not norm.training
    assert not torch.equal(trainer.encoder.blocks[4].weight, learned)


def test_freezing_needs_a_name_of_the_encoder() -> None:
    with pytest.raises(ValueError, match="such as blocks, blocks.0.*got 'block'"):
        freeze(ConvEncoder((1, 8, 8), 8), ("block",))


def test_the_backbone_has_a_rate_of_its_own() -> None:
    config = quick_config(backbone_rate=0.1, schedule="constant", learning_rate=0.5)
    trainer = Trainer(config, tiny_data(), encoder=ConvEncoder((1, 8, 8), 8))
    trainer.train_step()
    head, backbone = trainer.optimizer.param_groups
    assert [p.shape[0] for p in head["params"]] == [8, 8]
    assert (head["lr"], backbone["lr"]) == (0.5, pytest.approx(0.05))
    both = len(head["params"]) + len(backbone["params"])
    assert both == len(list(trainer.encoder.parameters()))
    with pytest.raises(ValueError, match="last layer is called head"):
        parameter_groups(TinyEncoder(), [], 1.0, backbone_rate=0.1)


@pytest.mark.parametrize(
    "name, options, decays",
    [
        ("adamw", {}, True),
        ("adamw", {"weight_decay": 0}, False),
        ("sgd", {"weight_decay": 0.1}, True),
        ("adam", {}, False),
    ],
)
def test_norms_and_biases_do_not_decay(name: str, options: dict, decays: bool) -> None:
    config = quick_config(optimizer=name, optimizer_options=options, backbone_rate=0.5)
    trainer = Trainer(config, tiny_data(), encoder=ConvEncoder((1, 8, 8), 8))
    for group in trainer.optimizer.param_groups:
        vectors = {parameter.ndim < 2 for parameter in group["params"]}
        if decays:
            assert vectors == {group["weight_decay"] == 0}
    assert len(trainer.optimizer.param_groups) == (4 if decays else 2)
    assert all(g.get(RATE_FACTOR, 1) in (1, 0.5) for g in trainer.optimizer.param_groups)


def test_weights_are_for_an_encoder_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an encoder that config.encoder names"):
        Trainer(quick_config(weights="x.pth"), tiny_data(), encoder=TinyEncoder())
