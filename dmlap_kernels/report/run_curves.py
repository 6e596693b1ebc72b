"""Curves of one or several runs for the page: one picture a quantity, all runs in it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import Any

from dmlap_kernels.extras import require
from dmlap_kernels.report.markup import Html, element, join, picture
from dmlap_kernels.report.runs import Run

# Okabe and Ito's, which the colour-blind can tell apart; styles change when they are used up.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_STYLES = ("-", "--", ":", "-.")
_PURPOSE = "dmlap report"

# What decides on the terms of a loss. DMLAP adds those of representatives.
_TERMS = ("data", "loss", "loss_options", "method", "in_batch_weight")


def render_curves(runs: Sequence[Run]) -> Html:
    """Loss, violated share and Recall@1 over the steps; a warning where losses are not alike."""
    held_out = {"validation" in run.results for run in runs}
    watched = {True: "validation classes", False: "test classes"}
    which = watched[held_out.pop()] if len(held_out) == 1 else "validation or test classes"
    quantities = (
        ("Loss", "train", lambda entry: entry["loss"]),
        ("Violated constraints (%)", "train", lambda entry: 100 * entry["violated"]),
        (f"Recall@1 on {which} (%)", "evaluation", lambda entry: 100 * entry["recall@1"]),
    )
    drawings = (_draw(runs, *quantity) for quantity in quantities)
    curves = element("div", *drawings, class_="curves")
    if len({json.dumps([run.config.get(name) for name in _TERMS]) for run in runs}) == 1:
        return curves
    note = (
        "Loss and constraints are sums over different terms from run to run: compare the Recall@1."
    )
    return join((curves, element("p", note)))


def _draw(
    runs: Sequence[Run], title: str, kind: str, value: Callable[[dict[str, float]], float]
) -> Html:
    matplotlib = require("matplotlib", purpose=_PURPOSE)
    figures = require("matplotlib.figure", purpose=_PURPOSE)
    # A fixed salt and no date: the same runs give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "dmlap", "text.usetex": False}):
        figure = figures.Figure(figsize=(4.6, 3.4), layout="constrained")
        axes = figure.subplots()
        for number, run in enumerate(runs):
            entries = run.results["history"][kind]
            axes.plot(
                [entry["step"] for entry in entries],
                [value(entry) for entry in entries],
                color=_COLORS[number % len(_COLORS)],
                linestyle=_STYLES[number // len(_COLORS) % len(_STYLES)],
                linewidth=1.4,
                marker="o" if kind == "evaluation" else None,
                markersize=3,
                label=f"run {number + 1}",
            )
        _finish(axes, title, legend=len(runs) > 1)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    alt = f"{title} over the steps of {len(runs)} run{'s' if len(runs) > 1 else ''}"
    return picture(buffer.getvalue(), "svg+xml", alt, class_="plot")


def _finish(axes: Any, title: str, legend: bool) -> None:
    axes.set_title(title)
    axes.set_xlabel("Step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if title.startswith("Violated"):
        axes.set_ylim(bottom=0)
    if legend:
        axes.legend(fontsize=7, frameon=False)
