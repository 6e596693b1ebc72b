"""Who takes part in a comparison: ours, eager, torch.compile of eager, a library, the yardstick.

`LOSSES` and `SEARCHES` say what is compared; a loss without a row is measured against the formula
of the tests. A candidate is a function without arguments that does the work of one step and returns
tensors by which it is checked: loss and gradients for losses, values for searches. G, the
yardstick, is ``torch.mm(x, y.T, out=buffer)``: one product that materialises every pair; y is x but
for losses with proxies.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import dmlap_kernels
from benchmarks import eager, peers
from benchmarks.batch import Absent, Batch, make_batch
from dmlap_kernels import functional

Step = Callable[[], tuple[Tensor, ...]]
CANDIDATES = ("ours", "revision", "eager", "compile", "library", "G")
NEIGHBOURS = 10


@dataclass(frozen=True)
class Loss:
    """A row of the table.

    Attributes:
        function: a name in `dmlap_kernels`.
        eager: the same in plain PyTorch.
        peer: a function of `benchmarks.peers`.
        options: keywords of all three; values may be functions of the rows (B, D).
        own: further keywords of ours.
        proxies: proxies a class, 0 for a loss without.
        tolerance: by how much candidates may differ, relative to the norm of the result; choices
            among nearly equal distances differ by rounding.
        foretold: halvings of the rows at which the time of the library's call is foretold, and by
            how much it grows with each doubling.
        compiled: torch.compile takes part without being asked for (it takes long to compile).
        drawn: triplets are drawn at random, so that gradients are not compared.
        paired: the references, in the place of proxies, are one for each row, its only positive.
        precision: of the matrix products of all candidates.
    """

    function: str
    eager: Callable[..., Tensor]
    peer: Callable[..., peers.Loss]
    options: dict[str, Any] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)
    proxies: int = 0
    tolerance: float = 2e-3
    foretold: tuple[int, int] = (3, 4)
    compiled: bool = False
    drawn: bool = False
    paired: bool = False
    precision: str = "highest"

    def settings(self, x: Tensor) -> dict[str, Any]:
        return {name: v(x) if callable(v) else v for name, v in self.options.items()}

    def batch(self, rows: int, features: int, classes: int | None = None) -> Batch:
        classes = rows if self.paired else classes
        return make_batch(rows, features, proxies_per_class=self.proxies, classes=classes)


def active(share: float) -> Callable[[Tensor], float]:
    """The distance within which this share of the pairs lies; twice the largest for all of them."""

    def distance(x: Tensor) -> float:
        sample = torch.pdist(x.detach()[:1024])
        return 2 * sample.max().item() if share == 1 else sample.quantile(share).item()

    return distance


TRIPLET = {"margin": 0.2}
WEIGHTED = {"margin": 0.2, "cutoff": 0.5, "nonzero_loss_cutoff": 1.4}
MULTI = {"alpha": 2.0, "beta": 50.0, "base": 0.5}
# From B^3 > 2^31 on, triplets are listed anchor by anchor; smaller batches say nothing about it.
ONE_BY_ONE = (1, 4)
# Those of 2010.04592.
HARD = {"temperature": 0.5, "hardness": 1.0}
LIFTED = {"pos_margin": 0.0, "neg_margin": 1.0}
# All candidates compute on the rows as they are, and reduce by the mean of all terms.
RAW = {"normalize": False, "reduction": "mean"}

# fmt: off
LOSSES: dict[str, Loss] = {
    "triplet-hard": Loss(
        "fused_triplet_loss", eager.triplet_hard, peers.triplet_hard, TRIPLET, compiled=True),
    "triplet-easy-positive": Loss(
        "fused_triplet_loss", eager.triplet_easy_positive, peers.triplet_easy_positive, TRIPLET,
        {"mining": "easy_positive"}),
    "triplet-easy-positive-semihard": Loss(
        "fused_triplet_loss", eager.triplet_easy_positive_semihard,
        peers.triplet_easy_positive_semihard, TRIPLET, {"mining": "easy_positive_semihard"},
        tolerance=0.05),
    "triplet-semihard": Loss(
        "fused_triplet_loss", eager.triplet_semihard, peers.triplet_semihard, TRIPLET,
        {"mining": "semihard"}, tolerance=0.05),
    "triplet-all": Loss(
        "fused_triplet_loss", eager.triplet_all, peers.triplet_all, TRIPLET, {"mining": "all"},
        foretold=ONE_BY_ONE),
    "triplet-distance-weighted": Loss(
        "fused_triplet_loss", eager.triplet_distance_weighted, peers.triplet_distance_weighted,
        WEIGHTED, {"mining": "distance_weighted", "normalize": True}, tolerance=0.2, drawn=True,
        foretold=(3, 8)),
    "contrastive-all": Loss(
        "fused_contrastive_loss", eager.contrastive, peers.contrastive,
        {"neg_margin": active(1.0)}, RAW, compiled=True),
    "contrastive-2%": Loss(
        "fused_contrastive_loss", eager.contrastive, peers.contrastive,
        {"neg_margin": active(0.02)}, RAW),
    "margin-all": Loss(
        "fused_margin_loss", eager.margin, peers.margin, {"margin": active(1.0), "beta": 1.2}, RAW,
        foretold=ONE_BY_ONE),
    "margin-2%": Loss(
        "fused_margin_loss", eager.margin, peers.margin, {"margin": 0.0, "beta": active(0.02)}, RAW,
        foretold=ONE_BY_ONE),
    "multi-similarity": Loss(
        "fused_multi_similarity_loss", eager.multi_similarity, peers.multi_similarity, MULTI),
    "multi-similarity-miner": Loss(
        "fused_multi_similarity_loss", eager.multi_similarity, peers.multi_similarity,
        MULTI | {"epsilon": 0.1}),
    "lifted-structure": Loss(
        "fused_lifted_structure_loss", eager.lifted_structure, peers.lifted_structure, LIFTED,
        RAW | {"form": "generalized"}),
    "lifted-structure-original": Loss(
        "fused_lifted_structure_loss", eager.lifted_structure_original,
        peers.lifted_structure_original, LIFTED, RAW),
    "n-pairs": Loss("fused_n_pairs_loss", eager.n_pairs, peers.n_pairs, own=RAW),
    "nt-xent": Loss(
        "fused_nt_xent_loss", eager.nt_xent, peers.nt_xent, {"temperature": 0.07}),
    "nt-xent-hardness": Loss(
        "fused_nt_xent_loss", eager.nt_xent_hardness, peers.none, HARD),
    "sup-con": Loss(
        "fused_sup_con_loss", eager.sup_con, peers.sup_con, {"temperature": 0.1},
        {"reduction": "mean"}, compiled=True),
    "sup-con-hardness": Loss(
        "fused_sup_con_loss", eager.sup_con_hardness, peers.none, HARD, {"reduction": "mean"}),
    "angular": Loss("fused_angular_loss", eager.angular, peers.angular, {"alpha": 40.0}),
    "circle": Loss(
        "fused_circle_loss", eager.circle, peers.circle, {"m": 0.4, "gamma": 80.0},
        {"reduction": "mean"}),
    "proxy-nca": Loss(
        "fused_proxy_nca_loss", eager.proxy_nca, peers.proxy_nca, {"softmax_scale": 1.0},
        proxies=1),
    "proxy-anchor": Loss(
        "fused_proxy_anchor_loss", eager.proxy_anchor, peers.proxy_anchor,
        {"margin": 0.1, "alpha": 32.0}, proxies=1),
    "cosface": Loss(
        "fused_cosface_loss", eager.cosface, peers.cosface, {"scale": 64.0, "margin": 0.35},
        proxies=1),
    "arcface": Loss(
        "fused_arcface_loss", eager.arcface, peers.arcface, {"scale": 64.0, "margin": 28.6},
        proxies=1),
    "soft-triple": Loss(
        "fused_soft_triple_loss", eager.soft_triple, peers.soft_triple,
        {"la": 20.0, "gamma": 0.1, "margin": 0.01}, proxies=10),
}
# What `benchmarks.gpu` has beside these. Inf-CL, the peer, computes its products in TF32.
PAIRED: dict[str, Loss] = {
    "info-nce": Loss(
        "fused_nt_xent_loss", eager.info_nce, peers.info_nce, {"temperature": 0.07}, proxies=1,
        paired=True, precision="high"),
    "siglip-pairs": Loss(
        "fused_siglip_loss", eager.siglip_pairs, peers.siglip_pairs,
        {"scale": 10.0, "bias": -10.0}, proxies=1, paired=True),
}
# fmt: on


def by_reference(function: str) -> Loss:
    """A loss without a row: its defaults, the formula of the tests, and no library."""
    keywords = inspect.signature(getattr(dmlap_kernels, function)).parameters
    distance = keywords["distance"].default if "distance" in keywords else "cosine"
    plain = eager.of_reference(function.removeprefix("fused_").removesuffix("_loss"), distance)
    own: dict[str, Any] = {"reduction": "mean"}
    if "normalize" in keywords:
        own["normalize"] = False
    return Loss(function, plain, peers.none, own=own, proxies=int("proxies" in keywords))


_LISTED = {row.function for row in LOSSES.values()}
LOSSES |= {
    function[len("fused_") : -len("_loss")].replace("_", "-"): by_reference(function)
    for function in functional.__all__
    if function not in _LISTED
}
SEARCHES = ("nearest", "hard-classes")
OPS = (*LOSSES, *SEARCHES)


def make(op: str, candidate: str, rows: int, features: int, classes: int | None = None) -> Step:
    """One candidate; raises `Absent`."""
    if op in SEARCHES:
        return _search(op, candidate, make_batch(rows, features).x.detach())
    row = LOSSES[op]
    return loss_step(row, candidate, row.batch(rows, features, classes))


def loss_step(row: Loss, candidate: str, batch: Batch) -> Step:
    if candidate == "G":
        return yardstick(batch.x, batch.leaves[-1])
    settings = row.settings(batch.x)
    if candidate == "library":
        return with_gradient(row.peer(batch, **settings), batch)
    if candidate == "ours":
        settings |= row.own
        function = getattr(dmlap_kernels, row.function)
    else:
        function = _compiled(row.eager) if candidate == "compile" else row.eager
    return with_gradient(functools.partial(function, **settings), batch)


def with_gradient(loss: Callable[..., Tensor], batch: Batch) -> Step:
    tensors, leaves = batch.tensors, batch.leaves

    def step() -> tuple[Tensor, ...]:
        value = loss(*tensors)
        return value, *torch.autograd.grad(value, leaves)

    return step


def yardstick(x: Tensor, y: Tensor) -> Step:
    x, y = x.detach(), y.detach()
    buffer = torch.empty(len(x), len(y))
    return lambda: (torch.mm(x, y.T, out=buffer),)


def _search(op: str, candidate: str, x: Tensor) -> Step:
    if candidate == "G":
        return yardstick(x, x)
    options: dict[str, Any] = {"k": NEIGHBOURS}
    if op == "hard-classes":
        options["margin"] = active(1.0)(x)
    if candidate == "ours":
        if op == "nearest":
            return lambda: (dmlap_kernels.nearest(x, **options).distances,)
        names = torch.arange(len(x))
        return lambda: (dmlap_kernels.hard_classes(x, names, **options).scores,)
    if candidate == "library":
        if op == "hard-classes":
            raise Absent("no library that we know of mines classes")
        search = peers.faiss_nearest(x, x, NEIGHBOURS + 1)
        return lambda: (search()[:, 1:].clamp_min(0).sqrt(),)
    plain: Callable[..., Any] = eager.nearest if op == "nearest" else eager.hard_classes
    function = _compiled(plain) if candidate == "compile" else plain
    return lambda: (function(x, **options)[0],)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled once for all shapes; compiling for each would take most of the session."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2))
    except Exception as error:
        raise Absent(f"torch.compile does not work here: {error}") from error
    return torch.compile(function, dynamic=True)
