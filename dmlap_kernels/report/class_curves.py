"""Violated constraints of every training class over the steps of a run."""

from __future__ import annotations

import io
import math

import torch
from torch import Tensor

from dmlap_kernels.extras import require
from dmlap_kernels.report.markup import Html, element, join, picture
from dmlap_kernels.report.runs import Run
from dmlap_kernels.trainer.class_violations import shares

# Classes with a curve of their own; the map holds all of them.
WORST = 24
# Rows of the map: of more classes, neighbours in its order share one.
MOST_ROWS = 400
_PURPOSE = "dmlap report"
_WIDTH, _HEIGHT = 100, 24


def render_class_curves(run: Run) -> Html:
    """A map of classes and steps, and the curves of the classes that are worst at the end."""
    if run.violations is None:
        return element("p", "This run was trained by a version that did not count them.")
    share = shares(run.violations)  # [windows, C]
    if not len(share) or bool(share.isnan().all()):
        return element("p", "No batch had a constraint to count.")
    order = hardest_first(share)
    steps = min(len(share) * run.window, run.config["steps"])
    text = (
        f"Share of the samples of a training class to which another class's {_what(run)} is at "
        "least as near as the farthest of its own: an order without a margin, the same for every "
        f"loss. Each column of the map is {run.window} step{'s' if run.window > 1 else ''}, each "
        f"row {_rows(len(order))}, the worst at the end on top; white: in no batch of these steps."
    )
    names = [_name(run, label) for label in order[:WORST].tolist()]
    curves = (
        _curve(name, share[:, label], steps)
        for name, label in zip(names, order.tolist(), strict=False)
    )
    title = element("h3", f"The {len(names)} classes that are worst at the end")
    alt = f"violated constraints of {len(order)} classes over {steps} steps"
    plot = picture(_draw_map(share[:, order], steps), "png", alt, class_="plot")
    return join((element("p", text), plot, title, element("div", *curves, class_="multiples")))


def hardest_first(share: Tensor) -> Tensor:
    """Classes (C,) by their mean violated share in the last quarter that they were seen in.

    Those that were never in a batch come last.
    """
    last = share[-max(1, math.ceil(len(share) / 4)) :].nanmean(0)
    score = torch.where(last.isnan(), share.nanmean(0), last).nan_to_num(-1.0)
    return score.argsort(descending=True, stable=True)


def _what(run: Run) -> str:
    return "representative" if run.config["method"] == "dmlap" else "sample in the batch"


def _rows(classes: int) -> str:
    together = math.ceil(classes / MOST_ROWS)
    return "a class" if together == 1 else f"{together} classes"


def _name(run: Run, label: int) -> str:
    return run.class_names[label] if run.class_names else f"class {label}"


def _grouped(share: Tensor) -> Tensor:
    """At most `MOST_ROWS` columns, means of neighbours."""
    together = math.ceil(share.shape[1] / MOST_ROWS)
    parts = [part.nanmean(1) for part in share.split(together, dim=1)]
    return torch.stack(parts, dim=1)


def _draw_map(share: Tensor, steps: int) -> bytes:
    """(windows, C) in the order of the rows."""
    figures = require("matplotlib.figure", purpose=_PURPOSE)
    matplotlib = require("matplotlib", purpose=_PURPOSE)
    figure = figures.Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    colors = matplotlib.colormaps["cividis"].with_extremes(bad="#ffffff")
    shown = axes.imshow(
        100 * _grouped(share).T.numpy(),
        aspect="auto",
        interpolation="nearest",
        cmap=colors,
        vmin=0,
        vmax=100,
        extent=(0, steps, share.shape[1], 0),
    )
    axes.set_xlabel("Step")
    axes.set_ylabel("Class, worst first")
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    figure.colorbar(shown, ax=axes, label="Violated (%)", pad=0.02)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=140, format="png")
    return buffer.getvalue()


def _curve(name: str, share: Tensor, steps: int) -> Html:
    """One class: its name, its curve from 0 to 100 %, and its first and last share."""
    known = (~share.isnan()).nonzero().flatten().tolist()
    across = _WIDTH / max(1, len(share) - 1)
    points = [(across * i, _HEIGHT * (1 - float(share[i]))) for i in known]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    first, last = (f"{100 * float(share[known[i]]):.0f}" if known else "–" for i in (0, -1))
    label = f"{name}: {first} % violated at first, {last} % at the end of {steps} steps"
    drawing = element(
        "svg",
        element("title", label),
        element("path", d=path if known else "M0 0"),
        viewBox=f"-1 -1 {_WIDTH + 2} {_HEIGHT + 2}",
        preserveAspectRatio="none",
        role="img",
    )
    facts = element("span", f"{first} → {last} %")
    return element("figure", element("figcaption", element("span", name), facts), drawing)
