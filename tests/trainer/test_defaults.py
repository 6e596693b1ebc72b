"""Every option that stands in several places has one default."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable
from typing import Any

import pytest

from dmlap_kernels.cli import main
from dmlap_kernels.data import DEFAULT_KS
from dmlap_kernels.encoders import ConvEncoder, TimmEncoder
from dmlap_kernels.evaluation import retrieval_metrics
from dmlap_kernels.trainer import (
    AlternatingObjective,
    ClassBatchSampler,
    PinnedBatchSampler,
    Projection,
    RepresentativeSampler,
    TrainConfig,
    Trainer,
    defaults,
    evaluate,
    evaluate_run,
)
from dmlap_kernels.trainer.class_mining import hardest_classes
from dmlap_kernels.trainer.config_files import CONFIGS, read_config

# Of each part: its parameter, and the field of TrainConfig that says the same.
TWICE: dict[Callable[..., Any], dict[str, str]] = {
    AlternatingObjective: {
        "in_batch_weight": "in_batch_weight",
        "side": "representatives",
        "between_weight": "between_weight",
    },
    Projection: {"weight": "proximal_weight", "decay": "proximal_decay"},
    PinnedBatchSampler: {
        "samples_per_class": "samples_per_class",
        "projection_steps": "projection_steps",
        "seed": "seed",
        "hard_share": "hard_share",
        "hard_warmup": "hard_warmup",
        "representatives_per_class": "representatives_per_class",
    },
    ClassBatchSampler: {"hard_share": "hard_share", "hard_warmup": "hard_warmup"},
    RepresentativeSampler: {"per_class": "representatives_per_class"},
    hardest_classes: {"search": "hard_search"},
    evaluate: {"loss": "loss"},
    evaluate_run: {"device": "device"},
    ConvEncoder: {"embedding_dim": "embedding_dim"},
    TimmEncoder: {
        "embedding_dim": "embedding_dim",
        "pretrained": "pretrained",
        "freeze_batch_norm": "freeze_batch_norm",
    },
}
# What the configurations of the data sets have of their own.
OWN = {
    *("encoder", "pretrained", "freeze_batch_norm", "image_size", "classes_per_batch", "steps"),
    *("learning_rate", "hard_refresh", "embedding_dim"),
}


@pytest.mark.parametrize("part", TWICE, ids=lambda part: part.__name__)
def test_a_part_has_the_defaults_of_the_trainer(part: Callable[..., Any]) -> None:
    parameters = inspect.signature(part).parameters
    config = TrainConfig()
    for parameter, field in TWICE[part].items():
        assert parameters[parameter].default == getattr(config, field), parameter
    # And says all that it shares.
    shared = {name for name, p in parameters.items() if p.default is not p.empty}
    unsaid = shared & set(vars(config)) - set(TWICE[part])
    assert all(parameters[name].default is None for name in unsaid - {"classes_per_batch"})


def test_defaults_without_a_field_agree() -> None:
    def default(part: Callable[..., Any], name: str) -> Any:
        return inspect.signature(part).parameters[name].default

    assert default(PinnedBatchSampler, "classes_per_batch") == defaults.CLASSES_PER_BATCH
    assert default(Trainer, "checkpoint_every") == defaults.CHECKPOINT_EVERY
    assert default(Trainer.resume, "checkpoint_every") == defaults.CHECKPOINT_EVERY
    assert default(evaluate, "ks") == default(retrieval_metrics, "ks") == DEFAULT_KS


def _help(command: str) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        main([command, "--help"])
    return " ".join(text.getvalue().split())


def test_the_command_line_prints_them() -> None:
    text, config = _help("train"), TrainConfig()
    for flag, field in (
        ("--in-batch-weight", "in_batch_weight"),
        ("--proximal-weight", "proximal_weight"),
        ("--hard-share", "hard_share"),
        ("--projection-steps", "projection_steps"),
        ("--samples-per-class", "samples_per_class"),
        ("--embedding-dim", "embedding_dim"),
    ):
        own = text[text.rindex(f" {flag} ") :]
        assert own[own.index("(default: ") :].startswith(f"(default: {getattr(config, field)})")
    assert f"classes in a batch (default: {defaults.CLASSES_PER_BATCH})" in text
    assert f"steps between checkpoints (default: {defaults.CHECKPOINT_EVERY})" in text
    assert f"default: {defaults.DEVICE}" in _help("eval")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_repeats_defaults_as_they_are(name: str) -> None:
    config = TrainConfig()
    for field, value in read_config(name).items():
        if field not in OWN:
            assert value == getattr(config, field), field
