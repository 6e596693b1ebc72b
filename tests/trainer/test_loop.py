from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dmlap_kernels.trainer import (
    CheckpointError,
    Interrupted,
    NonFiniteLoss,
    Trainer,
    evaluate,
    evaluate_run,
    load_encoder,
)
from dmlap_kernels.trainer.config import TrainConfig
from tests.trainer.helpers import TIMES, DropoutEncoder, TinyEncoder, quick_config, tiny_data


def _weights(trainer: Trainer) -> list[torch.Tensor]:
    return [t.clone() for t in trainer.encoder.state_dict().values()]


def _without_times(history: dict) -> dict:
    return {
        name: [{k: v for k, v in entry.items() if k not in TIMES} for entry in entries]
        for name, entries in history.items()
    }


@pytest.mark.parametrize("classes", ["uniform", "hard"])
def test_representatives_stay_pinned_for_exactly_l_batches(classes: str) -> None:
    data = tiny_data()
    trainer = Trainer(quick_config(classes=classes), data, encoder=TinyEncoder())
    pinned: dict[int, list[int]] = {}
    for step in range(20):
        trainer.train_step()
        pinned.setdefault(step // 5, []).append(trainer.pinned.indices.flatten().tolist())
        # They lead the batch, as they are in the data.
        images = trainer.encoder.seen[-1]
        leading = images[:4]
        own = data.train.batch(trainer.pinned.indices.flatten())
        matches = (leading[:, None] == own).flatten(2).all(2)
        assert (matches.sum(1) == 1).all()
        # The other samples are distorted.
        every = data.train.batch(torch.arange(len(data.train)))
        assert not (images[4:, None] == every).flatten(2).all(2).any()
    assert trainer.projection.index == 3
    sets = []
    for projection in pinned.values():
        assert len(projection) == 5
        assert all(r == projection[0] for r in projection)
        sets.append(projection[0])
    # Without repeats: a class shows another sample in each projection.
    assert all(len(set(samples)) == 4 for samples in zip(*sets, strict=True))


def test_representatives_get_a_gradient() -> None:
    encoder = TinyEncoder()
    trainer = Trainer(quick_config(in_batch_weight=0.0), tiny_data(), encoder=encoder)
    kept = []

    def keep(module: nn.Module, inputs: tuple, out: torch.Tensor) -> None:
        if out.requires_grad:
            out.retain_grad()
            kept.append(out)

    encoder.register_forward_hook(keep)
    trainer.train_step()
    assert (kept[-1].grad[:4].norm(dim=1) > 0).any()


def test_the_proximal_term_is_in_the_gradient_of_a_step() -> None:
    """The same step with and without lambda: the gradients differ by lambda x difference."""
    gradients, moved = {}, None
    for weight in (0.0, 0.01):
        torch.manual_seed(0)  # of the encoder's weights
        trainer = Trainer(quick_config(proximal_weight=0.0), tiny_data(), encoder=TinyEncoder())
        for _ in range(8):
            trainer.train_step()
        # In the middle of the second projection.
        before = [p.detach().clone() for p in trainer.encoder.parameters()]
        moved = [b - c for b, c in zip(before, trainer.projection.centers, strict=True)]
        trainer.projection.weight = weight
        trainer.train_step()
        gradients[weight] = [p.grad.clone() for p in trainer.encoder.parameters()]
    assert max(m.abs().max() for m in moved) > 1e-4
    for without, with_term, m in zip(gradients[0.0], gradients[0.01], moved, strict=True):
        torch.testing.assert_close(with_term - without, 0.01 * m, rtol=1e-3, atol=1e-7)


def test_the_decoupled_term_moves_weights_by_the_share_of_the_rate() -> None:
    """The same step with and without lambda, whatever the optimizer makes of gradients."""
    after = {}
    for weight in (0.0, 0.5):
        torch.manual_seed(0)
        config = quick_config(proximal_weight=0.0, proximal_form="decoupled")
        trainer = Trainer(config, tiny_data(), encoder=TinyEncoder())
        for _ in range(8):
            trainer.train_step()
        trainer.projection.weight = weight
        trainer.train_step()
        after[weight] = [p.detach().clone() for p in trainer.encoder.parameters()]
    share = trainer.optimizer.param_groups[0]["lr"] / config.learning_rate
    part = share * 0.5 / config.projection_steps
    assert 0 < part < 1
    for free, tied, center in zip(after[0.0], after[0.5], trainer.projection.centers, strict=True):
        assert (free - center).abs().max() > 1e-5
        torch.testing.assert_close(tied, free + part * (center - free))


@pytest.mark.parametrize("choice", ["k_center", "medoid"])
def test_representatives_are_chosen_by_the_embeddings_of_a_pool(choice: str) -> None:
    data = tiny_data()
    config = quick_config(representative_choice=choice, representative_pool=6)
    trainer = Trainer(config, data, encoder=TinyEncoder())
    trainer.train_step()
    # With the encoder as it is now, from a pool that is the whole class: six images.
    trainer.pinned.release()
    trainer.pinned.prepare(trainer.encoder, 1, 1)
    with torch.no_grad():
        rows = trainer.encoder.eval()(data.train.batch(torch.arange(len(data.train))))
    for c in range(data.train.num_classes):
        own = (data.train.labels == c).nonzero().flatten()
        distances = torch.cdist(rows[own], rows[own])
        cost = distances.sum(1) if choice == "medoid" else distances.amax(1)
        chosen = cost[(own == trainer.pinned.indices[c, 0]).nonzero()[0, 0]]
        torch.testing.assert_close(chosen, cost.min(), rtol=1e-5, atol=1e-6)


def test_representatives_are_distorted_if_asked_for() -> None:
    data = tiny_data()
    for distorted in (False, True):
        config = quick_config(augment_representatives=distorted)
        trainer = Trainer(config, data, encoder=TinyEncoder())
        trainer.train_step()
        own = data.train.batch(trainer.pinned.indices.flatten())
        same = (trainer.encoder.seen[-1][:4, None] == own).flatten(2).all(2).any(1)
        assert same.tolist() == [not distorted] * 4


def test_the_loss_learns_at_a_rate_of_its_own() -> None:
    config = quick_config(loss="proxy_nca", loss_rate=3.0, schedule="constant")
    trainer = Trainer(config, tiny_data(), encoder=TinyEncoder())
    trainer.train_step()
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [1e-3, 3e-3]
    learned = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    own = list(trainer.objective.parameters())
    assert len(learned) == 3 and learned[-1] is own[0]
    # The proximal term ties the encoder alone.
    assert all(p is not own[0] for p in trainer.projection.parameters)


def test_an_optimizer_and_a_schedule_of_ones_own() -> None:
    rates = []

    class Recorder(torch.optim.SGD):
        def step(self, closure: None = None) -> None:
            rates.append(self.param_groups[0]["lr"])
            super().step(closure)

    trainer = Trainer(
        quick_config(steps=4),
        tiny_data(),
        encoder=TinyEncoder(),
        optimizer=lambda parameters: Recorder(parameters, lr=1.0),
        schedule=lambda step: 0.1 / (1 + step),
    )
    trainer.run()
    assert rates == [0.1, 0.1 / 2, 0.1 / 3, 0.1 / 4]


def test_plain_is_the_in_batch_loss_on_ordinary_batches() -> None:
    trainer = Trainer(quick_config(method="plain"), tiny_data(), encoder=TinyEncoder())
    for _ in range(12):
        trainer.train_step()
    assert trainer.pinned.indices is None
    assert trainer.pinned.neighbors is None
    assert trainer.projection.index == 0
    assert trainer.encoder.seen[0].shape[0] == 12


@pytest.mark.parametrize(
    ("encoder", "changes"),
    [
        (None, {}),
        (None, {"method": "plain"}),
        (None, {"classes": "uniform", "loss": "triplet"}),
        (DropoutEncoder, {}),
        (None, {"representative_choice": "medoid", "representatives_per_class": 2}),
        (None, {"optimizer": "sgd", "optimizer_options": {"momentum": 0.9}}),
        (None, {"optimizer": "sgd", "schedule": "cosine"}),
        (None, {"loss": "proxy_anchor"}),
        (None, {"loss": "margin", "loss_options": {"learn_beta": True}, "optimizer": "adamw"}),
        (None, {"optimizer": "rmsprop", "proximal_decay": 0.5, "hard_warmup": 20}),
    ],
    ids=[
        "hard",
        "plain",
        "uniform",
        "dropout",
        "medoid",
        "momentum",
        "sgd",
        "proxies",
        "beta",
        "rmsprop",
    ],
)
@pytest.mark.parametrize("at", [0, 10, 13])
def test_resume_equals_uninterrupted(
    tmp_path: Path, encoder: type[nn.Module] | None, changes: dict, at: int
) -> None:
    def given() -> dict:
        return {} if encoder is None else {"encoder": encoder()}

    config = quick_config(**changes)
    torch.manual_seed(1)
    whole = Trainer(config, tiny_data(), **given())
    expected = whole.run()
    torch.manual_seed(1)
    first = Trainer(config, tiny_data(), out=tmp_path, **given())
    with pytest.raises(Interrupted, match=f"after step {at} of 24"):
        first.run(stop=lambda: first.step >= at)
    torch.manual_seed(99)
    second = Trainer.resume(tmp_path, tiny_data(), **given())
    assert second.step == at
    results = second.run()
    assert all(map(torch.equal, _weights(whole), _weights(second)))
    assert results["test"] == expected["test"]
    assert _without_times(results["history"]) == _without_times(expected["history"])


def test_results_of_a_run(tmp_path: Path) -> None:
    config = quick_config(validation=0.4)
    trainer = Trainer(config, tiny_data(), out=tmp_path)
    results = trainer.run()
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored == json.loads(json.dumps(results))
    assert TrainConfig.from_dict(stored["config"]) == config
    assert stored["recall@1"] == stored["test"]["recall@1"]
    assert stored["map@r"] == stored["test"]["map@r"]
    assert set(stored["raw_pixels"]) == set(stored["test"])
    assert stored["data"]["train"] == {"images": 36, "classes": 6}
    assert stored["data"]["validation"] == {"images": 24, "classes": 4}
    assert {"dmlap_kernels", "python", "torch", "numpy"} <= set(stored["versions"])
    assert [e["step"] for e in stored["history"]["evaluation"]] == [0, 10, 20, 24]
    assert [e["step"] for e in stored["history"]["train"]] == list(range(1, 25))
    assert [e["projection"] for e in stored["history"]["train"]] == [i // 5 for i in range(24)]
    last = {k: v for k, v in stored["history"]["evaluation"][-1].items() if k != "step"}
    assert last == stored["validation"] == evaluate(trainer.encoder, trainer.data.validation)


def test_curves_are_a_picture(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    Trainer(quick_config(), tiny_data(), out=tmp_path).run()
    with pillow.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG"
        assert image.width > 600 and image.height > 200
        colors = image.convert("RGB").getcolors(maxcolors=1 << 20)
    assert len(colors) > 50


def test_the_saved_encoder_gives_the_same_numbers(tmp_path: Path) -> None:
    trainer = Trainer(quick_config(), out=tmp_path)
    results = trainer.run()
    assert evaluate_run(tmp_path) == results["test"]
    encoder = load_encoder(tmp_path)
    assert all(
        map(torch.equal, trainer.encoder.state_dict().values(), encoder.state_dict().values())
    )


def test_no_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Trainer(quick_config(), tiny_data()).run()
    assert not list(tmp_path.iterdir())


def test_training_helps() -> None:
    data = tiny_data(train_classes=20, test_classes=10)
    config = quick_config(
        steps=120,
        classes_per_batch=10,
        learning_rate=0.01,
        classes="uniform",
        # "mean_nonzero" would leave easy constraints out, and so hardly fall.
        loss_options={"reduction": "mean"},
    )
    history = Trainer(config, data, encoder=TinyEncoder()).run()["history"]
    first, last = history["train"][0], history["train"][-1]
    assert last["loss"] < 0.6 * first["loss"]
    assert last["violated"] < 0.8 * first["violated"]


def test_a_bad_image_is_named() -> None:
    data = tiny_data()
    images = data.train.images.float() / 255
    images[17, 0, 3, 3] = float("nan")
    train = type(data.train)(images, data.train.labels, data.train.class_names)
    trainer = Trainer(quick_config(), type(data)("tiny", train, data.test), encoder=TinyEncoder())
    with pytest.raises(NonFiniteLoss) as caught:
        trainer.run()
    error = caught.value
    assert error.sample == 17
    assert error.step == trainer.step + 1
    assert 17 in error.indices
    message = str(error)
    assert f"step {error.step}" in message and "sample 17 (class 'c2'" in message
    assert ", ".join(map(str, error.indices.tolist())) in message


def test_a_bad_embedding_is_named() -> None:
    class Fragile(TinyEncoder):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            out = super().forward(images)
            return (
                out
                if len(images) != 12
                else out * torch.tensor([1.0] * 7 + [1e39] + [1.0] * 4)[:, None]
            )

    with pytest.raises(NonFiniteLoss, match="row 7 of the batch"):
        Trainer(quick_config(), tiny_data(), encoder=Fragile()).run()


def test_diverged_weights_stop_the_run_and_keep_the_checkpoint(tmp_path: Path) -> None:
    trainer = Trainer(
        quick_config(learning_rate=1e30), tiny_data(), out=tmp_path, checkpoint_every=1
    )
    with pytest.raises(NonFiniteLoss, match="is not finite"):
        trainer.run()
    assert Trainer.resume(tmp_path, tiny_data()).step >= 1
    assert not (tmp_path / "metrics.json").exists()


def test_options_that_an_optimizer_does_not_take_are_named() -> None:
    config = quick_config(optimizer_options={"momentum": 0.9})
    with pytest.raises(ValueError, match="optimizer_options do not suit optimizer 'adam'"):
        Trainer(config, tiny_data(), encoder=TinyEncoder())


def test_an_occupied_folder_is_refused(tmp_path: Path) -> None:
    Trainer(quick_config(), tiny_data(), out=tmp_path / "run").save()
    with pytest.raises(FileExistsError, match="already holds a run"):
        Trainer(quick_config(), tiny_data(), out=tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        Trainer(quick_config(), tiny_data(), out=tmp_path / "other")


def test_a_refused_run_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="classes_per_batch"):
        Trainer(quick_config(classes_per_batch=99), tiny_data(), out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_other_data_is_refused_on_resume(tmp_path: Path) -> None:
    Trainer(quick_config(), tiny_data(), out=tmp_path).save()
    with pytest.raises(CheckpointError, match="other images"):
        Trainer.resume(tmp_path, tiny_data(train_classes=11))


def test_classes_of_one_image_are_refused() -> None:
    data = tiny_data()
    single = data.train.select(torch.arange(5))
    rows = torch.arange(len(single)) >= 5
    train = type(single)(single.images[rows], single.labels[rows], single.class_names)
    with pytest.raises(ValueError, match="class 'c0' has 1"):
        Trainer(quick_config(), type(data)("tiny", train, data.test))


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"data": "mnist"}, ValueError, "data must be one of glyphs, digits"),
        ({"loss": "hinge"}, ValueError, "loss must be one of"),
        ({"method": "magic"}, ValueError, "method must be one of 'dmlap', 'plain'"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 1.5}, TypeError, "steps must be an integer"),
        ({"hard_share": 1.1}, ValueError, "hard_share must be from 0 to 1"),
        ({"validation": 1.0}, ValueError, "validation must be from 0 to 1, which is excluded"),
        ({"proximal_weight": -1.0}, ValueError, "proximal_weight must be finite"),
        ({"loss_options": {"reduction": "none"}}, ValueError, "must give one loss a batch"),
        ({"loss_options": {"return_stats": True}}, ValueError, "must leave return_stats"),
        ({"loss_rate": -1.0}, ValueError, "loss_rate must be"),
        ({"optimizer": "lbfgs"}, ValueError, "optimizer must be one of 'adam', 'adamw'"),
        ({"optimizer_options": {"lr": 1.0}}, ValueError, "must leave lr out"),
        ({"schedule": "steps"}, ValueError, "schedule must be one of 'one_cycle', 'cosine'"),
        ({"proximal_decay": 1.5}, ValueError, "proximal_decay must be from 0 to 1, got 1.5"),
        ({"representatives": "neither"}, ValueError, "representatives must be one of"),
        ({"representative_choice": "best"}, ValueError, "must be one of 'random', 'k_center'"),
        ({"representatives_per_class": 3}, ValueError, "less than samples_per_class=3, got 3"),
        (
            {
                "representative_choice": "medoid",
                "representative_pool": 2,
                "representatives_per_class": 3,
                "samples_per_class": 5,
            },
            ValueError,
            "representative_pool must be at least representatives_per_class=3, got 2",
        ),
        ({"hard_search": "annoy"}, ValueError, "hard_search must be one of 'exact', 'faiss'"),
        ({"eval_every": 0}, ValueError, "eval_every must be at least 1"),
    ],
)
def test_bad_configuration_is_named(changes: dict, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        quick_config(**changes)
