"""Tests of the `triton` backend on CPU tensors, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
from triton.runtime import interpreter

from dmlap_kernels.backends.triton import configurations

# That of Triton before 3.7 makes numbers of arrays of one element, which NumPy from 2.4 on refuses.
_patch_lang_tensor = interpreter._patch_lang_tensor


def _with_numbers(tensor: Any, *scope: Any) -> None:
    _patch_lang_tensor(tensor, *scope)
    tensor.__index__ = lambda self: int(self.handle.data.item())


interpreter._patch_lang_tensor = _with_numbers


@pytest.fixture(autouse=True)
def products_in_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the features are; `test_panels` has the other way."""
    monkeypatch.setattr(configurations, "PANEL_FEATURES", 1 << 30)


@pytest.fixture
def backend() -> str:
    """For the tests that this directory shares with those of the losses."""
    return "triton"
