"""What came out, as a page of Markdown and a picture."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence.runs import best_of, read
from benchmarks.evidence.settings import COMMON, METHODS, SEARCH_SEED
from dmlap_kernels.report.comparison import Interval, mean_interval

Entries = list[dict[str, Any]]
METRICS = ("recall@1", "map@r")
_SEEDS = """Difference to plain batches with the same seed, so the same initial weights: mean ± 95 %
interval. An interval that holds 0 shows no difference."""
_CLOCK = """The same, with as many steps of DMLAP as take the time of the plain run's by the ratios
above (`python -m benchmarks.evidence clock`)."""
_SAME = {*COMMON, "loss", "method", "classes", "seed", "validation"}


def write_table(folder: Path) -> Path:
    """Write ``README.md`` and pictures into ``folder``, from the results that it holds."""
    search = read(folder / "search.jsonl")
    final, sweep = read(folder / "final.jsonl"), read(folder / "sweep.jsonl")
    cost = folder / "cost.json"
    parts = [_introduction(search, final)]
    if final:
        parts += [_final(final), _gains(final, "## Against plain batches", _SEEDS)]
    if cost.exists():
        parts.append(_cost(json.loads(cost.read_text())))
    if clock := read(folder / "clock.jsonl"):
        plain = [entry for entry in final if entry["method"] == "plain"]
        parts.append(_gains(clock + plain, "## At equal time", _CLOCK))
    if sweep:
        parts.append(_sweep(sweep))
        _plot_sweep(sweep, folder / "batch-size.png")
    if proximal := read(folder / "proximal.jsonl"):
        parts.append(_proximal(proximal))
    parts.append(_search(search))
    notes = folder / "notes.md"
    if notes.exists():
        parts.insert(1, notes.read_text())
    path = folder / "README.md"
    path.write_text("\n".join(parts))
    return path


def _introduction(search: Entries, final: Entries) -> str:
    seeds = ", ".join(map(str, sorted({e["config"]["seed"] for e in final})))
    runs = max(Counter((e["loss"], e["method"]) for e in search).values(), default=0)
    judged = (
        f"- The final runs trained on all background alphabets, seeds {seeds}, and were judged on\n"
        "  the 659 characters of the evaluation alphabets, once, after the last step. Nothing was\n"
        "  chosen there."
        if final
        else "- The final runs, on the evaluation alphabets, have not been made yet."
    )
    common = ", ".join(f"{name} {value}" for name, value in COMMON.items())
    return f"""# Does DMLAP help? Omniglot, seeds and intervals

Made by `python -m benchmarks.evidence all --data omniglot:PATH --out DIR`, two hours on two
cores; without `--out` it goes on from the runs in this folder.

Every run: {common}; Adam, one-cycle.
`plain`: batches of C x M with the in-batch loss. `dmlap`: alternating projections, classes at
random. `dmlap+hard`: part of the classes are hard for the others.

- The search trained with seed {SEARCH_SEED} on background alphabets and judged on others of them,
  held out (a fifth of the classes), {runs} runs for every loss and method, in three rounds of six.
  Plain batches: three rates with two settings of the loss. Either form of DMLAP: six variants, at
  the rate and setting that were best for plain so far; in the third round its own best variant, at
  the rates and settings of plain. The best MAP@R won.
{judged}
"""


def values(entries: Iterable[dict[str, Any]], metric: str) -> list[float]:
    return [e[metric] for e in sorted(entries, key=lambda e: e["config"]["seed"])]


def shown(interval: Interval, sign: str = "") -> str:
    return f"{interval.mean:{sign}.4f} ± {interval.half:.4f}"


def _groups(entries: Entries) -> dict[tuple[str, str], Entries]:
    groups: dict[tuple[str, str], Entries] = {}
    for entry in entries:
        groups.setdefault((entry["loss"], entry["method"]), []).append(entry)
    return groups


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def _final(final: Entries) -> str:
    groups = _groups(final)
    rows = []
    for (loss, method), entries in sorted(groups.items(), key=_place):
        cells = (shown(mean_interval(values(entries, metric))) for metric in METRICS)
        settings = entries[0]["config"]
        rows.append((loss, method, *cells, str(len(entries)), _own_settings(settings)))
    return "## Evaluation alphabets\n\nMean ± 95 % interval (t) over seeds.\n\n" + markdown_table(
        ("loss", "method", "Recall@1", "MAP@R", "seeds", "settings that the search chose"), rows
    )


def _place(item: tuple[tuple[str, str], Any]) -> tuple[str, int]:
    (loss, method), _ = item
    return loss, METHODS.index(method)


def _own_settings(config: dict[str, Any]) -> str:
    own = {name: value for name, value in config.items() if name not in _SAME and value != {}}
    return ", ".join(f"{name} {value}" for name, value in own.items())


def _gains(final: Entries, title: str, text: str) -> str:
    groups = _groups(final)
    rows = []
    for (loss, method), entries in sorted(groups.items(), key=_place):
        if method == "plain":
            continue
        cells = []
        for metric in METRICS:
            plain = {e["config"]["seed"]: e[metric] for e in groups.get((loss, "plain"), [])}
            shared = [e for e in entries if e["config"]["seed"] in plain]
            differences = [e[metric] - plain[e["config"]["seed"]] for e in shared]
            cells.append(shown(mean_interval(differences), "+") if len(shared) > 1 else "–")
        rows.append((loss, method, *cells))
    return f"{title}\n\n{text}\n\n" + markdown_table(("loss", "method", "Recall@1", "MAP@R"), rows)


def _cost(cost: dict[str, Any]) -> str:
    rows = [
        (loss, *(f"{values[method]:.2f}x" for method in METHODS[1:]))
        for loss, values in cost["ratios"].items()
    ]
    return (
        "## Cost of a step\n\nTime of a training step against plain batches: the methods take "
        f"turns in one process, {cost['steps']} steps each, choices of representatives and mining "
        "included (`python -m benchmarks.evidence cost`).\n\n"
        + markdown_table(("loss", *METHODS[1:]), rows)
    )


def _sweep(sweep: Entries) -> str:
    rows = []
    for (loss, method), entries in sorted(_groups(sweep).items(), key=_place):
        cells = []
        for classes in sorted({e["config"]["classes_per_batch"] for e in sweep}):
            own = [e for e in entries if e["config"]["classes_per_batch"] == classes]
            found = values(own, "map@r")
            cells.append(shown(mean_interval(found)) if len(found) > 1 else "–")
        rows.append((loss, method, *cells))
    sizes = sorted({_batch(e) for e in sweep})
    return (
        "## Batch size\n\nMAP@R on the evaluation alphabets, settings as above "
        "(`python -m benchmarks.evidence sweep`).\n\n"
        + markdown_table(("loss", "method", *(f"B = {size}" for size in sizes)), rows)
        + "\n![MAP@R against batch size](batch-size.png)\n"
    )


def _batch(entry: dict[str, Any]) -> int:
    return entry["config"]["classes_per_batch"] * entry["config"]["samples_per_class"]


def _proximal(entries: Entries) -> str:
    weights = sorted({entry["config"]["proximal_weight"] for entry in entries})
    found: dict[tuple[str, str], dict[float, float]] = {}
    for entry in entries:
        config = entry["config"]
        of_row = found.setdefault((entry["loss"], config["proximal_form"]), {})
        of_row[config["proximal_weight"]] = entry["map@r"]
    rows = [
        (loss, form, *(f"{of_row[w]:.3f}" if w in of_row else "–" for w in weights))
        for (loss, form), of_row in found.items()
    ]
    header = ("loss", "form", *(f"{weight:g}" for weight in weights))
    return (
        "## The proximal term\n\nMAP@R on the alphabets held out, one seed: what the search chose "
        "for `dmlap`, with other\nlambdas in either form (`python -m benchmarks.evidence "
        "proximal`).\n\n" + markdown_table(header, rows)
    )


def _search(search: Entries) -> str:
    chosen = {entry["name"] for entry in best_of(search).values()}
    rows = [
        (
            e["loss"],
            e["method"],
            _own_settings(e["config"]) + (" **(chosen)**" if e["name"] in chosen else ""),
            f"{e['recall@1']:.4f}",
            f"{e['map@r']:.4f}",
            f"{100 * e['violated']:.0f} %",
        )
        for e in sorted(search, key=lambda e: (*_place(((e["loss"], e["method"]), e)), e["name"]))
    ]
    return "## The search\n\nOn the alphabets held out, one seed.\n\n" + markdown_table(
        ("loss", "method", "settings", "Recall@1", "MAP@R", "violated at the end"), rows
    )


def _plot_sweep(sweep: Entries, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    losses = sorted({e["loss"] for e in sweep})
    columns = min(2, len(losses))
    rows = -(-len(losses) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5 * columns, 3.6 * rows), squeeze=False)
    for ax, loss in zip(axes.flat, losses, strict=False):
        for method in METHODS:
            own = [e for e in sweep if e["loss"] == loss and e["method"] == method]
            sizes = sorted({_batch(e) for e in own})
            points = [
                (size, mean_interval(found))
                for size in sizes
                if len(found := [e["map@r"] for e in own if _batch(e) == size]) > 1
            ]
            ax.errorbar(
                [size for size, _ in points],
                [interval.mean for _, interval in points],
                [interval.half for _, interval in points],
                marker="o",
                capsize=3,
                label=method,
            )
        ax.set(xscale="log", title=loss, xlabel="batch size", ylabel="MAP@R")
        ticks = sorted({_batch(e) for e in sweep})
        ax.set_xticks(ticks, labels=map(str, ticks))
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
