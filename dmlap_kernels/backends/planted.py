"""The calls that a backend is checked with: small, and with everything planted that goes wrong.

Several tiles each way with ragged ends; pairs a ten-thousandth apart, of one class and of two; rows
that coincide, whose distances tie; classes of one row, classes that only references have; a batch
with itself and with references, some of which are anchors themselves; of calls with a match a
matrix that is not symmetric. Forward and backward are held
against the `torch` backend in float64 on the CPU, and run twice, which must give the same bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlap_kernels.backends.interface import Backend
from dmlap_kernels.match import Match
from dmlap_kernels.problem import PairProblem, PairSpec, compute_dtype

# Params for rows of about unit length, so that of every hinge some are active and some are not.
PARAMS: dict[str, tuple[float, ...]] = {
    "triplet_hard": (0.2, 0.0, 0.0),
    "triplet_easy_positive": (0.2, 0.0, 0.0),
    "triplet_easy_positive_semihard": (0.2, 0.0, 0.0),
    "triplet_semihard": (0.2, 0.0, 0.0),
    "triplet_all": (0.2, 0.0, 0.0),
    # A cutoff and a seed by which no draw is left to rounding.
    "triplet_distance_weighted": (0.2, 0.0, 0.0, 0.5, 1.38, 294.0),
    "contrastive": (0.3, 1.3, 0.0),
    "margin": (0.2,),
    "multi_similarity": (2.0, 10.0, 0.5, 0.0, 0.0),
    "lifted_structure": (0.0, 1.3),
    "lifted_structure_original": (0.0, 1.3),
    "siglip": (5.0, 0.8),
    "n_pairs": (),
    "nt_xent": (0.2,),
    "nt_xent_hardness": (0.2, 0.5),
    "sup_con": (0.2,),
    "sup_con_hardness": (0.2, 0.5),
    "angular": (40.0,),
    "circle": (0.25, 16.0),
    "proxy_nca": (2.0,),
    "cosface": (8.0, 0.35),
    "arcface": (8.0, 0.878, 0.479, 0.239),
    "proxy_anchor": (8.0, 0.9, 1.1),
    "soft_triple": (10.0, 0.2, 0.01),
}
# Flags of triplets, by their places among the params; with them other kernels run.
FLAGS = {1: "smooth", 2: "swap"}
# Whose negatives are those beyond a positive.
SEMIHARD = ("triplet_semihard", "triplet_easy_positive_semihard")
# Which have no batch without references.
PROXIES = ("proxy_nca", "cosface", "arcface", "proxy_anchor", "soft_triple")
# Beyond twice the error of plain PyTorch in the same dtype, relative to the largest element.
EPSILON = 1e-4
ROWS, REFERENCES, FEATURES = 150, 170, 40
NEIGHBOURS = 5


class Case(NamedTuple):
    """A call on the CPU, and the gradient at its loss."""

    name: str
    spec: PairSpec
    problem: PairProblem
    grad: Tensor


def check(
    backend: Backend, judge: Backend, spec: PairSpec | None, dtype: torch.dtype, device: Any
) -> str | None:
    """What a backend gets wrong on a device, in words; None where nothing was found.

    Args:
        backend: under check.
        judge: plain PyTorch.
        spec: loss, distance and normalisation; None for `nearest` and `hard_classes`.
        dtype: of the rows.
        device: where the backend runs.
    """
    if spec is None:
        return _check_searches(backend, dtype, device)
    for case in cases(spec, dtype):
        truth = _run(judge, case, torch.float64, "cpu")
        plain = _run(judge, case, dtype, "cpu")
        ours = _run(backend, case, dtype, device)
        for name, true in truth.items():
            groups = _coinciding(case, name)
            found = _difference(ours.get(name), plain[name], true, groups)
            if found is not None:
                return f"{name} ({case.name}) {found}"
        again = _run(backend, case, dtype, device)
        if which := [name for name, one in ours.items() if not _same_bits(one, again[name])]:
            return f"{' and '.join(which)} ({case.name}) differed from run to run"
    return None


def variant_of(spec: PairSpec) -> str:
    """The loss, which of its flags are up, and whether a match names positives: what is checked by
    itself."""
    matched = () if spec.match is None else ("match",)
    return "-".join((spec.loss, *_flags(spec).values(), *matched))


def _flags(spec: PairSpec) -> dict[int, str]:
    if not spec.loss.startswith("triplet_"):
        return {}
    # The others may be operands of a graph, which must not be looked at.
    return {place: name for place, name in FLAGS.items() if any(spec.params[place : place + 1])}


def cases(spec: PairSpec, dtype: torch.dtype) -> Iterator[Case]:
    """With the loss's own params of `PARAMS` and the flags of the call, else with its params."""
    params = list(PARAMS.get(spec.loss, (1.0 if p is None else p for p in spec.params)))
    for place in _flags(spec):
        params[place] = 1.0
    x, labels, y, ref_labels, itself = (tensor.clone() for tensor in _drawn())
    if "swap" in _flags(spec).values():
        x, y = _apart(x), _apart(y)
    if spec.loss in SEMIHARD:
        labels, ref_labels = _in_one_class(x, labels, y, ref_labels)
    x, y = x.to(dtype), y.to(dtype)
    beta = None
    if spec.loss == "margin":
        beta = torch.linspace(0.9, 1.3, ROWS, dtype=compute_dtype(dtype), device="cpu")
    plain = PairSpec(spec.loss, tuple(params), spec.distance, spec.normalize, "mean", "highest")

    def asked(reduction: str, columns: Tensor) -> PairSpec:
        match = None if spec.match is None else Match(_one_sided(labels, columns))
        return plain._replace(reduction=reduction, match=match)

    one = torch.full((), 0.7, dtype=torch.float64, device="cpu")
    each = torch.linspace(0.5, 1.5, ROWS, dtype=torch.float64, device="cpu")
    if spec.loss not in PROXIES:
        alone = PairProblem(x, labels, None, None, beta)
        yield Case("a batch", asked("mean", labels), alone, one)
    self_index = None if spec.loss in PROXIES else itself
    with_refs = PairProblem(x, labels, y, ref_labels, beta, self_index)
    yield Case("references", asked("none", ref_labels), with_refs, each)


def _one_sided(labels: Tensor, columns: Tensor) -> Tensor:
    """Equal labels, and the next class for that before it; less every seventh row's."""
    ahead = columns - labels[:, None]
    found = (ahead == 0) | (ahead == 1)
    found[::7] = False
    return found


def _in_one_class(
    x: Tensor, labels: Tensor, y: Tensor, ref_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Labels by which rows that lie close together are of one class. A negative at the distance of
    a positive is semi-hard or not by the rounding of their products, which nothing prescribes."""
    close = [torch.cdist(rows.double(), x.double()) < 1e-2 for rows in (x, y)]
    labels = labels[close[0].int().argmax(1)]
    return labels, torch.where(close[1].any(1), labels[close[1].int().argmax(1)], ref_labels)


def _apart(rows: Tensor) -> Tensor:
    """No two of them coincide any more: a negative is as far from an anchor as from a positive that
    coincides with it, and which of the two counts is left to rounding."""
    g = torch.Generator(device="cpu").manual_seed(len(rows))
    return rows + 3e-3 * torch.randn(rows.shape, generator=g, device="cpu")


@functools.cache
def _drawn() -> tuple[Tensor, ...]:
    """Anchors, labels, references, their labels, and which references are anchors."""
    g = torch.Generator(device="cpu").manual_seed(2)
    options: dict[str, Any] = {"generator": g, "device": "cpu", "dtype": torch.float32}
    # Classes of four, the last rows are each alone.
    labels = torch.arange(ROWS, device="cpu") // 4
    labels[-6:] = 100 + torch.arange(6, device="cpu")
    centres = torch.randn(200, FEATURES, **options)
    x = 0.6 * centres[labels] + torch.randn(ROWS, FEATURES, **options)
    x /= math.sqrt(FEATURES)
    x[1] = x[0] + 1e-4 * torch.randn(FEATURES, **options)  # near, of one class
    x[9] = x[20] + 1e-4 * torch.randn(FEATURES, **options)  # near, of two
    x[13] = x[12]  # coincide, of one class
    x[33] = x[50]  # coincide, of two
    order = torch.randperm(ROWS, generator=g, device="cpu")
    x, labels = x[order], labels[order]
    # Every second class has references, and so have some without an anchor.
    ref_labels = torch.arange(REFERENCES, device="cpu") % 60 * 2
    y = (0.6 * centres[ref_labels] + torch.randn(REFERENCES, FEATURES, **options)) / 6.3
    itself = torch.full((ROWS,), -1, dtype=torch.int64, device="cpu")
    itself[10:40] = torch.arange(30, device="cpu") * 5
    y[itself[10:40]], ref_labels[itself[10:40]] = x[10:40], labels[10:40]
    y[7] = x[60] + 1e-4 * torch.randn(FEATURES, **options)
    y[8] = x[60]
    return x, labels, y, ref_labels, itself


@torch.no_grad()  # as inside an autograd function
def _run(backend: Backend, case: Case, dtype: torch.dtype, device: Any) -> dict[str, Tensor]:
    """Loss and gradients, by name."""

    def moved(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        # A parameter of an anchor has the dtype of the computation, not that of the rows.
        wanted = dtype if tensor.ndim == 2 else compute_dtype(dtype)
        if not tensor.is_floating_point():
            return tensor.to(device)
        return tensor.detach().to(device, wanted).requires_grad_()

    tensors: Any = map(moved, case.problem)
    problem, spec = PairProblem(*tensors), case.spec
    if spec.match is not None:
        spec = spec._replace(match=spec.match.to(device))
    done = backend.forward(spec, problem, False, False)
    grad = case.grad.to(device, done.loss.dtype)
    found = backend.backward(spec, problem, done.saved, grad, done.context)
    parts = {
        "the loss": done.loss,
        "the gradient at the embeddings": found.x,
        "the gradient at the references": found.y,
        "the gradient at the anchors' parameters": found.anchor_params,
    }
    return {name: one.detach().cpu() for name, one in parts.items() if one is not None}


def _coinciding(case: Case, name: str) -> Tensor | None:
    """For each row the number of its point. Which of two rows that coincide is mined is open, and
    what both of them get together is not."""
    rows = {"embeddings": case.problem.x, "references": case.problem.y}.get(name.split()[-1])
    if rows is None:
        return None
    return torch.unique(rows.float(), dim=0, return_inverse=True)[1]


def _difference(
    ours: Tensor | None, plain: Tensor, true: Tensor, groups: Tensor | None
) -> str | None:
    """How a result differs from the truth by more than is allowed; None if it does not."""
    if ours is None:
        return "is missing"
    if ours.shape != true.shape or ours.dtype != plain.dtype:
        return f"is {ours.dtype} {tuple(ours.shape)}, expected {plain.dtype} {tuple(true.shape)}"
    if not ours.isfinite().all():
        return "is not finite"
    wide = [tensor.double() for tensor in (ours, plain, true)]
    if groups is not None:
        count = int(groups.max()) + 1
        sums = [tensor.new_zeros(count, tensor.shape[1]) for tensor in wide]
        wide = [total.index_add_(0, groups, one) for total, one in zip(sums, wide, strict=True)]
    mine, eager, truth = wide
    scale = float(truth.abs().max())
    rounding = EPSILON if ours.dtype.itemsize > 2 else 4 * torch.finfo(ours.dtype).eps
    allowed = 2 * float((eager - truth).abs().max()) + rounding * scale + 1e-7
    off = float((mine - truth).abs().max())
    if off <= allowed:
        return None
    return f"is off by {off:.2g}, of {scale:.2g}, where {allowed:.2g} is allowed"


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _check_searches(backend: Backend, dtype: torch.dtype, device: Any) -> str | None:
    x, labels, y, _, _ = _drawn()
    q, r = x.to(dtype), y.to(dtype)
    d = torch.cdist(q.double(), r.double(), compute_mode="donot_use_mm_for_euclid_dist")
    here, there = q.to(device), r.to(device)
    found = [backend.nearest(here, there, NEIGHBOURS, "euclidean", False) for _ in range(2)]
    true = d.topk(NEIGHBOURS, largest=False, sorted=True).values
    near, index = (one.cpu() for one in found[0])
    # By the distances of what was named: rows that coincide may change places.
    for name, mine in (("distances", near), ("indices", d.gather(1, index.clamp(0, len(r) - 1)))):
        off = float((mine.double() - true).abs().max())
        if not off <= 1e-3:
            return f"{name} of the nearest rows are off by {off:.2g}, where 0.001 is allowed"
    classes = labels.to(device)
    hard = [backend.hard_classes(here, classes, 3, 1.3, "euclidean", False) for _ in range(2)]
    scores = _class_scores(q.double(), labels, 1.3).topk(3).values
    off = float((hard[0].scores.cpu().double() - scores).abs().max())
    if not off <= 1e-3:
        return f"scores of hard classes are off by {off:.2g}, where 0.001 is allowed"
    for one, other in (found, hard):
        if not all(map(_same_bits, one, other)):
            return "a search differed from run to run"
    return None


def _class_scores(rows: Tensor, labels: Tensor, margin: float) -> Tensor:
    """(C, C) mean violations, -1 on the diagonal."""
    d = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    classes, of = torch.unique(labels, return_inverse=True)
    members = torch.nn.functional.one_hot(of, len(classes)).double()
    sums = members.T @ (margin - d).relu() @ members
    counts = members.sum(0)
    return (sums / (counts[:, None] * counts)).fill_diagonal_(-1)
