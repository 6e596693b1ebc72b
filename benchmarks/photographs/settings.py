"""What is tried: for every loss, batch and method as many settings, drawn at random."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.evidence.settings import Run
from dmlap_kernels.trainer.config import PROXIMAL_FORMS

SEEDS = (1, 2, 3, 4, 5)
SEARCH_SEED = 0  # never among those of the final runs
FOLDS = (0, 1, 2, 3)
TRIALS = 16  # on the first fold
KEPT_TRIALS = 3  # of them, on the other folds, too
BATCHES = {"8 x 4": (8, 4), "32 x 4": (32, 4)}
# For the curve of lambda, everything else as it was chosen.
LAMBDAS = (0.0, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0)

METHODS = ("plain", "plain+control", "dmlap", "dmlap+hard")
# Two settings of each loss, the library's default first.
LOSS_OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "contrastive": ({}, {"neg_margin": 0.7}),
    "triplet": ({}, {"margin": 0.4}),
    "multi_similarity": ({}, {"beta": 20.0}),
    "nt_xent": ({}, {"temperature": 0.15}),
    "proxy_anchor": ({}, {"scale": 16.0}),
}

Draw = Callable[[random.Random], Any]


def _among(*values: Any) -> Draw:
    return lambda chance: chance.choice(values)


def _between(low: float, high: float) -> Draw:
    """Evenly on a scale of logarithms, two digits."""
    return lambda chance: float(f"{low * (high / low) ** chance.random():.2g}")


# What every method draws. ``average``: of the weights, by how much of the average a step keeps;
# 0 none.
_COMMON: dict[str, Draw] = {
    "learning_rate": _between(2e-5, 1e-3),
    "backbone_rate": _among(0.1, 0.3, 1.0),
    "steps": _among(250, 500, 1000),
    "head": _among("principal", "random"),
    "freeze_batch_norm": _among(True, False),
}
_DMLAP: dict[str, Draw] = {
    "proximal_form": _among("gradient", "decoupled"),
    "proximal_weight": _between(1e-2, 10.0),
    "projection_steps": _among(25, 50, 100, 250, 500),
    "in_batch_weight": _among(0.3, 1.0, 3.0),
}
SPACES: dict[str, dict[str, Draw]] = {
    "plain": _COMMON,
    # What else holds a network back that learns too much by heart.
    "plain+control": {
        **_COMMON,
        "weight_decay": _between(1e-3, 1.0),
        "average": _among(0.0, 0.99, 0.998),
    },
    "dmlap": {**_COMMON, **_DMLAP},
    "dmlap+hard": {**_COMMON, **_DMLAP, "hard_share": _among(0.25, 0.5, 0.75)},
}
_FIXED: dict[str, dict[str, Any]] = {
    "plain": {"method": "plain"},
    "plain+control": {"method": "plain", "optimizer": "adamw"},
    "dmlap": {"method": "dmlap", "classes": "uniform"},
    "dmlap+hard": {"method": "dmlap", "classes": "hard", "hard_pool": 16, "hard_refresh": 100},
}


def _named(loss: str, batch: str, method: str, config: dict[str, Any], end: str) -> Run:
    classes, samples = BATCHES[batch]
    shape = {"loss": loss, "classes_per_batch": classes, "samples_per_class": samples}
    return Run(f"{loss} {batch} {method} {end}", f"{loss} {batch}", method, {**shape, **config})


def trials(loss: str, batch: str, method: str, amount: int = TRIALS) -> Iterator[Run]:
    """The first ``amount`` draws, on the first fold; more of them begin with the same."""
    for number in range(amount):
        chance = random.Random(f"{loss} {batch} {method} {number}")
        drawn = {name: draw(chance) for name, draw in SPACES[method].items()}
        drawn["loss_options"] = chance.choice(LOSS_OPTIONS[loss])
        if drawn.get("projection_steps", 0) > drawn["steps"]:
            drawn["projection_steps"] = drawn["steps"] // 2  # or lambda would do nothing
        yield _of_fold(loss, batch, method, {**_FIXED[method], **drawn}, number, FOLDS[0])


def _of_fold(
    loss: str, batch: str, method: str, config: dict[str, Any], number: int, fold: int
) -> Run:
    config = {**config, "seed": SEARCH_SEED, "validation_fold": fold}
    return _named(loss, batch, method, config, f"trial={number} fold={fold}")


def on_other_folds(best: list[dict[str, Any]]) -> Iterator[Run]:
    """The best trials of the first fold on the others."""
    for entry in best:
        loss, batch, method, number = parts(entry)
        for fold in FOLDS[1:]:
            yield _of_fold(loss, batch, method, own(entry["config"]), number, fold)


def final_runs(chosen: list[dict[str, Any]], seeds: tuple[int, ...] = SEEDS) -> Iterator[Run]:
    """What was chosen, on all training classes, with every seed."""
    for seed in seeds:
        for entry in chosen:
            loss, batch, method, _ = parts(entry)
            config = {**own(entry["config"]), "seed": seed}
            yield _named(loss, batch, method, config, f"seed={seed}")


def lambda_runs(chosen: list[dict[str, Any]]) -> Iterator[Run]:
    """What was chosen for DMLAP, with other lambdas, on all folds."""
    for entry in chosen:
        loss, batch, method, number = parts(entry)
        if method != "dmlap":
            continue
        for fold, form, weight in itertools.product(FOLDS, PROXIMAL_FORMS, LAMBDAS):
            if not weight and form != PROXIMAL_FORMS[0]:
                continue  # No term has one form.
            config = {**own(entry["config"]), "proximal_form": form, "proximal_weight": weight}
            config |= {"seed": SEARCH_SEED, "validation_fold": fold}
            end = f"trial={number} {form} lambda={weight:g} fold={fold}"
            yield _named(loss, batch, method, config, end)


def parts(entry: dict[str, Any]) -> tuple[str, str, str, int]:
    """Loss, batch, method and number of trial of a line of results (0 where there is none)."""
    loss, _, batch = entry["loss"].partition(" ")
    for word in entry["name"].split():
        if word.startswith("trial="):
            return loss, batch, entry["method"], int(word.partition("=")[2])
    return loss, batch, entry["method"], 0


_PLACES = ("loss", "classes_per_batch", "samples_per_class", "seed", "validation_fold")


def own(config: dict[str, Any]) -> dict[str, Any]:
    """What a configuration says beyond its loss, its batch and where it was tried."""
    return {name: value for name, value in config.items() if name not in _PLACES}
