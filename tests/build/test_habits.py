"""What stands in several files for those who change the package: versions of tools, the release."""

from __future__ import annotations

import re

from tests.build.conftest import ROOT
from tests.conftest import ANY_TORCH

PYPROJECT = (ROOT / "pyproject.toml").read_text()


def test_the_hooks_of_a_commit_run_the_versions_of_ci() -> None:
    hooks = re.findall(r'"([\w-]+)==([\w.]+)"', (ROOT / ".pre-commit-config.yaml").read_text())
    pins = re.findall(r"^([\w-]+)==(\S+)$", (ROOT / ".ci" / "constraints.txt").read_text(), re.M)
    assert {name for name, _ in hooks} >= {"ruff", "clang-format", "typos", "pre-commit-hooks"}
    assert set(hooks) <= set(pins)


def test_the_hooks_are_installed_by_the_extra() -> None:
    listed = re.search(r"^dev = \[(.*)\]$", PYPROJECT, re.M)
    assert listed is not None
    assert {"pre-commit", "ruff", "clang-format", "typos", "mypy"} <= set(
        re.findall(r'"([\w-]+)"', listed[1])
    )


def test_the_changelog_begins_with_the_version() -> None:
    """Or with what comes after it."""
    version = re.search(r'^version = "(.*)"$', PYPROJECT, re.M)
    releases = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert version is not None
    assert next(name for name in releases if name != "Unreleased") == version[1]


def test_what_ci_asks_one_pytorch_alone_exists() -> None:
    assert all((ROOT / "tests" / name).exists() for name in ANY_TORCH)
    assert '-m "not any_torch"' in (ROOT / ".ci" / "run").read_text()


def test_the_manifest_names_what_exists() -> None:
    for line in (ROOT / "MANIFEST.in").read_text().splitlines():
        command, *names = line.split()
        if command in ("include", "graft"):
            assert all((ROOT / name).exists() for name in names), line
