"""Tests of the `triton` backend on CPU tensors, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import triton.language as tl
from triton.runtime import interpreter

from dmlap_kernels.backends.triton import configurations

# That of Triton before 3.7 makes numbers of arrays of one element, which NumPy from 2.4 on refuses.
_patch_lang_tensor = interpreter._patch_lang_tensor


def _with_numbers(tensor: Any, *scope: Any) -> None:
    _patch_lang_tensor(tensor, *scope)
    tensor.__index__ = lambda self: int(self.handle.data.item())


interpreter._patch_lang_tensor = _with_numbers

# Where a kernel starts the interpreter replaces the functions of the language, and at each call in
# it again, for which it looks through all of them: half of the time of these tests. Once is enough.
_LANGUAGES = (tl, tl.core)
_patch_lang = interpreter._patch_lang
_run = interpreter.GridExecutor.__call__
_replaced: list[Any] = []


def _patch_once(function: Any) -> Any:
    left = [language for language in _LANGUAGES if language not in _replaced]
    found = [one for one in left if any(one is value for value in function.__globals__.values())]
    _replaced.extend(found)
    return _patch_lang(function) if found else None


def _start(executor: Any, *args: Any, **keywords: Any) -> Any:
    _replaced.clear()
    return _run(executor, *args, **keywords)


interpreter._patch_lang = _patch_once
interpreter.GridExecutor.__call__ = _start


@pytest.fixture(autouse=True)
def products_in_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the features are; `test_panels` has the other way."""
    monkeypatch.setattr(configurations, "PANEL_FEATURES", 1 << 30)


@pytest.fixture
def backend() -> str:
    """For the tests that this directory shares with those of the losses."""
    return "triton"
