"""Tables of final metrics: a run against raw pixels, runs against each other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from dmlap_kernels.extras import require
from dmlap_kernels.report.markup import Html, element, join, table
from dmlap_kernels.report.runs import Run

_TEST_DATA = ("data", "image_size", "data_seed")


class Interval(NamedTuple):
    """A mean and half the width of its 95 % interval."""

    mean: float
    half: float


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of two values or more and its 95 % interval by the t distribution."""
    stats = require("scipy.stats", purpose="dmlap report")
    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    return Interval(fmean(values), quantile * stdev(values) / math.sqrt(len(values)))


def groups_of_seeds(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs whose configurations differ in their seed alone, in the order given."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        fixed = {name: value for name, value in run.config.items() if name != "seed"}
        groups.setdefault(json.dumps(fixed, sort_keys=True), []).append(run)
    return list(groups.values())


def metric_names(runs: Sequence[Run]) -> list[str]:
    """Names of the test metrics of any run, in their order."""
    return list(dict.fromkeys(name for run in runs for name in run.results["test"]))


def render_metrics(run: Run) -> Html:
    """The final metrics of a run beside those of the pixels themselves."""
    test, raw = run.results["test"], run.results["raw_pixels"]
    rows = [(name, _number(test.get(name)), _number(raw.get(name))) for name in metric_names([run])]
    return table(("metric", "model", "raw pixels"), rows)


def render_comparison(runs: Sequence[Run]) -> Html:
    """All runs, a row each, and a summary of those that differ in their seed alone."""
    names = metric_names(runs)
    marks = best_runs(runs)
    settings = [_settings(run) for run in runs]
    differing = [name for name in settings[0] if len({each[name] for each in settings}) > 1]
    rows = []
    for number, run in enumerate(runs):
        cells = [
            _marked(_number(run.results["test"].get(name)), number in marks[name]) for name in names
        ]
        seconds = f"{run.results['seconds_per_step']:.4g}"
        cells.append(_marked(seconds, number in marks["seconds"]))
        what = (settings[number][name] for name in differing)
        rows.append((f"{number + 1}. {run.name}", *what, *cells))
    header = ("run", *differing, *names, "seconds per step")
    shared = (f"{name} {value}" for name, value in settings[0].items() if name not in differing)
    note = "★ marks the best of the runs that were tested on the same data."
    if said := ", ".join(shared):
        note += f" All runs: {said}."
    return join((table(header, rows), element("p", note), _render_groups(runs, names)))


def _settings(run: Run) -> dict[str, str]:
    config = run.config
    return {
        "data": config["data"].partition(":")[0],
        "loss": config["loss"],
        "method": config["method"],
        "seed": str(config["seed"]),
    }


def best_runs(runs: Sequence[Run]) -> dict[str, set[int]]:
    """For every metric and ``"seconds"`` (per step), the best runs among those of the same data."""
    sets: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        key = json.dumps([run.config.get(name) for name in _TEST_DATA])
        sets.setdefault(key, []).append(number)
    columns: dict[str, Callable[[Run], float]] = {
        name: lambda run, name=name: run.results["test"].get(name, -math.inf)  # type: ignore[misc]
        for name in metric_names(runs)
    }
    columns["seconds"] = lambda run: -run.results["seconds_per_step"]
    best: dict[str, set[int]] = {name: set() for name in columns}
    for members in sets.values():
        if len(members) < 2:
            continue
        for name, value in columns.items():
            top = max(value(runs[number]) for number in members)
            best[name] |= {number for number in members if value(runs[number]) == top}
    return best


def _render_groups(runs: Sequence[Run], names: Sequence[str]) -> Html:
    repeated = [group for group in groups_of_seeds(runs) if len(group) > 1]
    if not repeated:
        return Html()
    rows = []
    for group in repeated:
        cells = []
        for name in names:
            values = [run.results["test"].get(name) for run in group]
            cells.append("–" if None in values else _interval(values, 4))
        cells.append(_interval([run.results["seconds_per_step"] for run in group], 4))
        numbers = ", ".join(str(runs.index(run) + 1) for run in group)
        seeds = ", ".join(str(run.config["seed"]) for run in group)
        rows.append((f"runs {numbers}", seeds, *cells))
    title = element("h3", "Over seeds")
    text = element("p", "Runs that differ in their seed alone: mean ± 95 % interval (t).")
    return join((title, text, table(("runs", "seeds", *names, "seconds per step"), rows)))


def _interval(values: Sequence[float], digits: int) -> str:
    found = mean_interval(values)
    return f"{found.mean:.{digits}f} ± {found.half:.{digits}f}"


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.4f}"


def _marked(text: str, best: bool) -> Html:
    return element("strong", f"{text} ★") if best else join([text])
