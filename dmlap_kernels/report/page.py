"""The page of ``dmlap report``: runs, their curves, and what their encoders make of test classes.

One HTML file that needs nothing else: pictures are data URIs, and a content security policy keeps
a browser from fetching anything from elsewhere. Where samples take more than `INLINE_BYTES`, they
are files in a folder beside the page, which a browser reads when they come into view.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dmlap_kernels.extras import require
from dmlap_kernels.report.class_curves import render_class_curves
from dmlap_kernels.report.class_pairs import render_pairs
from dmlap_kernels.report.comparison import render_comparison, render_metrics
from dmlap_kernels.report.embedding_map import render_map
from dmlap_kernels.report.gallery import render_gallery
from dmlap_kernels.report.markup import Html, element, join
from dmlap_kernels.report.run_curves import render_curves
from dmlap_kernels.report.runs import NoPictures, Run, embed_test, read_runs
from dmlap_kernels.report.settings import render_facts, render_settings
from dmlap_kernels.report.style import CSS
from dmlap_kernels.report.thumbnails import move_out

REPORT_FILE = "report.html"

_NEEDED = ("matplotlib", "PIL", "scipy", "sklearn")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_POLICY_WITH_FILES = _POLICY.replace("data:", "data: 'self' file:")

# Of the samples inside of the page, as it is written: some 800 photographs, those of five runs.
INLINE_BYTES = 8_000_000


def write_report(folders: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the page of one or several finished runs.

    Args:
        folders: what ``out`` of the trainer was, for every run.
        out: the file. Default: ``report.html`` in the folder of the only run, or in the current
            folder for several.

    Samples that together take more than `INLINE_BYTES` go to a folder beside it: ``report_files``
    for ``report.html``.

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
    page = build_page(runs)
    moved = move_out(page, sample_folder(path), INLINE_BYTES)
    if moved is not page:
        page = moved.replace(_POLICY, _POLICY_WITH_FILES, 1)
    # Names of classes may be names of files that are not UTF-8.
    path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def sample_folder(page: Path) -> Path:
    """Where the samples of a page are that has not room for them."""
    return page.with_name(f"{page.stem}_files")


def files_beside(page: Path) -> Path | None:
    """The folder of samples that a page which was written needs, if it needs one."""
    text = page.read_text(encoding="utf-8")
    return sample_folder(page) if _POLICY_WITH_FILES in text else None


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
            _render_classes(1, runs[0]),
            _render_pictures(1, runs[0]),
        ]
    else:
        parts += [_section("comparison", "Comparison", render_comparison(runs)), curves]
        for number, run in enumerate(runs, 1):
            name = f"{number}. {run.name}"
            parts.append(_render_head(number, run, name))
            parts.append(_render_classes(number, run, before=f"{name}: "))
            parts.append(_render_pictures(number, run, before=f"{name}: "))
    page = element("html", head, element("body", element("main", *parts)), lang="en")
    return f"<!doctype html>\n{page}\n"


def _render_head(number: int, run: Run, title: str) -> Html:
    content = (render_metrics(run), render_facts(run), render_settings(run))
    return _section(f"run-{number}", title, join(content))


def _render_classes(number: int, run: Run, before: str = "") -> Html:
    title = "violated constraints by class"
    title = before + title if before else title.capitalize()
    return _section(f"classes-{number}", title, render_class_curves(run))


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
