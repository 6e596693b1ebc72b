"""Runs on the photograph collections, validation folds, and configurations in files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")

from dmlap_kernels import cli
from dmlap_kernels.data import Dataset
from dmlap_kernels.encoders import ConvEncoder
from dmlap_kernels.evaluation import retrieval_metrics
from dmlap_kernels.trainer import TrainConfig, Trainer, embedding, evaluate_run, model
from dmlap_kernels.trainer.config_files import CONFIGS, merged, read_config, sources
from tests.data.photo_layouts import KINDS, MAKERS, make_cub, make_inshop, make_sop, photo
from tests.trainer.helpers import quick_config, tiny_data

QUICK = ("--encoder=conv", "--image-size=16", "--steps=3", "--classes-per-batch=4")


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_trains_to_the_end(kind: str, tmp_path: Path) -> None:
    folder = MAKERS[kind](tmp_path / "data")
    out = tmp_path / "run"
    source = f"{kind}:{folder}"
    assert cli.main(["train", f"--config={kind}", f"--data={source}", *QUICK, f"--out={out}"]) == 0
    results = json.loads((out / "metrics.json").read_text())
    config = results["config"]
    assert (config["steps"], config["encoder"], config["classes_per_batch"]) == (3, "conv", 4)
    assert config["learning_rate"] == read_config(kind)["learning_rate"]
    assert "pretrained" not in config
    assert evaluate_run(out) == results["test"]
    assert results["data"]["train"] == {"images": 16, "classes": 4}


def test_recall_is_measured_at_the_customary_ks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = f"sop:{make_sop(tmp_path / 'data')}", str(tmp_path / "run")
    assert cli.main(["train", f"--data={source}", *QUICK, f"--out={out}", "--eval-every=2"]) == 0
    results = json.loads((tmp_path / "run/metrics.json").read_text())
    names = [f"recall@{k}" for k in (1, 10, 100, 1000)] + ["r_precision", "map@r"]
    for metrics in (results["test"], results["raw_pixels"]):
        assert list(metrics) == names
    assert all(list(entry) == ["step", *names] for entry in results["history"]["evaluation"])
    capsys.readouterr()
    assert cli.main(["eval", out, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == names
    assert cli.main(["eval", out, "--json", "--ks=1,3"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["recall@1", "recall@3", *names[-2:]]


@pytest.mark.parametrize("ks", [(), (2, 4), (1, 4, 4), (1, 8, 4)])
def test_bad_ks_of_a_data_set_are_named(ks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ks must be ascending from 1"):
        replace(tiny_data(), ks=ks)


def test_a_broken_image_ends_a_run_with_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"cub:{make_cub(tmp_path / 'data')}"
    (tmp_path / "data/images/006.Bird_6/Bird_1.jpg").write_bytes(b"hello")
    arguments = ["train", f"--data={source}", *QUICK, f"--out={tmp_path / 'run'}"]
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "stopped: data 'cub': " in error and "Bird_1.jpg is not a readable image" in error


def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    config = quick_config(
        data=f"cub:{make_cub(tmp_path / 'data')}", image_size=16, steps=4, eval_every=4
    )
    whole = Trainer(config)
    whole.run()
    cut = Trainer(config, out=tmp_path / "run")
    for _ in range(2):
        cut.train_step()
    cut.save()
    resumed = Trainer.resume(tmp_path / "run")
    resumed.run()
    others = resumed.encoder.state_dict()
    assert all(torch.equal(v, others[k]) for k, v in whole.encoder.state_dict().items())


def test_representatives_keep_the_test_crop(tmp_path: Path) -> None:
    config = quick_config(data=f"cub:{make_cub(tmp_path)}", image_size=16, classes="uniform")
    trainer = Trainer(config)
    trainer._prepare_projection()
    batch, images = trainer.loader.take((0, 0), trainer._plan)
    plain = trainer.data.train.batch(batch.indices)
    c = batch.representatives
    assert c == 4 and torch.equal(images[:c], plain[:c])
    assert all(not torch.equal(a, b) for a, b in zip(images[c:], plain[c:], strict=True))


def test_queries_are_looked_up_in_the_gallery(tmp_path: Path) -> None:
    folder = make_inshop(tmp_path / "data")
    # Colours that say nothing of the item, so that it matters what is looked at.
    for number, file in enumerate(sorted(folder.rglob("*.jpg"))):
        photo(file, number)
    config = quick_config(data=f"inshop:{folder}", image_size=16, steps=2, eval_every=2)
    trainer = Trainer(config, out=tmp_path / "run")
    results = trainer.run()
    data = trainer.data
    queries, gallery = (embedding.embed(trainer.encoder, s) for s in (data.test, data.gallery))
    looked_up = (queries, data.test.labels, gallery, data.gallery.labels)
    expected = retrieval_metrics(*looked_up, ks=data.ks)
    assert results["test"] == expected == evaluate_run(tmp_path / "run")
    assert expected != retrieval_metrics(queries, data.test.labels, ks=data.ks)
    pixels = (data.test.pixels(), data.test.labels, data.gallery.pixels(), data.gallery.labels)
    assert results["raw_pixels"] == retrieval_metrics(*pixels, ks=data.ks, distance="cosine")
    with pytest.raises(ValueError, match="gallery must have the classes of test"):
        Dataset("mixed", data.train, data.test, gallery=data.train)


@pytest.mark.parametrize(("fold", "names"), [(0, ("c0", "c1", "c2")), (1, ("c3", "c4", "c5"))])
def test_a_fold_of_the_training_classes_is_watched(fold: int, names: tuple[str, ...]) -> None:
    trainer = Trainer(quick_config(validation_fold=fold, steps=1), tiny_data())
    assert trainer.watched.class_names == names
    assert trainer.data.train.num_classes == 7
    assert trainer.run()["validation"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"validation_fold": 4}, "validation_fold must be from 0 to 3, got 4"),
        ({"validation_fold": -1}, "validation_fold must be at least 0, got -1"),
        ({"validation_fold": 0, "validation": 0.2}, "exclude each other"),
        (
            {"encoder": "resnet50"},
            "encoder must be conv, conv:W,W,... or timm:NAME, got 'resnet50'",
        ),
        ({"encoder": "timm:"}, "encoder must be conv, conv:W,W,... or timm:NAME"),
        ({"encoder": None}, "encoder must be conv, conv:W,W,... or timm:NAME"),
    ],
)
def test_bad_values_are_named(given: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        TrainConfig(**given)
    assert TrainConfig(validation_fold=0, patience=2).patience == 2


def test_an_encoder_of_timm_is_made_as_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run that is resumed or evaluated downloads nothing."""
    made = []

    def build(name: str, dim: int, **options: bool) -> ConvEncoder:
        made.append((name, dim, options))
        return ConvEncoder((1, 8, 8), dim)

    monkeypatch.setattr(model, "TimmEncoder", build)
    config = quick_config(encoder="timm:resnet50", pretrained=True, steps=1)
    Trainer(config, tiny_data(), out=tmp_path / "run").run()
    assert made == [("resnet50", 8, {"pretrained": True, "freeze_batch_norm": False})]
    Trainer.resume(tmp_path / "run", tiny_data())
    model.load_encoder(tmp_path / "run")
    assert [options["pretrained"] for _, _, options in made] == [True, False, False]


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_a_network_of_timm_trains_is_resumed_and_evaluated(
    chunk_size: int | None, tmp_path: Path
) -> None:
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(f"timm does not import here: {error}")
    config = quick_config(
        data=f"cub:{make_cub(tmp_path / 'data')}",
        encoder="timm:mobilenetv3_small_050",
        # In chunks, batches would have statistics of their own.
        freeze_batch_norm=chunk_size is not None,
        chunk_size=chunk_size,
        image_size=32,
        steps=4,
        eval_every=4,
    )
    whole = Trainer(config, out=tmp_path / "whole")
    results = whole.run()
    cut = Trainer(config, out=tmp_path / "run")
    cut.train_step()
    cut.save()
    Trainer.resume(tmp_path / "run").run()
    for folder in ("whole", "run"):
        assert evaluate_run(tmp_path / folder) == results["test"]
    weights, others = (model.load_encoder(tmp_path / n).state_dict() for n in ("whole", "run"))
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_value_of_a_configuration_has_a_source(name: str) -> None:
    values = read_config(name)
    assert sources(name).keys() == values.keys()
    assert all(sources(name).values())
    config = TrainConfig(**values)
    assert config.encoder == "timm:resnet50" and config.proximal_weight == 2e-4
    assert config.classes_per_batch in (8, 32)


def test_options_win_over_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    content = {
        "loss": "contrastive",
        "loss_options": {"pos_margin": 0.1, "neg_margin": 1},
        "steps": {"value": 7, "source": "ours"},
        "validation": 0.2,
    }
    file.write_text(json.dumps(content))
    assert merged(str(file), {"steps": 8})["steps"] == 8
    values = merged(str(file), {"loss_options": {"neg_margin": 2}})
    assert values["loss_options"] == {"pos_margin": 0.1, "neg_margin": 2} and values["steps"] == 7
    assert "loss_options" not in merged(str(file), {"loss": "triplet"})
    assert "validation" not in merged(str(file), {"validation_fold": 1})
    assert sources(str(file)) == {"steps": "ours"}
    assert merged(None, {"steps": 2}) == {"steps": 2}
    file.write_text(json.dumps({"optimizer": "sgd", "optimizer_options": {"momentum": 0.9}}))
    values = merged(str(file), {"optimizer_options": {"nesterov": True}})
    assert values["optimizer_options"] == {"momentum": 0.9, "nesterov": True}
    assert "optimizer_options" not in merged(str(file), {"optimizer": "adamw"})


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "is not a readable JSON file"),
        ("[1]", "must hold a JSON object, got list"),
        ('{"stepz": 1}', "entries unknown to TrainConfig: stepz"),
    ],
)
def test_broken_configurations_are_named(content: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=named):
        read_config(str(file))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--config=none",), "config must be one of cub, cars, sop, inshop or a JSON file"),
        (("--config=cub", "--resume=DIR"), "--config cannot be given with --resume"),
        (("--data=digits", "--pretrained"), "--pretrained can only be given with --encoder timm"),
    ],
)
def test_the_command_refuses(
    arguments: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *arguments]) == 2
    assert named in capsys.readouterr().err
