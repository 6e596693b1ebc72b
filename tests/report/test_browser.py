"""The page in a browser: quiet, no wider than a phone, readable in both colour schemes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmlap_kernels.report import page as writing
from dmlap_kernels.report import runs as reading
from dmlap_kernels.report.page import write_report
from tests.report.browser import NAMES, Browser, find
from tests.report.conftest import few_digits

PHONE, DESK = 390, 1280

_PICTURES = """
(async () => {
  for (const each of document.images) each.loading = "eager";
  await Promise.all([...document.images].map(each => each.decode().catch(() => 0)));
  return [...document.images].map(each => each.naturalWidth);
})()
"""

# What sticks out to the right, unless it is in a box that scrolls by itself.
_WIDER = """
[...document.querySelectorAll("body *")].filter(
  each => each.getBoundingClientRect().right > innerWidth + 1 && !each.closest(".wide")
).map(each => each.outerHTML.slice(0, 80))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find()
    if program is None:
        pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is here (or set DMLAP_CHROMIUM)")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module", params=["one run", "three runs", "files beside"])
def page(
    request: pytest.FixtureRequest, runs: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("a page") / "the report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "load_data", few_digits)
        if request.param == "files beside":
            patch.setattr(writing, "INLINE_BYTES", 10_000)
        return write_report(runs[:1] if request.param != "three runs" else runs, out)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_page_is_quiet_and_fits(
    browser: Browser, page: Path, width: int, scheme: str, tmp_path: Path
) -> None:
    browser.complaints.clear()
    browser.open(page, width, scheme)
    assert (
        browser.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)") is None
    )
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(_WIDER) == []
    shown = browser.evaluate(_PICTURES)
    assert len(shown) > 100 and all(shown)
    assert not browser.complaints

    ink, paper = (
        _luminance(browser.evaluate(f"getComputedStyle(document.body).{name}"))
        for name in ("color", "backgroundColor")
    )
    assert (ink < paper) == (scheme == "light")
    # What the accessibility guidelines of the W3C ask of text, at their stricter level.
    assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 7


def test_the_browser_would_complain(browser: Browser, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(
        "<meta http-equiv='Content-Security-Policy' content=\"img-src 'none'\">"
        "<img src=data:image/png;base64,AAAA><div style='width:900px'>wide</div>"
    )
    browser.complaints.clear()
    browser.open(broken, PHONE, "light")
    assert browser.complaints
    assert browser.evaluate("document.documentElement.scrollWidth") > PHONE
    assert browser.evaluate(_WIDER)
    assert browser.evaluate(_PICTURES) == [0]


def _luminance(color: str) -> float:
    """Relative luminance of ``rgb(r, g, b)``, as WCAG 2 defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
