"""Settings of PyTorch that a user may have changed, in the interpreter."""

from __future__ import annotations

import pytest

from tests.losses.settings import PRECISIONS, check_precision


@pytest.mark.parametrize("setting", PRECISIONS)
def test_precision(setting: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_precision(setting, backend, monkeypatch)
