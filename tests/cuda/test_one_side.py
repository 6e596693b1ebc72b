"""A side that needs no gradient costs backward no launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dmlap_kernels.backends import registry
from dmlap_kernels.backends.cuda.cuda_sweeps import CudaSweeps
from tests.cuda.conftest import EmulatedBackend
from tests.losses.calls import CALLS, Call
from tests.losses.one_side import check_one_side


class Noting:
    """The extension, with a note of every launch."""

    def __init__(self, extension: Any, launches: list[str]) -> None:
        self._extension, self._launches = extension, launches

    def __getattr__(self, name: str) -> Callable[..., Any]:
        found = getattr(self._extension, name)

        def noted(*arguments: Any) -> Any:
            if not name.endswith(("_workspace", "_splits", "_groups")):
                self._launches.append(name)
            return found(*arguments)

        return noted


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.id)
def test_one_side(
    call: Call, extension: Any, emulated_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches: list[str] = []
    backend = EmulatedBackend(CudaSweeps(Noting(extension, launches)))
    monkeypatch.setitem(registry.backends(), emulated_backend, backend)
    x, labels, y, ref_labels = call.draw(refs=True)
    try:
        call(x, labels, y, ref_labels, backend=emulated_backend)
    except ValueError as refusal:
        pytest.skip(str(refusal))
    check_one_side(call, emulated_backend, launches, monkeypatch)
