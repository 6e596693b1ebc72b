"""The host's time of a step, where launches do nothing."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from benchmarks import host
from benchmarks.candidates import LOSSES
from dmlap_kernels.backends import registry
from dmlap_kernels.backends.triton import configurations

if configurations.INTERPRETED:
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)


def test_both_sides_run_and_are_counted() -> None:
    backend = registry.backends()["triton"]
    before = backend.unavailable()
    found = host.measured("sup-con", 2)
    assert not found.absent
    # What `tests.triton.test_counts` bounds, and a gradient of 1 that autograd starts from.
    assert 7 <= found.operations["triton"] <= 9 < 30 < found.operations["eager"]
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert found.faster == found.seconds["eager"] / found.seconds["triton"]
    row = host.render([found]).splitlines()[-1]
    assert row.startswith("| sup-con | ") and f"({found.operations['triton']})" in row
    assert backend.unavailable() == before


def test_launches_are_looked_up_again() -> None:
    """Triton is asked for kernels by the first step alone, as on a device."""
    with host.nowhere() as launched:
        step = host.step_of("sup-con", "triton")
        step()
        first = launched[:]
        launched.clear()
        loss, _ = step()
    assert loss.shape == () and "weights_of_panel_kernel" in launched and launched == first


def test_what_does_not_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*tensors: object, **options: object) -> None:
        raise RuntimeError("no such operator\nmore")

    row = LOSSES["sup-con"]
    monkeypatch.setitem(LOSSES, "sup-con", row.__class__(**vars(row) | {"eager": broken}))
    found = host.measured("sup-con", 1)
    assert found.absent == {"eager": "no such operator"} and found.faster is None
    assert host.render([found]).endswith(" | - | - |")
