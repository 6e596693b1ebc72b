"""Options of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks import kernels, measure
from benchmarks.comparisons import Comparisons
from benchmarks.revision import Refused, Revision
from dmlap_kernels import info


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dmlap")
    group.addoption(
        "--seconds",
        type=float,
        default=0.5,
        help="seconds spent on each candidate of each comparison (default: 0.5)",
    )
    group.addoption(
        "--long",
        action="store_true",
        help="also what takes minutes: time and memory up to 65,536 rows, 60,000 neighbours",
    )
    group.addoption(
        "--all-candidates",
        action="store_true",
        help="torch.compile of every op, and libraries at every number of features",
    )
    group.addoption(
        "--peak", action="store_true", help="measure the peak memory of ops at 4,096 rows"
    )
    group.addoption(
        "--without-kernels",
        action="store_true",
        help="measure a package without its extension: plain PyTorch, by the backend torch",
    )
    group.addoption(
        "--compare-to",
        metavar="REV",
        help="measure ops against the package of this commit, branch or tag, in turn",
    )


def pytest_report_header() -> list[str]:
    return info.headline()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Before the first measurement; no figure is of something else than it says."""
    without = session.config.getoption("--without-kernels")
    if session.items and not session.config.option.collectonly and not without:
        try:
            kernels.require("cpu")
        except kernels.Missing as refusal:
            raise pytest.UsageError(str(refusal)) from None


@pytest.fixture(scope="session")
def seconds(request: pytest.FixtureRequest) -> float:
    return request.config.getoption("--seconds")


@pytest.fixture
def long(request: pytest.FixtureRequest) -> None:
    """Asked for by tests that run with ``--long`` only."""
    if not request.config.getoption("--long"):
        pytest.skip("takes minutes; give --long")


@pytest.fixture(scope="session")
def revision(request: pytest.FixtureRequest) -> Iterator[Revision | None]:
    """That of ``--compare-to``, in a process that lives as long as the session."""
    wanted = request.config.getoption("--compare-to")
    if wanted is None:
        yield None
        return
    try:
        other = Revision(wanted)
    except Refused as refusal:
        pytest.exit(f"nothing is measured: {refusal}", returncode=pytest.ExitCode.USAGE_ERROR)
    measure.summary.append(f"times_revision: ours over {other.commit}, in {other.package}")
    yield other
    other.close()


@pytest.fixture(scope="session")
def comparisons(request: pytest.FixtureRequest, revision: Revision | None) -> Comparisons:
    option = request.config.getoption
    return Comparisons(option("--seconds"), option("--all-candidates"), option("--peak"), revision)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if measure.summary:
        terminalreporter.section("ours")
        for line in measure.summary:
            terminalreporter.write_line(line)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Keep what a reader compares: no host name, no single rounds."""
    output_json["machine_info"] |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for private in ("node", "release"):
        output_json["machine_info"].pop(private, None)
    output_json.pop("commit_info", None)
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)
        entry.pop("options", None)
