"""Problems for the tables: every pair of levels of every two factors occurs in some case."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tests.reference import pair_distances, pair_masks

ROWS = (1, 2, 3, 7, 33, 48, 49, 130, 257)
FEATURES = (1, 2, 3, 8, 17, 64, 130)
PATTERNS = ("same", "different", "pairs", "ragged", "two", "wild")
HALF = (torch.float16, torch.bfloat16)

FACTORS: dict[str, tuple[Any, ...]] = {
    "rows": ROWS,
    "features": FEATURES,
    "pattern": PATTERNS,
    "refs": ("self", "fewer", "more"),
    "dtype": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
    "distance": ("euclidean", "sqeuclidean", "cosine"),
    "normalize": (False, True),
    "reduction": ("mean", "mean_nonzero", "sum", "none"),
    "label_dtype": (torch.int64, torch.int32, torch.uint8),
    "layout": ("contiguous", "transposed", "strided"),
}
OPTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "triplet": {"smooth": (False, True), "swap": (False, True)},
    "contrastive": {"squared": (False, True), "active": ("all", "half", "few")},
}


@dataclass(frozen=True)
class Case:
    """One row of a table."""

    loss: str
    rows: int = 33
    features: int = 8
    pattern: str = "ragged"
    refs: str = "self"
    dtype: torch.dtype = torch.float32
    distance: str = "euclidean"
    normalize: bool = False
    reduction: str = "mean"
    label_dtype: torch.dtype = torch.int64
    layout: str = "contiguous"
    options: tuple[tuple[str, Any], ...] = field(default=())

    @property
    def id(self) -> str:
        parts = [self.loss, f"{self.rows}x{self.features}", self.pattern, self.refs]
        parts += [str(self.dtype)[6:], self.distance, "unit" if self.normalize else ""]
        parts += [self.reduction, str(self.label_dtype)[6:], self.layout]
        parts += [f"{key}={value}" for key, value in self.options]
        return "-".join(part for part in parts if part)


@dataclass
class Problem:
    """Tensors and keywords of one call; y and ref_labels are None in the self case."""

    x: Tensor
    labels: Tensor
    y: Tensor | None
    ref_labels: Tensor | None
    keywords: dict[str, Any]

    def args(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.x, self.labels, self.y, self.ref_labels


def covering(factors: dict[str, tuple[Any, ...]], seed: int) -> list[dict[str, Any]]:
    """Greedy rows in which every pair of levels of two factors appears together."""
    rng = random.Random(seed)
    names = list(factors)
    missing = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(names, 2)
        for i in range(len(factors[a]))
        for j in range(len(factors[b]))
    }
    rows = []
    while missing:
        best: dict[str, int] = {}
        best_gain = -1
        for _ in range(20):
            row: dict[str, int] = {}
            (a, i), (b, j) = rng.choice(sorted(missing))
            row[a], row[b] = i, j
            for name in rng.sample(names, len(names)):
                if name not in row:
                    gains = [
                        sum(_key(names, name, level, o, row[o]) in missing for o in row)
                        for level in range(len(factors[name]))
                    ]
                    top = max(gains)
                    row[name] = rng.choice([i for i, gain in enumerate(gains) if gain == top])
            gain = len(missing & _pairs(names, row))
            if gain > best_gain:
                best, best_gain = row, gain
        missing -= _pairs(names, best)
        rows.append({name: factors[name][best[name]] for name in names})
    return rows


def _key(names: list[str], a: str, i: int, b: str, j: int) -> tuple[Any, ...]:
    first, second = ((a, i), (b, j)), ((b, j), (a, i))
    return first if names.index(a) < names.index(b) else second


def _pairs(names: list[str], row: dict[str, int]) -> set[tuple[Any, ...]]:
    return {_key(names, a, row[a], b, row[b]) for a, b in itertools.combinations(names, 2)}


def table(loss: str) -> list[Case]:
    """The table of a loss.

    Half types keep D >= 8 and unit rows D >= 2: below, distances are equal and have no order.
    """
    options = OPTIONS[loss]
    cases = []
    for row in covering(FACTORS | options, seed=len(loss)):
        chosen = tuple((name, row.pop(name)) for name in options)
        case = Case(loss, options=chosen, **row)
        if case.dtype in HALF and case.features < 8:
            case = replace(case, dtype=torch.float32)
        if case.features == 1 and (case.normalize or case.distance == "cosine"):
            case = replace(case, features=2)
        cases.append(case)
    for dtype, features, refs in itertools.product(HALF, (8, 17, 130), ("self", "more")):
        defaults = tuple((name, levels[0]) for name, levels in options.items())
        cases.append(Case(loss, 49, features, "ragged", refs, dtype, options=defaults))
    return cases


def make_labels(pattern: str, rows: int, generator: torch.Generator) -> Tensor:
    """int64 labels; all but "wild" fit into a byte (classes repeat beyond 256)."""
    index = torch.arange(rows)
    if pattern == "same":
        return torch.full((rows,), 7)
    if pattern == "different":
        return torch.randperm(rows, generator=generator)
    if pattern == "pairs":
        return (index // 2)[torch.randperm(rows, generator=generator)]
    if pattern == "two":
        return torch.randint(0, 2, (rows,), generator=generator)
    sizes = torch.tensor([1, 2, 3, 5, 8, 13])
    ragged = torch.repeat_interleave(torch.arange(6), sizes).repeat(1 + rows // 32)[:rows]
    ragged = (ragged + 6 * (index // 32))[torch.randperm(rows, generator=generator)]
    if pattern == "ragged":
        return ragged
    extremes = torch.tensor([-(2**63), 2**63 - 1, -1, 0, 2**40, 2**32])
    return torch.where(ragged < 6, extremes[ragged % 6], -ragged * 2**33)


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "strided":
        wide = torch.full((2 * x.shape[0], 3 * x.shape[1]), torch.nan, dtype=x.dtype)
        view = wide[::2, 1::3]
        view.copy_(x)
        return view
    return x


def make_problem(case: Case) -> Problem:
    """The tensors of a case, redrawn until no pair sits on a kink within rounding error."""
    for seed in range(60):
        problem = _draw(case, seed)
        if far_from_kinks(case, problem):
            return problem
    raise AssertionError(f"no draw of {case.id} keeps away from kinks")


def _draw(case: Case, seed: int) -> Problem:
    g = torch.Generator().manual_seed(1000 * seed + case.rows + 7 * case.features)
    count = {"self": 0, "fewer": max(1, case.rows // 2 - 1), "more": case.rows + 20}[case.refs]
    labels = make_labels(case.pattern, case.rows + count, g)
    if case.pattern == "different" and count:
        labels = torch.cat([torch.arange(case.rows), torch.arange(count) + case.rows // 2])
    label_dtype = torch.int64 if case.pattern == "wild" else case.label_dtype
    if label_dtype == torch.uint8:
        labels = labels % 256
    _, groups = torch.unique(labels, return_inverse=True)
    centres = torch.randn(int(groups.max()) + 1, case.features, generator=g, dtype=torch.float64)
    noise = torch.randn(len(labels), case.features, generator=g, dtype=torch.float64)
    points = (0.7 * centres[groups] + noise).to(case.dtype)
    labels = labels.to(label_dtype)
    x = lay_out(points[: case.rows], case.layout)
    y = lay_out(points[case.rows :], case.layout) if count else None
    ref_labels = labels[case.rows :] if count else None
    problem = Problem(x, labels[: case.rows], y, ref_labels, {})
    problem.keywords = _keywords(case, problem)
    return problem


def _distances(case: Case, problem: Problem) -> Tensor:
    x = problem.x.double()
    y = x if problem.y is None else problem.y.double()
    return pair_distances(x, y, distance=case.distance, normalize=case.normalize)


def between(values: Tensor, share: float) -> float:
    """A threshold that about this share of the values lies below, and that equals none of them."""
    ordered = values.unique()
    rank = min(int(share * len(ordered)), len(ordered) - 1)
    upper = ordered[rank].item()
    lower = ordered[rank - 1].item() if rank else upper - 0.1 * abs(upper) - 0.01
    return (lower + upper) / 2


def _keywords(case: Case, problem: Problem) -> dict[str, Any]:
    """Margins chosen so that some hinges are active and others are not."""
    options = dict(case.options)
    shared = {
        "distance": case.distance,
        "normalize": case.normalize,
        "reduction": case.reduction,
    }
    d = _distances(case, problem)
    positives, negatives = pair_masks(problem.labels, problem.ref_labels)
    if case.loss == "triplet":
        far = d.masked_fill(~positives, -torch.inf).amax(1)
        near = d.masked_fill(~negatives, torch.inf).amin(1)
        usual = (near - far)[torch.isfinite(near - far)]
        margin = max(0.05, between(usual, 0.5)) if len(usual) else 0.3
        return shared | {"margin": margin} | options
    share = {"all": 1.0, "half": 0.5, "few": 0.03}[options.pop("active")]
    pull, push = d[positives], d[negatives]
    pos_margin = max(0.0, between(pull, 1 - share)) if len(pull) else 0.1
    neg_margin = between(push, share) if len(push) else 1.0
    if share == 1.0:
        pos_margin, neg_margin = 0.0, 1.1 * neg_margin + 0.1
    return shared | {"pos_margin": pos_margin, "neg_margin": neg_margin} | options


def far_from_kinks(case: Case, problem: Problem) -> bool:
    """Whether rounding of the compute dtype cannot change which terms and pairs are active."""
    d = _distances(case, problem)
    eps = torch.finfo(torch.float64 if case.dtype == torch.float64 else torch.float32).eps
    gap = 4 * eps * max(1.0, d.max().item())
    positives, negatives = pair_masks(problem.labels, problem.ref_labels)
    keywords = problem.keywords
    if case.loss == "contrastive":
        hinges = [d[negatives] - keywords["neg_margin"]]
        if keywords["pos_margin"] > 0:
            hinges.append(d[positives] - keywords["pos_margin"])
        elif case.distance == "euclidean":
            hinges.append(d[positives])
        return bool((torch.cat(hinges).abs() > gap).all())
    if d.shape[1] < 2:
        return True
    valid = positives.any(1) & negatives.any(1)
    far, p = d.masked_fill(~positives, -torch.inf)[valid].topk(2, dim=1)
    near, n = d.masked_fill(~negatives, torch.inf)[valid].topk(2, dim=1, largest=False)
    gaps = [far[:, 0] - far[:, 1], near[:, 0] - near[:, 1]]
    gaps.append(far[:, 0] - near[:, 0] + keywords["margin"])
    if keywords["swap"]:
        refs = problem.x if problem.y is None else problem.y
        options = {"distance": case.distance, "normalize": case.normalize}
        swapped = pair_distances(refs.double(), refs.double(), **options)[p[:, 0], n[:, 0]]
        gaps.append(near[:, 0] - swapped)
        gaps.append(far[:, 0] - swapped + keywords["margin"])
    return bool((torch.cat(gaps).abs() > gap).all())
