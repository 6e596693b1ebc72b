"""``DMLAP_REQUIRE_GPU=1``: what is skipped there has failed, as a GPU is there to run it."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo
) -> Generator[None, Any, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("DMLAP_REQUIRE_GPU") == "1":
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"DMLAP_REQUIRE_GPU=1, and it was skipped: {reason}"
    return report
