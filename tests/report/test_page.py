"""The page of several runs: whole, self-contained, and true."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from dmlap_kernels.cli import main
from dmlap_kernels.report import page as writing
from dmlap_kernels.report import runs as reading
from dmlap_kernels.report.page import build_page, write_report
from dmlap_kernels.report.runs import embed_test, read_runs
from dmlap_kernels.report.settings import settings_of
from dmlap_kernels.trainer import TrainConfig, Trainer
from tests.report.conftest import ODD_CLASS, Page, few_digits

PARTS = ("run", "classes", "gallery", "map", "pairs")


@pytest.fixture(scope="module")
def text(runs: list[Path]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "load_data", few_digits)
        return build_page(reading.read_runs(runs))


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_all_parts_are_there(page: Page, runs: list[Path]) -> None:
    parts = [f"{part}-{n}" for n in (1, 2, 3) for part in PARTS]
    assert page.ids() == ["comparison", "curves", *parts]
    for folder in runs:
        metrics = json.loads((folder / "metrics.json").read_text())
        for column in ("test", "raw_pixels"):
            for value in metrics[column].values():
                assert f"{value:.4f}" in page.text
        assert metrics["versions"]["torch"] in page.text
    assert len(page.classes("img", "plot")) == 3 + 3 + 3
    assert len(page.classes("div", "row")) == 3 * 12
    assert len(page.classes("div", "pair")) == 3 * 8


def test_the_page_needs_nothing_else(text: str, page: Page) -> None:
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[^\"]*", "", text))
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert "url(" not in text and "@import" not in text
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    starts = {"png": b"\x89PNG", "svg+xml": b"<?xml"}
    for attrs in images:
        kind, content = re.fullmatch(r"data:image/(.*);base64,(.*)", attrs["src"] or "").groups()  # type: ignore[union-attr]
        assert base64.b64decode(content, validate=True).startswith(starts[kind])
        assert attrs["alt"] and attrs["loading"] == "lazy"
    assert any("default-src 'none'" in (attrs.get("content") or "") for _, attrs in page.tags)
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_many_samples_are_files_beside_the_page(
    runs: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
) -> None:
    monkeypatch.setattr(writing, "INLINE_BYTES", 0)
    out = tmp_path / "a page.html"
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    assert f"{tmp_path / 'a page_files'}: its images" in capsys.readouterr().out
    page = Page(out.read_text(encoding="utf-8"))
    samples = page.classes("img", "sample coarse")
    whole = Page(text).classes("img", "sample coarse")
    assert len(samples) == len(whole) > 300
    for moved, inlined in zip(samples, whole, strict=True):
        path = tmp_path / unquote(moved["src"] or "")
        assert path.parent == tmp_path / "a page_files"
        assert path.read_bytes() == base64.b64decode((inlined["src"] or "").partition(",")[2])
        assert moved["loading"] == "lazy" and moved["alt"] == inlined["alt"]
    plots = page.classes("img", "plot")
    assert all((attrs["src"] or "").startswith("data:") for attrs in plots)


def test_settings_stand_beside_their_defaults(page: Page, runs: list[Path]) -> None:
    (run,) = read_runs(runs[2:])
    settings = {name: (value, default) for name, value, default in settings_of(run)}
    assert set(settings) == {field.name for field in fields(TrainConfig)}
    assert settings["method"] == ("plain", "dmlap")
    assert settings["classes_per_batch"] == ("4", "none")
    assert settings["augment"] == ("no", "yes")
    assert settings["seed"] == ("0", None) and settings["patience"] == ("none", None)
    for name in settings:
        assert name in page.text
    assert len([tag for tag, _ in page.tags if tag == "details"]) == 3


def test_odd_names_are_text(page: Page, runs: list[Path]) -> None:
    assert "b" not in {tag for tag, _ in page.tags}
    assert f"1. {runs[0].name}" in page.text
    assert ODD_CLASS in page.text
    alts = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert f"class {ODD_CLASS}" in alts


def test_the_command_writes_the_same_page_again(
    text: str, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of one run, for its time; its pictures are those of the page of three.
    assert main(["report", str(runs[2]), "--out", str(tmp_path / "page.html")]) == 0
    assert str(tmp_path / "page.html") in capsys.readouterr().out
    again = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert Page(again).ids() == ["run-1", "curves", "classes-1", "gallery-1", "map-1", "pairs-1"]
    for part in PARTS[1:]:
        pattern = r'<section id="{}-{}"><h2>[^<]*</h2>(.*?)</section>'
        (one,) = re.findall(pattern.format(part, 1), again, re.DOTALL)
        (other,) = re.findall(pattern.format(part, 3), text, re.DOTALL)
        assert one == other


def test_missing_data_leave_out_the_pictures(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def gone(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("data 'folder': /gone does not exist")

    monkeypatch.setattr(reading, "load_data", gone)
    out = write_report(runs[:1], tmp_path / "page.html")
    page = Page(out.read_text(encoding="utf-8"))
    assert page.ids() == ["run-1", "curves", "classes-1"]
    assert "There are no pictures of the test images of this run" in page.text
    assert "/gone does not exist" in page.text


def test_other_data_than_the_run_had_are_not_shown(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    page = Page(build_page(reading.read_runs(runs[:1])))
    assert "no longer those that it was trained on" in page.text
    assert page.ids() == ["run-1", "curves", "classes-1"]


def test_what_is_no_run_is_refused(runs: list[Path], tmp_path: Path) -> None:
    unfinished, broken = tmp_path / "unfinished", tmp_path / "broken"
    for folder in (unfinished, broken):
        shutil.copytree(runs[2], folder)
    (unfinished / "metrics.json").unlink()
    (broken / "metrics.json").write_text('{"config": {}}')
    for folders, named in (
        ([tmp_path], "holds no checkpoint.safetensors: it is not the folder of a run"),
        ([unfinished], "its run is not finished; continue it with: dmlap train --resume"),
        ([broken], "does not hold the metrics of a run"),
        ([runs[0], runs[0]], "is given twice"),
        ([], "at least one run"),
    ):
        with pytest.raises(ValueError, match=named):
            write_report(folders, tmp_path / "page.html")
    for out in (tmp_path, tmp_path / "none" / "page.html"):
        with pytest.raises(OSError, match="--out"):
            write_report(runs[2:], out)
    assert not (tmp_path / "page.html").exists()


def test_a_missing_extra_is_named(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"report needs scikit-learn.*dmlap-kernels\[train\]"):
        write_report(runs)


@pytest.mark.parametrize("held_out", [{"validation": 0.3}, {"validation_fold": 0}])
def test_a_run_with_validation_classes_has_pictures(
    held_out: dict[str, Any], tmp_path: Path
) -> None:
    config = TrainConfig(
        data="digits", steps=1, classes_per_batch=2, samples_per_class=2, augment=False, **held_out
    )
    Trainer(config, data=few_digits(), out=tmp_path / "run").run()
    (run,) = read_runs([tmp_path / "run"])
    embedded = embed_test(run)
    assert len(embedded.embeddings) == len(few_digits().test)
