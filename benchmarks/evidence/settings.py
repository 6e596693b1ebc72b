"""What is tried, and what the final runs are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from dmlap_kernels.trainer.config import PROXIMAL_FORMS

STEPS = 800
SEEDS = (1, 2, 3, 4, 5)
SEARCH_SEED = 0  # never among those of the final runs
SWEEP_SEEDS = (1, 2, 3)
PROXIMAL_WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0)
SWEEP_CLASSES = (4, 8, 16, 32, 64)  # batches of 16 to 256

COMMON: dict[str, Any] = {
    "encoder": "conv:16,32,64,64",
    "embedding_dim": 64,
    "steps": STEPS,
    "classes_per_batch": 24,
    "samples_per_class": 4,
    "device": "cpu",
}
METHODS = ("plain", "dmlap", "dmlap+hard")
# What the variants below do not say, whatever the trainer's defaults become.
_DMLAP = {"method": "dmlap", "projection_steps": 100, "in_batch_weight": 1.0}
_METHOD_FIELDS: dict[str, dict[str, Any]] = {
    "plain": {"method": "plain"},
    "dmlap": {**_DMLAP, "classes": "uniform"},
    "dmlap+hard": {**_DMLAP, "classes": "hard", "hard_pool": 16, "hard_refresh": 100},
}

# Two settings of each loss, the library's default first.
LOSS_OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "contrastive": ({}, {"neg_margin": 0.7}),
    "triplet": ({}, {"margin": 0.4}),
    "multi_similarity": ({}, {"beta": 20.0}),
    "nt_xent": ({}, {"temperature": 0.15}),
}
# The search has three rounds, each with six runs a loss and method. Plain batches try three rates
# with both settings. Either form of DMLAP tries variants, at the rate and the setting that were
# best for plain batches so far; in the last round the rates of plain batches with both settings,
# for its own best variant so far.
RATES = ((3e-4, 1e-3, 3e-3), (2e-3, 5e-3, 1e-2), (2e-2, 3e-2, 5e-2))
ROUNDS = len(RATES)
_FIRST: dict[str, tuple[dict[str, Any], ...]] = {
    "dmlap": (
        {"in_batch_weight": 0.1, "projection_steps": 100},
        {"in_batch_weight": 1.0, "projection_steps": 100},
        {"in_batch_weight": 0.1, "projection_steps": 25},
        {"in_batch_weight": 1.0, "projection_steps": 25},
        {"in_batch_weight": 1.0, "projection_steps": 25, "representatives": "both"},
        {"in_batch_weight": 1.0, "projection_steps": 100, "proximal_weight": 1e-2},
    ),
    "dmlap+hard": (
        {"in_batch_weight": 0.1, "hard_share": 0.25},
        {"in_batch_weight": 1.0, "hard_share": 0.25},
        {"in_batch_weight": 0.1, "hard_share": 0.5},
        {"in_batch_weight": 1.0, "hard_share": 0.5},
        {"in_batch_weight": 1.0, "hard_share": 0.75},
        {"in_batch_weight": 1.0, "hard_share": 0.5, "hard_warmup": STEPS // 2},
    ),
}
# After the first: more in-batch loss and shorter projections had been better for nearly all.
_SECOND: dict[str, tuple[dict[str, Any], ...]] = {
    "dmlap": (
        {"in_batch_weight": 3.0, "projection_steps": 25},
        {"in_batch_weight": 1.0, "projection_steps": 10},
        {"in_batch_weight": 1.0, "projection_steps": 25, "augment_representatives": True},
        {"in_batch_weight": 1.0, "projection_steps": 25, "representatives_per_class": 2},
        {"in_batch_weight": 1.0, "projection_steps": 25, "representative_choice": "medoid"},
        {"in_batch_weight": 1.0, "projection_steps": 25, "proximal_weight": 0.0},
    ),
    "dmlap+hard": (
        {"projection_steps": 25, "hard_share": 0.25},
        {"projection_steps": 25, "hard_share": 0.5},
        {"projection_steps": 25, "hard_share": 0.5, "augment_representatives": True},
        {"projection_steps": 25, "hard_share": 0.5, "hard_pool": 64},
        {"projection_steps": 25, "hard_share": 0.5, "in_batch_weight": 3.0},
        {"projection_steps": 25, "hard_share": 0.75, "hard_warmup": STEPS},
    ),
}
VARIANTS = (_FIRST, _SECOND)


class Run(NamedTuple):
    """One training run: what it is called, and its configuration less the data."""

    name: str
    loss: str
    method: str
    config: dict[str, Any]


def _run(name: str, loss: str, method: str, **config: Any) -> Run:
    return Run(
        f"{loss} {method} {name}",
        loss,
        method,
        {**COMMON, "loss": loss, **_METHOD_FIELDS[method], **config},
    )


def plain_search(round_number: int) -> Iterator[Run]:
    """Six runs a loss: rates times options."""
    for loss, options in LOSS_OPTIONS.items():
        for rate in RATES[round_number]:
            for chosen in options:
                yield _run(
                    f"rate={rate:g} {chosen}",
                    loss,
                    "plain",
                    seed=SEARCH_SEED,
                    validation=0.2,
                    learning_rate=rate,
                    loss_options=chosen,
                )


def dmlap_search(round_number: int, best: dict[tuple[str, str], dict[str, Any]]) -> Iterator[Run]:
    """Six runs a loss and form of DMLAP, given the best of each loss and method so far."""
    of_search = {"seed": SEARCH_SEED, "validation": 0.2}
    for loss, options in LOSS_OPTIONS.items():
        for method in METHODS[1:]:
            if round_number < len(VARIANTS):
                plain = best[loss, "plain"]
                inherited = {n: plain[n] for n in ("learning_rate", "loss_options")}
                for variant in VARIANTS[round_number][method]:
                    changed = {**inherited, **variant, **of_search}
                    yield _run(_text(variant), loss, method, **changed)
                continue
            own = _chosen(best[loss, method])
            for rate in RATES[round_number]:
                for chosen in options:
                    changed = {"learning_rate": rate, "loss_options": chosen, **of_search}
                    yield _run(f"rate={rate:g} {chosen}", loss, method, **{**own, **changed})


def _text(variant: dict[str, Any]) -> str:
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in variant.items()
    )


def _chosen(best: dict[str, Any]) -> dict[str, Any]:
    """What `_run` does not set by itself, and the search did not for itself."""
    return {n: v for n, v in best.items() if n not in ("loss", "method", "seed", "validation")}


def proximal_runs(best: dict[tuple[str, str], dict[str, Any]]) -> Iterator[Run]:
    """What was best for DMLAP without mining, with other lambdas in either form, as in the search;
    medoids, which cost more than they gain, are left out."""
    for loss in LOSS_OPTIONS:
        config = {"validation": 0.2, **best[loss, "dmlap"]}
        config.pop("representative_choice", None)
        for form, weight in itertools.product(PROXIMAL_FORMS, PROXIMAL_WEIGHTS):
            if weight or form == PROXIMAL_FORMS[0]:  # No term has one form.
                name = f"{loss} dmlap {form} lambda={weight:g}"
                changed = {"proximal_weight": weight, "proximal_form": form}
                yield Run(name, loss, "dmlap", config | changed)


def final_runs(best: dict[tuple[str, str], dict[str, Any]]) -> Iterator[Run]:
    """The best configuration of each loss and method with every seed."""
    for seed in SEEDS:
        for (loss, method), config in best.items():
            yield _run(f"seed={seed}", loss, method, **{**_chosen(config), "seed": seed})


def clock_runs(
    best: dict[tuple[str, str], dict[str, Any]], ratios: dict[str, dict[str, float]]
) -> Iterator[Run]:
    """DMLAP with as many steps as take the time of the plain run's, where a step takes longer."""
    for seed in SEEDS:
        for (loss, method), config in best.items():
            if method != "plain":
                steps = round(STEPS / max(1.0, ratios[loss][method]))
                changed = {**_chosen(config), "seed": seed, "steps": steps}
                yield _run(f"clock seed={seed}", loss, method, **changed)


def sweep_runs(best: dict[tuple[str, str], dict[str, Any]]) -> Iterator[Run]:
    """The same with other numbers of classes a batch."""
    for seed in SWEEP_SEEDS:
        for classes in SWEEP_CLASSES:
            for (loss, method), config in best.items():
                changed = {**_chosen(config), "seed": seed, "classes_per_batch": classes}
                yield _run(f"classes={classes} seed={seed}", loss, method, **changed)
