"""The page of ``dmlap report``: runs, their curves, and what their encoders make of test classes.

One HTML file that needs nothing else: pictures are data URIs, and a content security policy keeps
a browser from fetching anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmlap_kernels.extras import require
from dmlap_kernels.report.class_pairs import render_pairs
from dmlap_kernels.report.comparison import render_comparison, render_metrics
from dmlap_kernels.report.embedding_map import render_map
from dmlap_kernels.report.gallery import render_gallery
from dmlap_kernels.report.markup import Html, element, join
from dmlap_kernels.report.run_curves import render_curves
from dmlap_kernels.report.runs import NoPictures, Run, embed_test, read_runs
from dmlap_kernels.report.style import CSS

REPORT_FILE = "report.html"

_NEEDED = ("matplotlib", "PIL", "scipy", "sklearn")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(folders: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the page of one or several finished runs.

    Args:
        folders: what ``out`` of the trainer was, for every run.
        out: the file. Default: ``report.html`` in the folder of the only run, or in the current
            folder for several.

    Returns:
        The path of the page.

    Raises:
        ValueError: a folder is not that of a finished run, or is given twice.
        OSError: the page cannot be written.
        MissingExtra: an optional dependency is not installed.
    """
    for module in _NEEDED:
        require(module, purpose="dmlap report")
    runs = read_runs(folders)
    path = Path(out) if out else Path(runs[0].folder if len(runs) == 1 else Path(), REPORT_FILE)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; --out takes the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} does not exist; --out takes a file in a folder")
    # Names of classes may be names of files that are not UTF-8.
    path.write_text(build_page(runs), encoding="utf-8", errors="backslashreplace")
    return path


def build_page(runs: Sequence[Run]) -> str:
    """The page as text."""
    names = ", ".join(run.name for run in runs)
    title = f"Run {names}" if len(runs) == 1 else f"{len(runs)} runs: {names}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("title", title),
        element("style", Html(CSS)),
    )
    curves = _section("curves", "Curves", render_curves(runs))
    parts = [element("h1", title)]
    if len(runs) == 1:
        parts += [
            _render_head(1, runs[0], "Result and settings"),
            curves,
            _render_pictures(1, runs[0]),
        ]
    else:
        parts += [_section("comparison", "Comparison", render_comparison(runs)), curves]
        for number, run in enumerate(runs, 1):
            name = f"{number}. {run.name}"
            parts.append(_render_head(number, run, name))
            parts.append(_render_pictures(number, run, before=f"{name}: "))
    page = element("html", head, element("body", element("main", *parts)), lang="en")
    return f"<!doctype html>\n{page}\n"


def _render_head(number: int, run: Run, title: str) -> Html:
    return _section(f"run-{number}", title, join((render_metrics(run), _facts(run))))


def _render_pictures(number: int, run: Run, before: str = "") -> Html:
    """What needs the test images, or a sentence that says why there are none."""
    try:
        embedded = embed_test(run)
    except NoPictures as error:
        sentence = f"There are no pictures of the test images of this run: {error}."
        return element("p", sentence, class_="missing")
    parts = (
        ("gallery", "nearest neighbours", render_gallery),
        ("map", "map of the test embeddings", render_map),
        ("pairs", "hardest pairs of classes", render_pairs),
    )
    return join(
        _section(f"{part}-{number}", before + title if before else title.capitalize(), of(embedded))
        for part, title, of in parts
    )


def _section(identifier: str, title: str, content: Html) -> Html:
    return element("section", element("h2", title), content, id=identifier)


def _describe_split(part: dict[str, Any]) -> str:
    text = f"{part['images']:,} images of {part['classes']:,} classes"
    seen = len(part.get("seen_in_training", ()))
    return f"{text}, {seen:,} of them also in training" if seen else text


def _facts(run: Run) -> Html:
    """What was run, with what, for how long."""
    config, results = run.config, run.results
    options = ", ".join(f"{k}={v}" for k, v in config.get("loss_options", {}).items())
    rows: list[tuple[str, Any]] = [
        ("data", config["data"]),
        *((f"{name} split", _describe_split(part)) for name, part in results["data"].items()),
        ("loss", f"{config['loss']} ({options})" if options else config["loss"]),
        ("method", config["method"]),
        ("steps", f"{config['steps']:,}, {results['seconds_per_step']:.4g} seconds each"),
        ("seed", config["seed"]),
        ("versions", ", ".join(f"{k} {v}" for k, v in results["versions"].items())),
    ]
    named = {"data", "loss", "loss_options", "method", "steps", "seed"}
    rest = (f"{k}={v}" for k, v in config.items() if k not in named and v is not None)
    rows.append(("configuration", ", ".join(rest)))
    lines = (
        element("tr", element("th", name, scope="row"), element("td", str(value), class_="text"))
        for name, value in rows
    )
    return element("div", element("table", element("tbody", *lines)), class_="wide")
