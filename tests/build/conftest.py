"""Releases built once a session, from a copy of the sources, without network."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCES = (
    ".git",
    ".venv*",
    "work",
    "build",
    "dist",
    "runs",
    "__pycache__",
    "*.so",
    "*.egg-info",
)
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])('dist'))"


def run(command, cwd, **variables):
    """The finished process; variables are added to an environment without the build's own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DMLAP_")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment | variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def build(what, cwd, **variables):
    """The path of what ``build_sdist`` or ``build_wheel`` made."""
    done = run([sys.executable, "-c", BUILD, what], cwd, **variables)
    assert done.returncode == 0, done.stdout
    return Path(cwd, "dist", done.stdout.splitlines()[-1])


def install(wheel, target):
    """Unpacks the wheel into ``target``, scripts in ``target/bin``."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target"]
    done = run([*command, target, wheel], target.parent)
    assert done.returncode == 0, done.stdout
    return target


def copy_of(source, target):
    def ignore(folder, names):
        patterns = shutil.ignore_patterns(*NOT_SOURCES)(folder, names)
        # tests/build holds tests; only a build folder at the top is an output.
        return patterns - ({"build"} if Path(folder) != Path(source) else set())

    return shutil.copytree(source, target, ignore=ignore)


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """(name, make) -> a folder that ``make(folder)`` filled, once for all pytest-xdist workers."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def folder_of(name, make):
        folder = base / f"build-{name}"
        with open(base / f"build-{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                # A failure leaves no folder of the final name: the next one to ask fails likewise.
                unfinished = Path(tempfile.mkdtemp(dir=base))
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def sources(once):
    """A copy of the sources, as a checkout or an unpacked sdist holds them."""
    for module in ("setuptools", "pybind11", "pip"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"building needs {module} (the extra `test` brings it)")
    return once("sources", lambda folder: copy_of(ROOT, folder / "tree")) / "tree"


@pytest.fixture(scope="session")
def compiler():
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if found is None:
        pytest.skip("no C++ compiler")
    return found


@pytest.fixture(scope="session")
def sdist(sources, once):
    """The folder that the sdist unpacks to."""

    def make(folder):
        copy_of(sources, folder / "tree")
        with tarfile.open(build("build_sdist", folder / "tree")) as archive:
            archive.extractall(folder / "unpacked")

    (unpacked,) = (once("sdist", make) / "unpacked").iterdir()
    return unpacked


@pytest.fixture(scope="session")
def wheel(sdist, compiler, once):
    """A wheel with the extension, from the sdist; unoptimised, because that is quick."""

    def make(folder):
        copy_of(sdist, folder / "tree")
        build("build_wheel", folder / "tree", CXXFLAGS="-O0", DMLAP_CUDA="0")

    return next((once("wheel", make) / "tree" / "dist").iterdir())


@pytest.fixture(scope="session")
def installed(wheel, once):
    return once("installed", lambda folder: install(wheel, folder / "site")) / "site"


@pytest.fixture(scope="session")
def pure_wheel(sources, once):
    """A wheel built where no compiler works."""

    def make(folder):
        copy_of(sources, folder / "tree")
        build("build_wheel", folder / "tree", DMLAP_NATIVE="0", CXX="/bin/false")

    return next((once("pure_wheel", make) / "tree" / "dist").iterdir())


@pytest.fixture(scope="session")
def installed_pure(pure_wheel, once):
    return once("installed_pure", lambda folder: install(pure_wheel, folder / "site")) / "site"
