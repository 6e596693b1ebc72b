"""What a loss asks of sweeps over panels, found by running it once with symbols.

A plan is a list of sweeps, each with the bounds or log-sums of an anchor that it reads; formulas of
an anchor, for what stands between sweeps and after them; and the weights of pairs in backward.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from dmlap_kernels.backends.device.families import FAMILIES
from dmlap_kernels.backends.device.sweeps import (
    Exponent,
    Extremes,
    HingeSums,
    LogSums,
    PairGradient,
    PairTerms,
)
from dmlap_kernels.backends.device.terms import Call, Family
from dmlap_kernels.backends.triton.hard_of_panels import HARD, HardOfPanels
from dmlap_kernels.backends.triton.hardness_of_panels import (
    NTXentHardnessOfPanels,
    SupConHardnessOfPanels,
)
from dmlap_kernels.backends.triton.tracing import (
    FLOAT,
    WHOLE,
    Param,
    Symbol,
    in_kernels,
    in_python,
    leaves_of,
    numbers_of,
)
from dmlap_kernels.problem import PairSpec

# Numbers that formulas may read, at most.
OPERANDS = 6
# Losses whose sweeps keep some numbers of each anchor, whatever its pairs are.
_FAMILIES: dict[str, Family] = {
    name: FAMILIES[name]
    for name in (
        "contrastive",
        "margin",
        "siglip",
        "multi_similarity",
        "lifted_structure",
        "nt_xent",
        "n_pairs",
        "sup_con",
        "circle",
        "proxy_nca",
        "cosface",
        "arcface",
        "proxy_anchor",
    )
} | {
    **dict.fromkeys(HARD, HardOfPanels()),
    "nt_xent_hardness": NTXentHardnessOfPanels(),
    "sup_con_hardness": SupConHardnessOfPanels(),
}
_NOTHING = Exponent(0.0)


class Sweep:
    """One sweep: what it keeps, by the name of a policy in `panel_policies`, and what it reads;
    and by its name, what its formula stores that is made of what was found."""

    def __init__(
        self, policy: str, own: tuple[Symbol, ...], exponents: tuple[Exponent, Exponent]
    ) -> None:
        self.policy, self.own, self.exponents = policy, own, exponents
        self.held: dict[str, Symbol] = {}


class _Recorder:
    """The `Sweeps` of a traced call."""

    def __init__(self) -> None:
        self.sweeps: list[Sweep] = []
        self.pair_gradient: PairGradient | None = None

    def _record(
        self,
        policy: str,
        dtypes: str,
        own: tuple[Any, ...] = (),
        exponents: tuple[Exponent, Exponent] = (_NOTHING, _NOTHING),
    ) -> list[Any]:
        """Rows named by the sweep and their place in what it finds, floats (f) or whole (i)."""
        number = len(self.sweeps)
        self.sweeps.append(Sweep(policy, own, exponents))
        kinds = {"f": FLOAT, "i": WHOLE}
        return [Symbol.row(f"{number}.{k}", kinds[kind]) for k, kind in enumerate(dtypes)]

    def extremes(self, sides: Any, sums: bool) -> Any:
        p, p_column, n, n_column = self._record("extremes", "fifi")
        return Extremes(p, p_column, n, n_column, None, None)

    def hinge_sums(
        self, sides: Any, positive_bound: Any, negative_bound: Any, squared: bool
    ) -> Any:
        policy = "squared_hinge" if squared else "hinge"
        return HingeSums(*self._record(policy, "ffffii", (positive_bound, negative_bound)))

    def logistic_sums(self, sides: Any, positive: Exponent, negative: Exponent) -> Any:
        return self._record("logistic", "f", (), (positive, negative))[0]

    def log_sums(
        self,
        sides: Any,
        positive: Exponent,
        negative: Exponent,
        positive_above: Any = None,
        negative_below: Any = None,
        read: tuple[str, ...] = LogSums._fields,
    ) -> Any:
        exponents = positive, negative
        if positive_above is None:
            return LogSums(*self._record("log_sums", "fff", (), exponents))
        bounds = positive_above, negative_below
        return LogSums(*self._record("mined_log_sums", "fff", bounds, exponents))

    def hardness_sums(self, exponents: tuple[Exponent, Exponent], share: float) -> Any:
        """`LogSums`, and the log-sum of weights, of ``share`` times the exponents of negatives."""
        return self._record("hardness_sums", "ffff", (share,), exponents)

    def pair_terms(self, sides: Any, kind: str, exponent: Exponent, neg_lse: Any) -> Any:
        total, nonzero, by_neg_lse = self._record(kind, "fif", (neg_lse,), (exponent, _NOTHING))
        return PairTerms(total, nonzero, by_neg_lse)

    # Sweeps that there are for panels alone.

    def nearest_pairs(self, sides: Any) -> Any:
        p, p_column, n, n_column = self._record("nearest", "fifi")
        return Extremes(p, p_column, n, n_column, None, None)

    def nearest_positive(self, sides: Any) -> Any:
        """Its distance and its column."""
        return self._record("nearest_positive", "fi")

    def nearest_negative_beyond(self, sides: Any, bound: Any) -> Any:
        """Its distance, more than that of the bound, and its column."""
        return self._record("nearest_beyond", "fi", (bound,))

    def of_mined(self, positive: Any, negative: Any) -> Any:
        """Distances of a negative from its anchor, and from the positive."""
        return self._record("of_mined", "ff", (positive, negative))

    def hold(self, value: Any) -> Any:
        """A row that is stored as it is: what comes after the last sweep need not make it again,
        as weights do for each tile of pairs."""
        held = self.sweeps[-1].held
        name = f"{len(self.sweeps) - 1}.held{len(held)}"
        held[name] = value
        return Symbol.row(name)

    def gradient(self, sides: Any, pair_gradient: PairGradient) -> Any:
        self.pair_gradient = pair_gradient
        return None, None


class _Rows(list):
    """Vectors that a loss takes for a table."""

    def unbind(self) -> list[Symbol]:
        return list(self)


@dataclass
class Plan:
    """What kernels do for a loss, whatever its numbers and sizes are.

    The table of an anchor holds, row by row: for each sweep what formulas need of it (``stored``),
    and of each group of terms their sum, how many there are and how many are positive.

    Attributes:
        sweeps: the sweeps, in their order.
        stored: for each sweep the names of the rows that its formula adds to the table.
        own: for each sweep the text of the formula of what it reads of an anchor, None if nothing.
        formulas: for each sweep the text of the formula of what is stored, and after that, of the
            last one, the groups.
        groups: how many groups of terms there are.
        gradient: the text of the formula of the weights' coefficients, and of the gradient at
            ``anchor_params`` where the loss has them.
        kind: of the `PairGradient`.
        coefficients: how many coefficients an anchor has.
        anchor_params: whether there is a gradient at them.
        clipped: for each sweep, and for the gradient, whether exponents have a side.
        statistics: the text of the formula of an anchor's `terms.Statistics`, which reads the last
            sweep and the whole table; "" where kernels of the loss find them, and None where no
            panels do.
        numbers: a function of the params: the numbers that formulas read, and for each sweep and
            the gradient the eight of its exponents.
    """

    sweeps: list[Sweep]
    stored: list[list[str]]
    own: list[str | None]
    formulas: list[str]
    groups: int
    gradient: str
    kind: str
    coefficients: int
    anchor_params: bool
    clipped: list[bool]
    numbers: Any
    statistics: str | None = None

    @staticmethod
    def written(stored: list[str], statistics: str | None = None) -> Plan:
        """Of one sweep, with a group of terms, whose formulas are in kernels."""
        sweep = Sweep("", (), (_NOTHING, _NOTHING))
        clipped = [False, False]
        params = lambda p: (p,)  # noqa: E731
        gradient = "", "", 0, False
        return Plan([sweep], [stored], [None], [""], 1, *gradient, clipped, params, statistics)

    def outputs(self, sweep: int) -> int:
        """Of its formula."""
        groups = 3 * self.groups if sweep == len(self.sweeps) - 1 else 0
        return len(self.stored[sweep]) + groups

    @property
    def prefix(self) -> int:
        """Rows of the table before the groups."""
        return sum(map(len, self.stored))

    @property
    def rows(self) -> int:
        return self.prefix + 3 * self.groups


def of_table(prefix: int) -> str:
    """The text of the statistics of terms that each are a constraint, and their own violation: of
    the group in the table."""
    rows = ", ".join(f"table[{prefix + k}]" for k in (1, 2, 0))
    return f"def formula({_NAMES}):\n    return ({rows})\n"


# What formulas are given.
_NAMES = "found, counts, weights, table, anchor_param, numbers"
# Losses whose steps are written down, each in a file of its own: here what other code asks of them.
_SOFT_TRIPLE = Plan.written(["other", "own"], of_table(2))
_OTHERS = {name: Plan.written([], of_table(0)) for name in ("angular", "lifted_structure_original")}


@functools.cache
def _of_triplets(loss: str, smooth: bool, swap: bool) -> Plan:
    """One for each set of kernels, as steps of a plan share what was compiled."""
    return Plan.written([], "")


_flags: dict[str, tuple[int, ...]] = {}
_plans: dict[tuple[Any, ...], Plan] = {}


def plan_of(spec: PairSpec, self_case: bool) -> Plan | None:
    """The plan of a loss, made once for all values of its numbers that are no flags; None where it
    is not made of one sweep after the other."""
    if spec.loss == "soft_triple" and not self_case:
        return _SOFT_TRIPLE if spec.distance in ("cosine", "dot") else None
    if spec.loss in _OTHERS:
        return _OTHERS[spec.loss]
    if spec.loss in ("triplet_all", "triplet_semihard", "triplet_distance_weighted"):
        _, smooth, swap = spec.params[:3]
        return _of_triplets(spec.loss, bool(smooth), bool(swap))
    if spec.loss not in _FAMILIES:
        return None
    if spec.loss == "n_pairs":
        self_case = False  # between the first and the second rows of classes
    known = _flags.get(spec.loss)
    if known is not None:
        key = (spec.loss, self_case, *[bool(spec.params[i]) for i in known])
        if key in _plans:
            return _plans[key]
    flags: set[int] = set(known or ())
    plan = _traced(spec, self_case, flags)
    _flags[spec.loss] = tuple(sorted(flags))
    if plan is not None:
        key = (spec.loss, self_case, *[bool(spec.params[i]) for i in _flags[spec.loss]])
        _plans[key] = plan
    return plan


def _traced(spec: PairSpec, self_case: bool, flags: set[int]) -> Plan | None:
    family = _FAMILIES[spec.loss]
    params = [Param(i, value, flags) for i, value in enumerate(spec.params)]
    like = Symbol.row("like")
    sides: Any = SimpleNamespace(x_norms=like, self_case=self_case)
    recorder: Any = _Recorder()
    positives, negatives = Symbol.row("positives", WHOLE), Symbol.row("negatives", WHOLE)
    anchor_params: Any = Symbol.row("anchor_params")
    call = Call(
        spec._replace(params=tuple(params)),
        recorder,
        sides,
        anchor_params,
        _positives=positives,  # type: ignore[arg-type]
        _negatives=negatives,  # type: ignore[arg-type]
    )
    with torch.no_grad():
        found = family.forward(call)
        kept: Any = found.kept
        kept = kept if isinstance(kept, tuple) else () if kept is None else (kept,)
        weights: Any = _Rows(Symbol.row(f"weight.{g}") for g in range(len(found.groups)))
        at_params: Any = family.backward(call, kept, weights).anchor_params
        statistics: Any = list(found.statistics())
    groups: Any = [(g.total, g.number, g.positive) for g in found.groups]
    return _planned(recorder, groups, at_params, statistics)


def _planned(
    recorder: _Recorder, groups: Any, at_params: Any, statistics: list[Symbol]
) -> Plan | None:
    sweeps, pair_gradient = recorder.sweeps, recorder.pair_gradient
    if not sweeps or pair_gradient is None or pair_gradient.columns is not None:
        return None
    coefficients: Any = pair_gradient.anchors
    last = [one for group in groups for one in group]
    backward = [*coefficients, *([] if at_params is None else [at_params])]
    read = [list(sweep.own) for sweep in sweeps]
    needed = [[*sweep.own, *sweep.held.values()] for sweep in sweeps]
    every = [*(one for some in needed for one in some), *last, *backward, *statistics]
    numbers = numbers_of(every)
    if len(numbers) > OPERANDS:
        return None
    texts = [in_python(number) for number in numbers]
    stored, own, formulas = [], [], []
    table: list[str] = []
    for k, reads in enumerate(read):
        own.append(_function(reads, _given(table, None), texts) if reads else None)
        results = last if k == len(read) - 1 else []
        later = leaves_of([*backward, *last, *(one for some in needed[k + 1 :] for one in some)])
        if k == len(read) - 1:
            later = leaves_of(backward)
        held = sweeps[k].held
        new = [name for name in (*_found_by(k), *held) if name in later and name not in table]
        rows = [held.get(name, _row_of(name)) for name in new]
        formulas.append(_function([*rows, *results], _given(table, k), texts))
        stored.append(new)
        table += new
    given = _given(table, len(sweeps) - 1) | {"positives": "counts[0]", "negatives": "counts[1]"}
    told = None
    if leaves_of(statistics) <= set(given):
        told = _function(statistics, given, texts)
    used = [(s.exponents, s.policy) for s in sweeps]
    used.append(((pair_gradient.positive, pair_gradient.negative), pair_gradient.kind))
    exponents = [_exponents_text(pair) for pair, _ in used]
    operands = ", ".join([*texts, *["0.0"] * (OPERANDS - len(texts))])
    source = f"lambda p: (({operands}), {', '.join(exponents)})"
    return Plan(
        sweeps,
        stored,
        own,
        formulas,
        len(groups),
        _function(backward, _given(table, None), texts),
        pair_gradient.kind,
        len(coefficients),
        at_params is not None,
        [bool(p.side or n.side) for (p, n), _ in used],
        eval(source, {"float": float}),
        told,
    )


def _found_by(sweep: int) -> list[str]:
    """Names of the rows that the formula of a sweep has at hand."""
    counts = ["positives", "negatives"] if sweep == 0 else []
    return [*(f"{sweep}.{k}" for k in range(6)), *counts]


def _row_of(name: str) -> Symbol:
    return Symbol.row(name, FLOAT if "." in name else WHOLE)


def _given(table: list[str], sweep: int | None) -> dict[str, str]:
    """Where a formula finds each row: in the table, in what the sweep found, among counts, or
    (in backward) among the weights of the groups."""
    given = {name: f"table[{k}]" for k, name in enumerate(table)}
    for name in ("positives", "negatives"):
        if name in given:
            given[name] = f"({given[name]}).to(tl.int64)"
    if sweep is None:
        given |= {f"weight.{g}": f"weights[{g}]" for g in range(2)}
    else:
        given |= {f"{sweep}.{k}": f"found[{k}]" for k in range(6)}
    if sweep == 0:
        given |= {"positives": "counts[0]", "negatives": "counts[1]"}
    given["anchor_params"] = "anchor_param"
    return given


def _function(outputs: list[Symbol], given: dict[str, str], numbers: list[str]) -> str:
    """The text of a formula, a tuple of outputs."""
    lines, results = in_kernels(outputs, given, numbers)
    body = [*lines, f"return ({''.join(f'{one}, ' for one in results).rstrip()})"]
    return "\n".join([f"def formula({_NAMES}):", *(f"    {line}" for line in body), ""])


def _exponents_text(exponents: tuple[Exponent, Exponent]) -> str:
    texts = []
    for exponent in exponents:
        numbers: tuple[Any, ...] = exponent
        for number in numbers:
            text = in_python(number) if isinstance(number, Symbol) else repr(number)
            texts.append(f"float({text})")
    return f"({', '.join(texts)})"
