"""What came out, as a page of Markdown."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.evidence.runs import read
from benchmarks.evidence.table import markdown_table, shown, values
from benchmarks.photographs.choice import chosen, equal_effort
from benchmarks.photographs.settings import KEPT_TRIALS, METHODS, TRIALS, own, parts
from dmlap_kernels.report.comparison import mean_interval
from dmlap_kernels.trainer.config import PROXIMAL_FORMS

Entries = list[dict[str, Any]]
METRICS = ("recall@1", "map@r")


def write_table(folder: Path) -> Path:
    """Write ``README.md`` into ``folder``, from the results that it holds."""
    search, folds = (read(folder / f"{name}.jsonl") for name in ("search", "folds"))
    final, curve = (read(folder / f"{name}.jsonl") for name in ("final", "lambda"))
    page = [_introduction(search)]
    notes = folder / "notes.md"
    if notes.exists():
        page.append(notes.read_text())
    if final:
        page += [_final(final), _gains(final)]
    if curve := _on_shared_folds(curve):
        page.append(_curve(curve))
    page.append(_chosen(search, folds))
    path = folder / "README.md"
    path.write_text("\n".join(page))
    return path


def _introduction(search: Entries) -> str:
    amount = len({parts(entry)[3] for entry in equal_effort(search, TRIALS)})
    return f"""# Does DMLAP help? Photographs

Made by `python -m benchmarks.photographs all --activations FILE --out DIR`, after `prepare`;
without `--out` it goes on from the runs in this folder.

EfficientNet-Lite0 with weights of ImageNet on photographs of 128 pixels; its last two stages, the
last convolution and a linear head of 128 numbers are trained, Adam, one-cycle.

- `plain`: batches of C x M with the in-batch loss. `plain+control`: weight decay and an average of
  the weights besides, AdamW. `dmlap`: alternating projections, classes at random. `dmlap+hard`:
  part of the classes are hard for the others.
- The search drew {amount} settings at random for every loss, batch and method and judged them on
  a quarter of the training classes that was held out; the best {KEPT_TRIALS} were made again with
  each other quarter held out, and the best mean of MAP@R over the four was chosen.
- The final runs train on all training classes and are judged on the test classes once, after the
  last step. Nothing was chosen there.
"""


def _place(entry: dict[str, Any]) -> tuple[str, int]:
    return entry["loss"], METHODS.index(entry["method"])


def _groups(entries: Entries) -> dict[tuple[str, str], Entries]:
    groups: dict[tuple[str, str], Entries] = {}
    for entry in sorted(entries, key=_place):
        groups.setdefault((entry["loss"], entry["method"]), []).append(entry)
    return groups


def _final(final: Entries) -> str:
    rows = []
    for (loss, method), entries in _groups(final).items():
        cells = (shown(mean_interval(values(entries, metric))) for metric in METRICS)
        rows.append((loss, method, *cells, str(len(entries))))
    header = ("loss and batch", "method", "Recall@1", "MAP@R", "seeds")
    return "## Test classes\n\nMean ± 95 % interval (t) over seeds.\n\n" + markdown_table(
        header, rows
    )


def _gains(final: Entries) -> str:
    groups = _groups(final)
    rows = []
    for (loss, method), entries in groups.items():
        if not method.startswith("dmlap"):
            continue
        cells = [
            _difference(entries, groups.get((loss, other), []), metric)
            for other in METHODS[:2]
            for metric in METRICS
        ]
        rows.append((loss, method, *cells))
    header = ("loss and batch", "method", *(f"{m}, {o}" for o in METHODS[:2] for m in METRICS))
    return (
        "## Against plain batches, and against those with the control\n\n"
        "Difference to the runs with the same seed: mean ± 95 % interval.\n\n"
        + markdown_table(header, rows)
    )


def _difference(entries: Entries, others: Entries, metric: str) -> str:
    theirs = {entry["config"]["seed"]: entry[metric] for entry in others}
    found = [
        entry[metric] - theirs[entry["config"]["seed"]]
        for entry in entries
        if entry["config"]["seed"] in theirs
    ]
    return shown(mean_interval(found), "+") if len(found) > 1 else "–"


def _curve(curve: Entries) -> str:
    weights = sorted({entry["config"]["proximal_weight"] for entry in curve})
    rows = []
    for (loss, _), entries in _groups(curve).items():
        for form, metric in itertools.product(PROXIMAL_FORMS, METRICS):
            cells = []
            for weight in weights:
                made = [e for e in entries if _tied(e, form, weight)]
                cells.append(f"{_mean(made, metric):.4f}" if made else "–")
            rows.append((loss, form, metric, *cells))
    folds = {entry["config"]["validation_fold"] for entry in curve}
    header = ("loss and batch", "form", "metric", *(f"{w:g}" for w in weights))
    return (
        f"## Lambda\n\nWhat was chosen for `dmlap` with other lambdas, in either form: means of "
        f"{len(folds)} folds of the training classes. Lambda 0 has no form.\n\n"
        + markdown_table(header, rows)
    )


def _on_shared_folds(curve: Entries) -> Entries:
    """Without the folds that not every loss, form and lambda has."""
    made: dict[int, set[tuple[str, str, float]]] = {}
    for entry in curve:
        config = entry["config"]
        which = entry["loss"], config["proximal_form"], config["proximal_weight"]
        made.setdefault(config["validation_fold"], set()).add(which)
    most = set().union(*made.values())
    return [entry for entry in curve if made[entry["config"]["validation_fold"]] == most]


def _tied(entry: dict[str, Any], form: str, weight: float) -> bool:
    config = entry["config"]
    same = config["proximal_form"] == form or not weight
    return config["proximal_weight"] == weight and same


def _mean(entries: Iterable[dict[str, Any]], metric: str) -> float:
    found = [entry[metric] for entry in entries]
    return sum(found) / len(found)


def _chosen(search: Entries, folds: Entries) -> str:
    rows = []
    for entry in sorted(chosen(search, folds).values(), key=_place):
        settings = ", ".join(f"{n} {v}" for n, v in own(entry["config"]).items() if v != {})
        cells = (f"{entry[metric]:.4f}" for metric in METRICS)
        rows.append((entry["loss"], entry["method"], *cells, settings))
    header = ("loss and batch", "method", "Recall@1", "MAP@R", "settings")
    return "## What was chosen\n\nMeans of the four folds.\n\n" + markdown_table(header, rows)
