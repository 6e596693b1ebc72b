"""Problems for the tables: every pair of levels of every two factors occurs in some case."""

from __future__ import annotations

import copy
import functools
import itertools
import random
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tests.losses.losses_table import LOSSES, Draw
from tests.reference import FORMULAS, pairs_and_terms
from tests.reference.pairs import make_pairs

ROWS = (1, 2, 3, 7, 33, 49, 130, 257)
FEATURES = (1, 2, 3, 8, 17, 64, 130)
PATTERNS = ("same", "different", "pairs", "ragged", "two", "wild")
HALF = (torch.float16, torch.bfloat16)

FACTORS: dict[str, tuple[Any, ...]] = {
    "rows": ROWS,
    "features": FEATURES,
    "pattern": PATTERNS,
    "refs": ("self", "fewer", "more"),
    "dtype": (torch.float32, torch.float64, torch.float16, torch.bfloat16),
    "distance": (),
    "normalize": (False, True),
    "reduction": ("mean", "mean_nonzero", "sum", "none"),
    "label_dtype": (torch.int64, torch.int32, torch.uint8),
    "layout": ("contiguous", "transposed", "strided"),
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
    """Tensors and keywords of one call; y and ref_labels are None in the self case.

    Proxies with ``ref_labels`` None have the labels 0, 1, ...
    """

    x: Tensor
    labels: Tensor
    y: Tensor | None
    ref_labels: Tensor | None
    keywords: dict[str, Any]

    def args(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.x, self.labels, self.y, self.ref_labels

    def named(self) -> Problem:
        """The same with the labels of the references written out."""
        if self.y is None or self.ref_labels is not None:
            return self
        return replace(self, ref_labels=torch.arange(len(self.y)))

    def cast(self, dtype: torch.dtype) -> Problem:
        y = None if self.y is None else self.y.to(dtype)
        return replace(self, x=self.x.to(dtype), y=y)

    def parameters(self) -> list[str]:
        """Keywords that are floating tensors, and so have a gradient."""
        tensors = {name: v for name, v in self.keywords.items() if isinstance(v, Tensor)}
        return [name for name, value in tensors.items() if value.is_floating_point()]


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
        for _ in range(5):
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


@functools.cache
def table(loss: str) -> tuple[Case, ...]:
    """The table of a loss.

    Half types keep D >= 8 and unit rows D >= 2: below, distances are equal and have no order.
    """
    row = LOSSES[loss]
    factors = FACTORS | row.levels
    factors["rows"] = tuple(rows for rows in ROWS if rows <= row.max_rows)
    factors["distance"] = row.distances or (row.default_distance,)
    if not row.distances:
        factors["normalize"] = (False,)
    if row.proxies:
        factors["refs"] = ("classes", "fewer", "more")
    cases = []
    for levels in covering(factors, seed=len(loss)):
        chosen = tuple((name, levels.pop(name)) for name in row.levels)
        case = Case(loss, options=chosen, **levels)
        if case.dtype in HALF and case.features < 8:
            case = replace(case, dtype=torch.float32)
        if case.features == 1 and unit_rows(case):
            case = replace(case, features=2)
        cases.append(case)
    sides = ("classes", "more") if row.proxies else ("self", "more")
    for dtype, features, refs in itertools.product(HALF, (8, 17, 130), sides):
        cases.append(usual(loss, rows=49, features=features, refs=refs, dtype=dtype))
    return tuple(cases)


def usual(loss: str, **changes: Any) -> Case:
    """A case with the first level of every option and the default distance of the loss."""
    row = LOSSES[loss]
    case = Case(loss, distance=row.default_distance, options=variants(loss)[0])
    if row.proxies:
        case = replace(case, refs="more")
    return replace(case, **changes)


def variants(loss: str) -> list[tuple[tuple[str, Any], ...]]:
    """Options of all first and of all last levels."""
    levels = LOSSES[loss].levels
    ends = [tuple((name, found[end]) for name, found in levels.items()) for end in (0, -1)]
    return ends[: 1 + (ends[0] != ends[1])]


def unit_rows(case: Case) -> bool:
    mined = case.loss == "triplet_distance_weighted"
    return case.normalize or case.distance == "cosine" or mined


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


def make_problem(case: Case, gap: float = 0.0) -> Problem:
    """The tensors of a case, redrawn until no pair sits on a kink within rounding error or gap.

    They are the caller's own, who may write into them.
    """
    return copy.deepcopy(_made(case, gap))


@functools.lru_cache(maxsize=128)
def _made(case: Case, gap: float) -> Problem:
    for seed in range(60):
        problem = _draw(case, seed)
        if far_from_kinks(case.loss, problem, gap):
            return problem
    raise AssertionError(f"no draw of {case.id} keeps away from kinks")


def _draw(case: Case, seed: int) -> Problem:
    problem = draw_problem(case, seed)
    problem.keywords = choose_keywords(case, problem, seed)
    return problem


def draw_problem(case: Case, seed: int = 0) -> Problem:
    """The tensors of a case, without keywords."""
    g = torch.Generator().manual_seed(1000 * seed + case.rows + 7 * case.features)
    count = {"self": 0, "fewer": max(1, case.rows // 2 - 1), "more": case.rows + 20}
    if case.refs == "classes":
        labels = make_labels(case.pattern, case.rows, g).unique(return_inverse=True)[1]
        labels = torch.cat([labels, torch.arange(int(labels.max()) + 1)])
    else:
        labels = make_labels(case.pattern, case.rows + count[case.refs], g)
        others = len(labels) - case.rows
        if case.pattern == "different" and others:
            labels = torch.cat([torch.arange(case.rows), torch.arange(others) + case.rows // 2])
    wild = case.pattern == "wild" and case.refs != "classes"
    label_dtype = torch.int64 if wild else case.label_dtype
    if label_dtype == torch.uint8 and case.refs != "classes":
        labels = labels % 256
    elif label_dtype == torch.uint8 and labels.max() > 255:
        label_dtype = torch.int32
    _, groups = torch.unique(labels, return_inverse=True)
    centres = torch.randn(int(groups.max()) + 1, case.features, generator=g, dtype=torch.float64)
    noise = torch.randn(len(labels), case.features, generator=g, dtype=torch.float64)
    points = (_scale(case) * (0.7 * centres[groups] + noise)).to(case.dtype)
    labels = labels.to(label_dtype)
    x = lay_out(points[: case.rows], case.layout)
    y = ref_labels = None
    if len(labels) > case.rows:
        y, ref_labels = lay_out(points[case.rows :], case.layout), labels[case.rows :]
    return Problem(x, labels[: case.rows], y, None if case.refs == "classes" else ref_labels, {})


def _scale(case: Case) -> float:
    """Brings the standard deviation of distances of un-normalised points near `Row.spread`.

    Coordinates have a variance of about 1.5.
    """
    wanted = LOSSES[case.loss].spread
    if wanted is None or unit_rows(case):
        return 1.0
    if case.distance == "euclidean":
        return wanted / 1.5**0.5
    root = case.features**0.5
    return (wanted / (1.5 * root if case.distance == "dot" else 4.3 * root)) ** 0.5


def choose_keywords(case: Case, problem: Problem, seed: int = 0) -> dict[str, Any]:
    """Every keyword of the call: margins such that some hinges are active and others are not."""
    row = LOSSES[case.loss]
    shared: dict[str, Any] = {"reduction": case.reduction}
    if row.distances:
        shared |= {"distance": case.distance, "normalize": case.normalize}
    geometry = {"distance": case.distance, "normalize": unit_rows(case)}
    double = problem.cast(torch.float64).named()
    anchors = (*double.args()[2:], *double.args()[:2])
    pairs = make_pairs(*(anchors if case.loss == "proxy_anchor" else double.args()), **geometry)
    draw = Draw(
        pairs.d,
        pairs.positives,
        pairs.negatives,
        pairs.labels,
        case.distance,
        case.reduction,
        seed=1 + seed + 31 * case.rows,
        terms=functools.partial(FORMULAS[case.loss], pairs),
    )
    chosen = row.choose(draw, **dict(case.options))
    dtype = torch.float64 if case.dtype == torch.float64 else torch.float32
    return shared | {
        name: value.to(dtype) if isinstance(value, Tensor) else value
        for name, value in chosen.items()
    }


def keywords_of_some(case: Case, problem: Problem) -> dict[str, Any]:
    """`choose_keywords` for 40 rows, the last label among them: formulas may be cubic."""
    rows = torch.cat([problem.labels.argmax()[None], torch.arange(len(problem.x))[:39]])
    return choose_keywords(case, replace(problem, x=problem.x[rows], labels=problem.labels[rows]))


def far_from_kinks(loss: str, problem: Problem, gap: float = 0.0) -> bool:
    """Whether rounding of the compute dtype cannot change which terms and pairs are active.

    Where positive terms are counted, none may be so small that rounding could lose it.
    """
    row = LOSSES[loss]
    dtype = torch.float64 if problem.x.dtype == torch.float64 else torch.float32
    keywords = {key: value for key, value in problem.keywords.items() if key != "reduction"}
    arguments = problem.cast(torch.float64).named().args()
    pairs, terms = pairs_and_terms(loss, *arguments, **(row.geometry(keywords) | keywords))
    largest = max([1.0, *([pairs.d.abs().max().item()] if pairs.d.numel() else [])])
    gap = max(gap, 4 * torch.finfo(dtype).eps * largest)
    if any(bool((kink.abs() <= gap).any()) for kink in terms.kinks):
        return False
    if problem.keywords["reduction"] != "mean_nonzero" or not terms.soft:
        return True
    values = torch.cat([group.values[group.counted] for group in terms.groups])
    lost = gap * max(1, row.slope(keywords, largest)[0])
    return not bool(((values > 0) & (values <= lost)).any())
