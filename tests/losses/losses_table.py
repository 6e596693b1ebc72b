"""The losses under test, one row each: a new loss is a row here and a formula in the reference."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import dmlap_kernels
from tests import reference

EUCLIDEAN = ("euclidean", "sqeuclidean", "cosine")
ALL = (*EUCLIDEAN, "dot")
PRODUCTS = ("cosine", "dot")
SHARPNESS = ("mild", "sharp")
# How the public functions annotate a number that can be learned.
NUMBER = "float | Tensor"


@dataclass(frozen=True)
class Draw:
    """What the options of a drawn problem are chosen from: float64 distances, and the levels.

    ``terms(**options)`` are the terms of the reference with these options.
    """

    d: Tensor
    positives: Tensor
    negatives: Tensor
    labels: Tensor
    distance: str
    reduction: str
    seed: int
    terms: Callable[..., Any]

    @property
    def spread(self) -> float:
        """Standard deviation of the distances of pairs; 1 where there is none."""
        found = self.d[self.positives | self.negatives]
        spread = found.std().item() if found.numel() > 1 else 0.0
        return spread if spread > 1e-6 else 1.0

    def rate(self, sharpness: str) -> float:
        """Factor of distances in an exponential.

        Only sharp exponentials underflow, so that "mean_nonzero", which would count terms then,
        has mild ones.
        """
        sharp = sharpness == "sharp" and self.reduction != "mean_nonzero"
        return (12.0 if sharp else 2.5) / self.spread

    @property
    def zero_similarity(self) -> float:
        return 1.0 if self.distance == "cosine" else 0.0

    def middle(self) -> float:
        found = self.d[self.positives | self.negatives]
        return between(found, 0.5) if found.numel() else 0.5


@dataclass(frozen=True)
class Row:
    """A loss.

    Attributes:
        name: of the formula in `tests.reference.FORMULAS`, and of the policy.
        levels: of the loss's own factors, for covering arrays.
        choose: keywords of the loss from a `Draw` and one level of each factor; margins such that
            some hinges are active and others are not.
        slope: of a term, and relative of its gradient, with respect to a distance, at most: what
            the rounding error of a distance is multiplied with.
        distances: accepted; () for a loss that takes neither ``distance`` nor ``normalize`` and
            works on cosines.
        variant_of: X of the public function ``fused_X_loss`` where it is not the name, called with
            the keywords ``fixed``.
        positive: numbers that must be greater than 0; others need only be finite.
        proxies: whether references are proxies, without which there is no loss.
        max_rows: of a batch; less where the reference is cubic or a kink too likely.
        spread: standard deviation to which un-normalised points scale their distances, for
            exponentials of distances without a factor of their own.
        detached: whether the gradient is by definition not the derivative of the value.
        sum_over_references: whether "sum" adds up when references are split.
        ordered: whether the order of rows matters: the first rows of a class, or numbered draws.
        drawn: whether negatives are drawn at random, with weights that depend on D.
        cancels: whether weights of both signs cancel where an anchor is done with.
        summed: whether a term adds up all pairs of an anchor, and their rounding.
        extreme: options that make exponents huge.
    """

    name: str
    choose: Callable[..., dict[str, Any]]
    fixed: dict[str, Any] = field(default_factory=dict)
    levels: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    slope: Callable[[dict[str, Any], float], tuple[float, float]] = lambda options, largest: (1, 0)
    distances: tuple[str, ...] = EUCLIDEAN
    variant_of: str = ""
    positive: tuple[str, ...] = ()
    proxies: bool = False
    max_rows: int = 257
    spread: float | None = None
    detached: bool = False
    sum_over_references: bool = False
    ordered: bool = False
    drawn: bool = False
    cancels: bool = False
    summed: bool = False
    extreme: dict[str, Any] = field(default_factory=dict)

    @property
    def loss(self) -> str:
        return self.variant_of or self.name

    @property
    def function(self) -> str:
        return f"fused_{self.loss}_loss"

    @property
    def keywords(self) -> dict[str, inspect.Parameter]:
        """Of the function."""
        parameters = inspect.signature(getattr(dmlap_kernels, self.function)).parameters
        return {n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}

    @property
    def numbers(self) -> dict[str, float]:
        """Those of the function that can be learned, at their defaults."""
        return {n: p.default for n, p in self.keywords.items() if p.annotation == NUMBER}

    @property
    def other_numbers(self) -> dict[str, float]:
        """The numbers away from their defaults."""
        return {name: 1.25 * value for name, value in self.numbers.items()}

    @property
    def default_distance(self) -> str:
        return self.keywords["distance"].default if self.distances else "cosine"

    @property
    def default_normalize(self) -> bool:
        return self.keywords["normalize"].default if self.distances else False

    def fused(self, *args: Any, **keywords: Any) -> Any:
        return getattr(dmlap_kernels, self.function)(*args, **self.fixed, **keywords)

    def geometry(self, keywords: dict[str, Any]) -> dict[str, Any]:
        """Distance and normalize of a call with these keywords."""
        return {
            "distance": keywords.get("distance", self.default_distance),
            "normalize": keywords.get("normalize", self.default_normalize),
        }

    def reference(self, *args: Any, **keywords: Any) -> Tensor:
        return reference.loss(self.name, *args, **(self.geometry(keywords) | keywords))

    def stats(self, *args: Any, **keywords: Any) -> Any:
        keywords = {key: value for key, value in keywords.items() if key != "reduction"}
        return reference.pair_stats(self.name, *args, **(self.geometry(keywords) | keywords))


def between(values: Tensor, share: float) -> float:
    """A threshold that about this share of the values lies below, and that equals none of them."""
    ordered = values.unique()
    rank = min(int(share * len(ordered)), len(ordered) - 1)
    upper = ordered[rank].item()
    lower = ordered[rank - 1].item() if rank else upper - 0.1 * abs(upper) - 0.01
    return (lower + upper) / 2


def _triplet(draw: Draw, **options: Any) -> dict[str, Any]:
    if options.pop("seeded", False):
        options["seed"] = draw.seed
    violation = draw.terms(margin=0.0, **options).kinks[-1]
    usual = -between(violation, 0.5) if len(violation) else 0.3
    return {"margin": max(0.05, usual)} | options


def _contrastive(draw: Draw, *, squared: bool, active: str) -> dict[str, Any]:
    share = {"all": 1.0, "half": 0.5, "few": 0.03}[active]
    pull, push = draw.d[draw.positives], draw.d[draw.negatives]
    pos_margin = max(0.0, between(pull, 1 - share)) if len(pull) else 0.1
    neg_margin = between(push, share) if len(push) else 1.0
    if share == 1.0:
        pos_margin, neg_margin = 0.0, 1.1 * neg_margin + 0.1
    return {"pos_margin": pos_margin, "neg_margin": neg_margin, "squared": squared}


def _margin(draw: Draw, *, beta: str, active: str) -> dict[str, Any]:
    middle = draw.middle()
    labels = draw.labels.long()
    if beta == "classes" and len(labels) and 0 <= labels.min() and labels.max() < 1000:
        offsets = torch.linspace(-0.3, 0.4, int(labels.max()) + 1, dtype=torch.float64)
        chosen: Any = middle + draw.spread * offsets
    else:
        scalar = torch.tensor(middle, dtype=torch.float64)
        chosen = {"number": middle, "0-d": scalar}.get(beta, scalar[None])
    return {"margin": {"half": 0.3, "all": 9.0}[active] * draw.spread, "beta": chosen}


def _multi_similarity(draw: Draw, *, sharpness: str, mined: bool) -> dict[str, Any]:
    threshold = draw.middle()
    similarity = draw.distance in PRODUCTS
    options = {"alpha": 0.5 * draw.rate("mild"), "beta": draw.rate(sharpness)}
    options["base"] = draw.zero_similarity - threshold if similarity else threshold
    return options | ({"epsilon": 0.2 * draw.spread} if mined else {})


def _siglip(draw: Draw, *, sharpness: str) -> dict[str, Any]:
    rate = draw.rate(sharpness)
    return {"scale": rate, "bias": rate * (draw.middle() - draw.zero_similarity)}


def _lifted(draw: Draw) -> dict[str, Any]:
    argument = draw.terms(pos_margin=0.0, neg_margin=0.0).kinks[0]
    usual = between(argument, 0.5) if len(argument) else 0.3
    return {"pos_margin": usual + 0.5, "neg_margin": 0.5}


def _temperature(draw: Draw, *, sharpness: str) -> dict[str, Any]:
    return {"temperature": 1 / draw.rate(sharpness)}


def _hardness(draw: Draw, *, sharpness: str, hardness: float) -> dict[str, Any]:
    return _temperature(draw, sharpness=sharpness) | {"hardness": hardness}


def _given(draw: Draw, **options: Any) -> dict[str, Any]:
    return options


def _circle(draw: Draw, *, m: float, gamma: float) -> dict[str, Any]:
    return {"m": m, "gamma": 5.0 if draw.reduction == "mean_nonzero" else gamma}


def _proxy_anchor(draw: Draw, *, sharpness: str) -> dict[str, Any]:
    offset = draw.middle() - draw.zero_similarity
    return {"alpha": draw.rate(sharpness), "margin": 0.2 * draw.spread + abs(offset)}


def _softmax(draw: Draw, *, sharpness: str, margin: float) -> dict[str, Any]:
    return {"scale": draw.rate(sharpness), "margin": margin}


def _soft_triple(draw: Draw, *, sharpness: str) -> dict[str, Any]:
    rate = draw.rate(sharpness)
    return {"la": rate, "gamma": 1 / rate, "margin": 0.1 * draw.spread}


def _squared(power: float) -> Callable[[dict[str, Any], float], tuple[float, float]]:
    """Slope of a squared hinge: twice its argument, which a margin may enlarge."""

    def slope(options: dict[str, Any], largest: float) -> tuple[float, float]:
        if power == 1 and not options.get("squared"):
            return 1, 0
        reach = largest + abs(options["neg_margin"]) + abs(options["pos_margin"])
        return max(1.0, reach), max(1.0, reach)

    return slope


def _circle_slope(options: dict[str, Any], largest: float) -> tuple[float, float]:
    return (2 * options["gamma"] * (1 + options["m"]),) * 2


def _angular_slope(options: dict[str, Any], largest: float) -> tuple[float, float]:
    t2 = torch.tan(torch.deg2rad(torch.tensor(options["alpha"]))).item() ** 2
    return (10 * t2 + 2,) * 2


def _arcface_slope(options: dict[str, Any], largest: float) -> tuple[float, float]:
    # The slope of the angle by the cosine grows without bound towards 0 and 180 degrees.
    return (options["scale"] * 5,) * 2


_SWAPS = {"smooth": (False, True), "swap": (False, True)}
_SHARP = {"sharpness": SHARPNESS}
# Of a loss whose exponents are d / temperature, which `_temperature` chooses.
_TEMPERED: dict[str, Any] = {
    "levels": _SHARP,
    "slope": lambda options, largest: (1 / options["temperature"],) * 2,
    "positive": ("temperature",),
    "extreme": {"temperature": 0.005},
}
# The same whose negatives count by their hardness.
_HARD: dict[str, Any] = {
    "levels": _SHARP | {"hardness": (0.5, 1.5)},
    "slope": lambda options, largest: ((1 + 2 * options["hardness"]) / options["temperature"],) * 2,
    "positive": ("temperature",),
    "extreme": {"temperature": 0.005, "hardness": 1.0},
}


def _smooth(options: dict[str, Any], largest: float) -> tuple[float, float]:
    return 1, float(options["smooth"])


LOSSES: dict[str, Row] = {
    row.name: row
    for row in (
        Row(
            "triplet_hard",
            _triplet,
            variant_of="triplet",
            levels=_SWAPS,
            slope=_smooth,
        ),
        Row(
            "triplet_easy_positive",
            _triplet,
            {"mining": "easy_positive"},
            variant_of="triplet",
            levels=_SWAPS,
            slope=_smooth,
            max_rows=130,
        ),
        Row(
            "triplet_easy_positive_semihard",
            _triplet,
            {"mining": "easy_positive_semihard"},
            variant_of="triplet",
            levels=_SWAPS,
            slope=_smooth,
            max_rows=130,
        ),
        Row(
            "triplet_semihard",
            _triplet,
            {"mining": "semihard"},
            variant_of="triplet",
            levels=_SWAPS,
            slope=_smooth,
            max_rows=49,
        ),
        Row(
            "triplet_all",
            _triplet,
            {"mining": "all"},
            variant_of="triplet",
            levels=_SWAPS,
            slope=_smooth,
            max_rows=49,
        ),
        Row(
            "triplet_distance_weighted",
            _triplet,
            {"mining": "distance_weighted"},
            variant_of="triplet",
            levels=_SWAPS | {"seeded": (True,), "nonzero_loss_cutoff": (1.4, 1.8)},
            slope=_smooth,
            max_rows=49,
            ordered=True,
            drawn=True,
        ),
        Row(
            "contrastive",
            _contrastive,
            levels={"squared": (False, True), "active": ("all", "half", "few")},
            slope=_squared(1),
            sum_over_references=True,
        ),
        Row(
            "margin",
            _margin,
            levels={"beta": ("number", "0-d", "1-d", "classes"), "active": ("half", "all")},
            max_rows=130,
        ),
        Row(
            "siglip",
            _siglip,
            levels=_SHARP,
            positive=("scale",),
            slope=lambda options, largest: (options["scale"],) * 2,
            distances=PRODUCTS,
            sum_over_references=True,
            summed=True,
            extreme={"scale": 1e4},
        ),
        Row(
            "multi_similarity",
            _multi_similarity,
            levels=_SHARP | {"mined": (False, True)},
            positive=("alpha", "beta"),
            slope=lambda options, largest: (1, max(options["alpha"], options["beta"])),
            distances=ALL,
            extreme={"alpha": 1e3, "beta": 1e4},
        ),
        Row(
            "lifted_structure",
            _lifted,
            {"form": "generalized"},
            slope=lambda options, largest: (1, 1),
            spread=1.5,
        ),
        Row(
            "lifted_structure_original",
            _lifted,
            {"form": "original"},
            variant_of="lifted_structure",
            slope=_squared(2),
            spread=1.5,
            max_rows=130,
        ),
        Row(
            "n_pairs",
            _given,
            slope=lambda options, largest: (1, 1),
            distances=ALL,
            spread=2.0,
            ordered=True,
        ),
        Row(
            "nt_xent",
            _temperature,
            **_TEMPERED,
            distances=ALL,
        ),
        Row(
            "sup_con",
            _temperature,
            **_TEMPERED,
            distances=ALL,
            cancels=True,
        ),
        Row(
            "nt_xent_hardness",
            _hardness,
            **_HARD,
            variant_of="nt_xent",
            distances=ALL,
        ),
        Row(
            "sup_con_hardness",
            _hardness,
            **_HARD,
            variant_of="sup_con",
            distances=ALL,
            cancels=True,
        ),
        Row(
            "angular",
            _given,
            levels={"alpha": (20.0, 40.0, 60.0)},
            positive=("alpha",),
            slope=_angular_slope,
            distances=(),
            max_rows=130,
            extreme={"alpha": 70.0},
        ),
        Row(
            "circle",
            _circle,
            levels={"m": (0.25, 0.4), "gamma": (5.0, 80.0)},
            positive=("gamma",),
            slope=_circle_slope,
            distances=(),
            detached=True,
            extreme={"gamma": 1e4},
        ),
        Row(
            "proxy_nca",
            lambda draw, sharpness: {"softmax_scale": draw.rate(sharpness)},
            levels=_SHARP,
            positive=("softmax_scale",),
            slope=lambda options, largest: (options["softmax_scale"],) * 2,
            distances=ALL,
            proxies=True,
            extreme={"softmax_scale": 1e4},
            cancels=True,
        ),
        Row(
            "cosface",
            _softmax,
            levels=_SHARP | {"margin": (0.0, 0.35)},
            positive=("scale",),
            slope=lambda options, largest: (options["scale"],) * 2,
            distances=(),
            proxies=True,
            extreme={"scale": 1e4},
            cancels=True,
        ),
        Row(
            "arcface",
            _softmax,
            levels=_SHARP | {"margin": (0.0, 28.6)},
            positive=("scale",),
            slope=_arcface_slope,
            distances=(),
            proxies=True,
            extreme={"scale": 1e4},
            cancels=True,
        ),
        Row(
            "proxy_anchor",
            _proxy_anchor,
            levels=_SHARP,
            positive=("alpha",),
            slope=lambda options, largest: (options["alpha"],) * 2,
            distances=PRODUCTS,
            proxies=True,
            extreme={"alpha": 1e4},
        ),
        Row(
            "soft_triple",
            _soft_triple,
            levels=_SHARP,
            positive=("la", "gamma"),
            slope=lambda options, largest: (options["la"] * (1 + largest / options["gamma"]),) * 2,
            distances=PRODUCTS,
            proxies=True,
            extreme={"la": 1e4, "gamma": 1e-4},
            cancels=True,
        ),
    )
}
# One row for each public function, by its X of ``fused_X_loss``.
FUNCTIONS: dict[str, Row] = {row.loss: row for row in reversed(LOSSES.values())}
