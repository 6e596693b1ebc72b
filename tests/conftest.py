"""Backends usable here, and where data sets lie."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dmlap_kernels import versions
from dmlap_kernels.backends.precision import matmul_precision

BACKENDS = ("torch", "cpu")
TOO_OLD = versions.refusal("triton")
# Folders and files that have the marker `any_torch`: builds, kernels and texts know no PyTorch.
ANY_TORCH = (
    "benchmarks/test_documents.py",
    "benchmarks/test_evidence.py",
    "benchmarks/test_order.py",
    "build/test_habits.py",
    "build/test_release.py",
    "build/test_setup.py",
    "build/test_stub.py",
    "cuda",
    "losses/test_large_classes.py",
    "losses/test_policies.py",
    "test_registries.py",
)

# The benchmarks are no part of the package: they are found behind what is installed.
sys.path.append(str(Path(__file__).parents[1]))

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores; tests that are about threads set their number themselves.
    torch.set_num_threads(1)


def pytest_report_header() -> list[str]:
    """Which package is tested: one may be installed and another lie in this folder."""
    from dmlap_kernels import info

    left_out = [f"tests/triton is left out: {TOO_OLD}"] if TOO_OLD else []
    return [*info.headline(), *left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The same where ``-q`` leaves the header out."""
    if terminalreporter.verbosity < 0:
        for line in pytest_report_header():
            terminalreporter.write_line(line)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """A Triton that is too old cannot even import the kernels."""
    here = collection_path.parent.name == "triton" and collection_path.name != "test_backend.py"
    ours = collection_path.name.startswith("test_") or collection_path.name == "interpreted"
    return True if TOO_OLD and here and ours else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``-n`` hands out files whole, as far as it can: what a file's tests share is made once."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks `ANY_TORCH`. Tests of minutes come first: at the end, one process would be left alone
    with them. The backends of a case follow each other: they share what it is compared with."""
    any_torch = [Path(__file__).parent / name for name in ANY_TORCH]
    for item in items:
        if any(item.path.is_relative_to(path) for path in any_torch):
            item.add_marker("any_torch")
    slow = ("test_interpreted.py", "test_races.py")
    places: dict[str, int] = {}

    def place(item: pytest.Item) -> tuple[bool, int]:
        case = re.sub(rf"\[({'|'.join(BACKENDS)})-", "[", item.nodeid)
        return item.path.name not in slow, places.setdefault(case, len(places))

    items.sort(key=place)


def why_unavailable(name: str) -> str | None:
    from dmlap_kernels.backends.registry import backends

    known = backends()
    return known[name].unavailable() if name in known else "not registered"


@pytest.fixture(autouse=True, scope="session")
def no_cache_of_this_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What was proved and measured here before decides nothing, and nothing is left behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMLAP_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def usual_precision() -> Iterator[None]:
    """A test that leaves PyTorch's precision of products changed would fail others, not itself."""
    yield
    if (left := matmul_precision()) != "highest":
        torch.set_float32_matmul_precision("highest")
        pytest.fail(f"the test left the precision of products at {left!r}")


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """What `torch.empty` returns holds NaN, or the largest integer, until something is written:
    results that a kernel leaves out show."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend for CPU tensors; a skip, or a failure if DMLAP_REQUIRE_NATIVE=1, without it."""
    reason = why_unavailable(request.param)
    if reason is not None:
        message = f"backend {request.param!r} does not run here: {reason}"
        if os.environ.get("DMLAP_REQUIRE_NATIVE") == "1" or request.param == "torch":
            pytest.fail(message)
        pytest.skip(message)
    return request.param


@pytest.fixture
def native() -> str:
    """The name of the native backend, for tests that only make sense there."""
    reason = why_unavailable("cpu")
    if reason is None:
        return "cpu"
    if os.environ.get("DMLAP_REQUIRE_NATIVE") == "1":
        pytest.fail(f"backend 'cpu' does not run here: {reason}")
    pytest.skip(f"backend 'cpu' does not run here: {reason}")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The directory of data sets named by DMLAP_DATA."""
    path = os.environ.get("DMLAP_DATA")
    if not path:
        pytest.skip("set DMLAP_DATA to a directory of data sets to run this test")
    if not Path(path).is_dir():
        pytest.fail(f"DMLAP_DATA={path!r} is not a directory")
    return Path(path)
