"""The losses under test, one row each: a new loss is a row here and a formula in the reference."""

from __future__ import annotations

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
        function: name of the public function, called with the keywords ``fixed``.
        levels: of the loss's own factors, for covering arrays.
        choose: keywords of the loss from a `Draw` and one level of each factor; margins such that
            some hinges are active and others are not.
        slope: of a term, and relative of its gradient, with respect to a distance, at most: what
            the rounding error of a distance is multiplied with.
        distances: accepted; () for a loss that takes neither ``distance`` nor ``normalize`` and
            works on cosines.
        default_distance, default_normalize: of the function.
        proxies: whether references are proxies, without which there is no loss.
        max_rows: of a batch; less where the reference is cubic or a kink too likely.
        spread: standard deviation to which un-normalised points scale their distances, for
            exponentials of distances without a factor of their own.
        detached: whether the gradient is by definition not the derivative of the value.
        sum_over_references: whether "sum" adds up when references are split.
        ordered: whether the order of rows matters: the first rows of a class, or numbered draws.
        drawn: whether negatives are drawn at random, with weights that depend on D.
        cancels: whether weights of both signs cancel where an anchor is done with.
        extreme: options that make exponents huge.
    """

    name: str
    function: str
    choose: Callable[..., dict[str, Any]]
    fixed: dict[str, Any] = field(default_factory=dict)
    levels: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    slope: Callable[[dict[str, Any], float], tuple[float, float]] = lambda options, largest: (1, 0)
    distances: tuple[str, ...] = EUCLIDEAN
    default_distance: str = "euclidean"
    default_normalize: bool = False
    proxies: bool = False
    max_rows: int = 257
    spread: float | None = None
    detached: bool = False
    sum_over_references: bool = False
    ordered: bool = False
    drawn: bool = False
    cancels: bool = False
    extreme: dict[str, Any] = field(default_factory=dict)

    def fused(self, *args: Any, **keywords: Any) -> Any:
        return getattr(dmlap_kernels, self.function)(*args, **self.fixed, **keywords)

    def exists(self) -> bool:
        return hasattr(dmlap_kernels, self.function)

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


def _lifted(draw: Draw) -> dict[str, Any]:
    argument = draw.terms(pos_margin=0.0, neg_margin=0.0).kinks[0]
    usual = between(argument, 0.5) if len(argument) else 0.3
    return {"pos_margin": usual + 0.5, "neg_margin": 0.5}


def _temperature(draw: Draw, *, sharpness: str) -> dict[str, Any]:
    return {"temperature": 1 / draw.rate(sharpness)}


def _given(draw: Draw, **options: Any) -> dict[str, Any]:
    return options


def _circle(draw: Draw, *, m: float, gamma: float) -> dict[str, Any]:
    return {"m": m, "gamma": 5.0 if draw.reduction == "mean_nonzero" else gamma}


def _proxy_anchor(draw: Draw, *, sharpness: str) -> dict[str, Any]:
    offset = draw.middle() - draw.zero_similarity
    return {"alpha": draw.rate(sharpness), "margin": 0.2 * draw.spread + abs(offset)}


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


_SWAPS = {"smooth": (False, True), "swap": (False, True)}
_SHARP = {"sharpness": SHARPNESS}


def _smooth(options: dict[str, Any], largest: float) -> tuple[float, float]:
    return 1, float(options["smooth"])


LOSSES: dict[str, Row] = {
    row.name: row
    for row in (
        Row(
            "triplet_hard",
            "fused_triplet_loss",
            _triplet,
            levels=_SWAPS,
            slope=_smooth,
        ),
        Row(
            "triplet_semihard",
            "fused_triplet_loss",
            _triplet,
            {"mining": "semihard"},
            levels=_SWAPS,
            slope=_smooth,
            max_rows=49,
        ),
        Row(
            "triplet_all",
            "fused_triplet_loss",
            _triplet,
            {"mining": "all"},
            levels=_SWAPS,
            slope=_smooth,
            max_rows=49,
        ),
        Row(
            "triplet_distance_weighted",
            "fused_triplet_loss",
            _triplet,
            {"mining": "distance_weighted"},
            levels=_SWAPS | {"seeded": (True,), "nonzero_loss_cutoff": (1.4, 1.8)},
            slope=_smooth,
            max_rows=49,
            ordered=True,
            drawn=True,
        ),
        Row(
            "contrastive",
            "fused_contrastive_loss",
            _contrastive,
            levels={"squared": (False, True), "active": ("all", "half", "few")},
            slope=_squared(1),
            default_normalize=True,
            sum_over_references=True,
        ),
        Row(
            "margin",
            "fused_margin_loss",
            _margin,
            levels={"beta": ("number", "0-d", "1-d", "classes"), "active": ("half", "all")},
            default_normalize=True,
            max_rows=130,
        ),
        Row(
            "multi_similarity",
            "fused_multi_similarity_loss",
            _multi_similarity,
            levels=_SHARP | {"mined": (False, True)},
            slope=lambda options, largest: (1, max(options["alpha"], options["beta"])),
            distances=ALL,
            default_distance="cosine",
            extreme={"alpha": 1e3, "beta": 1e4},
        ),
        Row(
            "lifted_structure",
            "fused_lifted_structure_loss",
            _lifted,
            {"form": "generalized"},
            slope=lambda options, largest: (1, 1),
            default_normalize=True,
            spread=1.5,
        ),
        Row(
            "lifted_structure_original",
            "fused_lifted_structure_loss",
            _lifted,
            {"form": "original"},
            slope=_squared(2),
            default_normalize=True,
            spread=1.5,
            max_rows=130,
        ),
        Row(
            "n_pairs",
            "fused_n_pairs_loss",
            _given,
            slope=lambda options, largest: (1, 1),
            distances=ALL,
            default_distance="dot",
            default_normalize=True,
            spread=2.0,
            ordered=True,
        ),
        Row(
            "nt_xent",
            "fused_nt_xent_loss",
            _temperature,
            levels=_SHARP,
            slope=lambda options, largest: (1 / options["temperature"],) * 2,
            distances=ALL,
            default_distance="cosine",
            extreme={"temperature": 0.005},
        ),
        Row(
            "sup_con",
            "fused_sup_con_loss",
            _temperature,
            levels=_SHARP,
            slope=lambda options, largest: (1 / options["temperature"],) * 2,
            distances=ALL,
            default_distance="cosine",
            extreme={"temperature": 0.005},
            cancels=True,
        ),
        Row(
            "angular",
            "fused_angular_loss",
            _given,
            levels={"alpha": (20.0, 40.0, 60.0)},
            slope=_angular_slope,
            distances=(),
            default_distance="cosine",
            max_rows=130,
            extreme={"alpha": 70.0},
        ),
        Row(
            "circle",
            "fused_circle_loss",
            _circle,
            levels={"m": (0.25, 0.4), "gamma": (5.0, 80.0)},
            slope=_circle_slope,
            distances=(),
            default_distance="cosine",
            detached=True,
            extreme={"gamma": 1e4},
        ),
        Row(
            "proxy_nca",
            "fused_proxy_nca_loss",
            lambda draw, sharpness: {"softmax_scale": draw.rate(sharpness)},
            levels=_SHARP,
            slope=lambda options, largest: (options["softmax_scale"],) * 2,
            distances=ALL,
            default_distance="sqeuclidean",
            default_normalize=True,
            proxies=True,
            extreme={"softmax_scale": 1e4},
            cancels=True,
        ),
        Row(
            "proxy_anchor",
            "fused_proxy_anchor_loss",
            _proxy_anchor,
            levels=_SHARP,
            slope=lambda options, largest: (options["alpha"],) * 2,
            distances=PRODUCTS,
            default_distance="cosine",
            proxies=True,
            extreme={"alpha": 1e4},
        ),
        Row(
            "soft_triple",
            "fused_soft_triple_loss",
            _soft_triple,
            levels=_SHARP,
            slope=lambda options, largest: (options["la"] * (1 + largest / options["gamma"]),) * 2,
            distances=PRODUCTS,
            default_distance="cosine",
            proxies=True,
            extreme={"la": 1e4, "gamma": 1e-4},
            cancels=True,
        ),
    )
}
