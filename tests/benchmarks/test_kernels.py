"""Benchmarks measure the kernels, or nothing."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

import dmlap_kernels
from benchmarks import conftest, kernels
from benchmarks.evidence import __main__ as evidence
from dmlap_kernels import info
from dmlap_kernels.backends import registry


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in registry.backends().values():
        monkeypatch.setattr(backend, "unavailable", lambda: "the reason")


def session(items: int = 1, **options: bool) -> Any:
    """What the hook looks at of a pytest session."""
    known = {"collectonly": False, "--without-kernels": False} | options
    option = types.SimpleNamespace(collectonly=known["collectonly"])
    config = types.SimpleNamespace(option=option, getoption=known.__getitem__)
    return types.SimpleNamespace(items=[None] * items, config=config)


def test_one_of_several_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.backends()["cuda"], "unavailable", lambda: "the reason")
    monkeypatch.setattr(registry.backends()["triton"], "unavailable", lambda: None)
    kernels.require("cuda", "triton")
    with pytest.raises(kernels.Missing, match=r"cuda does not run here, .*\(cuda: the reason\)"):
        kernels.require("cuda")


def test_pytest_stops_before_the_first_measurement(missing: None) -> None:
    with pytest.raises(pytest.UsageError, match="cpu does not run here") as refusal:
        conftest.pytest_collection_finish(session())
    for part in ("the reason", dmlap_kernels.__file__, "--without-kernels"):
        assert part in str(refusal.value)
    conftest.pytest_collection_finish(session(**{"--without-kernels": True}))
    conftest.pytest_collection_finish(session(collectonly=True))
    conftest.pytest_collection_finish(session(items=0))  # tests of something else were asked for


def test_training_runs_stop_too(
    missing: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evidence", "cost", "--data", "digits"])
    with pytest.raises(SystemExit):
        evidence.main()
    assert "nothing is measured: cpu does not run here" in capsys.readouterr().err


def test_reports_say_what_is_tested_and_measured() -> None:
    lines = info.headline()
    assert dmlap_kernels.__file__ in lines[0]
    facts = info.collect()
    assert facts["torch"] in lines[1]
    for name, state in facts["backends"].items():
        assert (name in lines[1].partition("; ")[2].partition(":")[2]) == state["usable"] or (
            facts["extension"] is not None
        )
    assert conftest.pytest_report_header() == lines
