"""A side that needs no gradient costs backward no launch."""

from __future__ import annotations

import pytest
from triton.runtime.interpreter import InterpretedFunction

from tests.losses.calls import EVERY_CALL, Call
from tests.losses.one_side import check_one_side


@EVERY_CALL
def test_one_side(call: Call, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[str] = []
    select = InterpretedFunction.__getitem__

    def noted(kernel: InterpretedFunction, grid: object) -> object:
        launches.append(kernel.fn.__name__)
        return select(kernel, grid)

    monkeypatch.setattr(InterpretedFunction, "__getitem__", noted)
    check_one_side(call, backend, launches, monkeypatch)
