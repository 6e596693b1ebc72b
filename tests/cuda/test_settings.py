"""Settings of PyTorch that a user may have changed, with kernels that run on the CPU."""

from __future__ import annotations

import pytest

from tests.losses.settings import PRECISIONS, check_precision


@pytest.mark.parametrize("setting", PRECISIONS)
def test_precision(setting: str, emulated_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_precision(setting, emulated_backend, monkeypatch)
