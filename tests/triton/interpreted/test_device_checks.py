"""Checks that both GPU backends share."""

from __future__ import annotations

import pytest

from dmlap_kernels.backends import registry
from tests.losses import device_checks as checks
from tests.losses.losses_table import LOSSES

REFS = pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])


@pytest.mark.parametrize("setting", checks.PRECISIONS)
def test_precision(setting: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checks.check_precision(setting, backend, monkeypatch)


@REFS
@pytest.mark.parametrize("loss", checks.TRIPLETS)
def test_ties(loss: str, refs: bool, backend: str) -> None:
    checks.check_ties(loss, refs, backend)


@REFS
@pytest.mark.parametrize("length", checks.LENGTHS)
@pytest.mark.parametrize("loss", checks.NORMALIZED)
def test_lengths(loss: str, length: float, refs: bool, backend: str) -> None:
    checks.check_lengths(loss, length, refs, backend)


@REFS
def test_single_class(refs: bool, backend: str) -> None:
    checks.check_single_class(refs, backend)


@pytest.mark.parametrize("loss", LOSSES)
def test_lazily_negated(loss: str, backend: str) -> None:
    checks.check_lazily_negated(loss, backend)


@pytest.mark.parametrize("loss", LOSSES)
def test_defaults(loss: str, backend: str) -> None:
    checks.check_defaults(loss, backend)


def test_searches_under_defaults(backend: str) -> None:
    checks.check_searches_under_defaults(backend)


def test_without_memory(backend: str) -> None:
    checks.check_without_memory(registry.backends()[backend])
