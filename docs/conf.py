"""How Sphinx builds the documentation: ``sphinx-build -W docs docs/_build``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

ROOT = Path(__file__).resolve().parents[1]
# Files outside this folder that are pages as well. A link goes to the file, so that it can be
# followed in the repository, and to the page in what is built.
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/results/README.md": "results/commands.md",
    "benchmarks/results/targets.md": "results/targets.md",
    "benchmarks/results/evidence/README.md": "results/evidence.md",
    "benchmarks/results/photographs/README.md": "results/evidence.md",
}

project = "dmlap_kernels"
_pyproject = (ROOT / "pyproject.toml").read_text()
version = release = re.search(r'^version = "(.*)"', _pyproject, re.M)[1]  # type: ignore[index]
project_copyright = "dmlap_kernels contributors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "*.py"]
# Docstrings name other objects in single backticks.
default_role = "py:obj"

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"dmlap_kernels {release}"
html_static_path = ["static"]
html_css_files = ["style.css"]
html_copy_source = html_show_sphinx = False
html_math_renderer = "mathml"


def visit_math(self: Any, node: nodes.math | nodes.math_block) -> None:
    """Formulas as MathML, which browsers show without a script and without a network."""
    block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=block)
    self.body.append(f'<div class="formula">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def link_pages(app: Any, docname: str, source: list[str]) -> None:
    """Links to files of `PAGES` become links to their pages."""
    folder = (ROOT / "docs" / docname).parent

    def page(match: re.Match[str]) -> str:
        outside = (folder / match[1]).resolve()
        inside = PAGES.get(os.path.relpath(outside, ROOT))
        return f"]({os.path.relpath(ROOT / 'docs' / inside, folder)}" if inside else match[0]

    source[0] = re.sub(r"\]\((\.\./[^)#\s]+\.md)", page, source[0])


def setup(app: Any) -> None:
    app.connect("source-read", link_pages)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
