"""The supported versions: refused, used and shown; and stated in one place."""

from __future__ import annotations

import json
import re
import sys

import pytest
from packaging.requirements import Requirement

from dmlap_kernels import info, versions
from dmlap_kernels.backends.triton import triton_backend
from tests.build.conftest import ROOT, run

PYPROJECT = (ROOT / "pyproject.toml").read_text()


def oldest(name: str) -> str:
    return versions.SUPPORTED[name].oldest


@pytest.mark.parametrize(
    ("package", "here", "refused"),
    [
        ("torch", "2.7.1", True),
        ("torch", "1.13.0+cu117", True),
        ("torch", oldest("torch"), False),
        ("torch", "2.13.0+cpu", False),
        ("torch", "2.16.0a0+gitabc", False),
        ("torch", "3.0.0", False),
        ("torch", "unknown", False),
        ("triton", "3.3.1", True),
        ("triton", "3.2.0", True),
        ("triton", "3.4.0", False),
        ("triton", "3.10.0", False),  # by number, not by letter
        ("numpy", "1.25.2", True),
        ("numpy", "2.0.0", False),
        ("python", "3.9.18", True),
        ("python", "3.14.0rc1", False),
    ],
)
def test_too_old_is_refused_in_a_sentence(package: str, here: str, refused: bool) -> None:
    said = versions.refusal(package, here)
    assert (said is not None) == refused
    if said is not None:
        assert "\n" not in said and ". " not in said
        for part in (versions.SUPPORTED[package].name, oldest(package), here):
            assert part in said


def found_instead(monkeypatch: pytest.MonkeyPatch, package: str, version: str | None) -> None:
    real = versions.found
    monkeypatch.setattr(versions, "found", lambda name: version if name == package else real(name))


@pytest.mark.parametrize(
    ("version", "fit"),
    [("2.1.0", "too old"), ("99.0", "newer than tested"), (None, "not installed")],
)
def test_info_shows_how_a_version_fits(
    monkeypatch: pytest.MonkeyPatch, version: str | None, fit: str
) -> None:
    found_instead(monkeypatch, "triton", version)
    facts = json.loads(json.dumps(info.collect()))
    assert facts["versions"]["triton"]["fit"] == fit
    (line,) = (x for x in info.render(facts).splitlines() if x.split()[:1] == ["Triton"])
    assert fit in line and oldest("triton") in line and (version or fit) in line
    assert {state["found"] for state in facts["versions"].values()} >= {facts["python"]}


def test_the_triton_backend_goes_by_the_same_version() -> None:
    assert ".".join(map(str, triton_backend.OLDEST_TRITON)) == oldest("triton")


@pytest.mark.parametrize(("package", "version"), [("torch", "2.5.1"), ("numpy", "1.22.0")])
def test_importing_with_a_package_that_is_too_old(package, version, tmp_path) -> None:
    """Before anything of ours that an old PyTorch does not understand."""
    code = (
        "import importlib.metadata as m; real = m.version\n"
        f"m.version = lambda name: {version!r} if name == {package!r} else real(name)\n"
        "import dmlap_kernels"
    )
    done = run([sys.executable, "-c", code], tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == f"ImportError: {versions.refusal(package, version)}"


def test_pyproject_repeats_the_oldest_versions() -> None:
    assert f'requires-python = ">={oldest("python")}"' in PYPROJECT
    listed = re.search(r"^dependencies = \[(.*)\]", PYPROJECT, re.M)
    assert listed is not None
    wanted = {r.name: str(r.specifier) for r in map(Requirement, json.loads(f"[{listed[1]}]"))}
    assert wanted == {name: f">={oldest(name)}" for name in ("torch", "numpy")}
    assert f'target-version = "py{oldest("python").replace(".", "")}"' in PYPROJECT
    assert f'python_version = "{oldest("python")}"' in PYPROJECT


def test_the_documentation_repeats_the_versions() -> None:
    text = (ROOT / "docs" / "index.md").read_text()
    for name, supported in versions.SUPPORTED.items():
        row = rf"^\| {supported.name} \| {supported.oldest} \| {supported.tested} \|"
        assert re.search(row, text, re.M), name
    readme = (ROOT / "README.md").read_text()
    for name in ("python", "torch"):
        assert f"{versions.SUPPORTED[name].name} {oldest(name)} or newer" in readme


def test_ci_proves_both_ends() -> None:
    """It reads the versions from where they are stated."""
    text = (ROOT / ".ci" / "run").read_text()
    assert "versions.py" in text
    for name in ("torch", "triton", "numpy"):
        assert re.search(rf"\$\(supported {name} oldest\)", text), name


@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_a_test_run_says_what_it_tests(quiet, tmp_path) -> None:
    file = f"{ROOT}/tests/triton/test_backend.py::test_without_triton"
    options = ["-c", ROOT / "pyproject.toml", "--rootdir", ROOT, "-p", "no:cacheprovider", *quiet]
    done = run([sys.executable, "-m", "pytest", *options, file], tmp_path)
    assert done.returncode == 0, done.stdout
    for line in info.headline():
        assert line in done.stdout
