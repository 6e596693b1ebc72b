"""``curves.png``: loss, violated constraints and retrieval over the steps of one run."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

from dmlap_kernels.extras import require

_INK, _GREY, _ACCENT = "#1f4e79", "#888888", "#c55a11"


def plot_curves(results: dict[str, Any], path: str | Path) -> None:
    """Draw loss, violated constraints and retrieval over the steps of a run as a PNG file.

    Args:
        results: the content of the run's ``metrics.json``.
        path: where the picture goes.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figures = require("matplotlib.figure", purpose="curves.png")
    agg = require("matplotlib.backends.backend_agg", purpose="curves.png")
    figure = figures.Figure(figsize=(12, 3.6), layout="constrained")
    agg.FigureCanvasAgg(figure)
    config, history = results["config"], results["history"]
    loss, violated, retrieval = figure.subplots(1, 3)
    steps = [entry["step"] for entry in history["train"]]
    _line(loss, steps, [entry["loss"] for entry in history["train"]], "Loss")
    _line(
        violated,
        steps,
        [100 * entry["violated"] for entry in history["train"]],
        "Violated constraints (%)",
    )
    violated.set_ylim(bottom=0)
    _mark_projections(loss, history["train"])
    _mark_projections(violated, history["train"])
    _plot_retrieval(retrieval, results)
    for axes in (loss, violated, retrieval):
        axes.set_xlabel("Step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{config['data'].partition(':')[0]}, {config['loss']}, {config['method']}, "
        f"seed {config['seed']}: recall@1 {results['recall@1']:.3f}, map@r {results['map@r']:.3f}"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    Path(path).write_bytes(buffer.getvalue())


def _line(axes: Any, steps: list[float], values: list[float], title: str) -> None:
    axes.plot(steps, values, color=_INK, linewidth=1.4)
    axes.set_title(title)


def _mark_projections(axes: Any, entries: list[dict[str, float]]) -> None:
    """A faint line where a new projection shows up in the log."""
    for before, after in itertools.pairwise(entries):
        if after["projection"] != before["projection"]:
            axes.axvline(before["step"], color=_GREY, linewidth=0.5, alpha=0.5)


def _plot_retrieval(axes: Any, results: dict[str, Any]) -> None:
    entries = results["history"]["evaluation"]
    steps = [entry["step"] for entry in entries]
    for name, color in (("recall@1", _INK), ("map@r", _ACCENT)):
        values = [100 * entry[name] for entry in entries]
        axes.plot(steps, values, color=color, marker="o", markersize=3)
        _label(axes, steps[-1], values[-1], name, color)
        if "validation" not in results:
            raw = 100 * results["raw_pixels"][name]
            axes.axhline(raw, color=color, linestyle=":")
            _label(axes, steps[-1], raw, f"{name} of raw pixels", color)
    which = "validation" if "validation" in results else "test"
    axes.set_title(f"Retrieval on {which} classes (%)")
    axes.set_ylim(0, 105)


def _label(axes: Any, step: float, value: float, text: str, color: str) -> None:
    """Name a curve at its right end, so that no legend covers another."""
    axes.annotate(
        f"{text} {value:.1f}",
        (step, value),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        color=color,
        fontsize=8,
    )
