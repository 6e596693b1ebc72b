"""Checks that both GPU backends share."""

from __future__ import annotations

import pytest
import torch

from dmlap_kernels import fused_triplet_loss
from dmlap_kernels.backends import registry
from dmlap_kernels.backends.cuda import WITHOUT
from tests.losses import device_checks as checks
from tests.losses.losses_table import LOSSES

SERVED = [loss for loss in LOSSES if loss not in WITHOUT]
REFS = pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])


@pytest.mark.parametrize("setting", checks.PRECISIONS)
def test_precision(setting: str, emulated_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checks.check_precision(setting, emulated_backend, monkeypatch)


@REFS
@pytest.mark.parametrize("loss", checks.TRIPLETS)
def test_ties(loss: str, refs: bool, emulated_backend: str) -> None:
    checks.check_ties(loss, refs, emulated_backend)


@REFS
@pytest.mark.parametrize("length", checks.LENGTHS)
@pytest.mark.parametrize("loss", checks.NORMALIZED)
def test_lengths(loss: str, length: float, refs: bool, emulated_backend: str) -> None:
    checks.check_lengths(loss, length, refs, emulated_backend)


@REFS
def test_single_class(refs: bool, emulated_backend: str) -> None:
    checks.check_single_class(refs, emulated_backend)


@pytest.mark.parametrize("loss", SERVED)
def test_lazily_negated(loss: str, emulated_backend: str) -> None:
    checks.check_lazily_negated(loss, emulated_backend)


@pytest.mark.parametrize("loss", SERVED)
def test_defaults(loss: str, emulated_backend: str) -> None:
    checks.check_defaults(loss, emulated_backend)


def test_searches_under_defaults(emulated_backend: str) -> None:
    checks.check_searches_under_defaults(emulated_backend)


def test_without_memory(emulated_backend: str) -> None:
    checks.check_without_memory(registry.backends()[emulated_backend])


@pytest.mark.parametrize("loss", WITHOUT)
def test_losses_without_kernels_are_refused(loss: str, emulated_backend: str) -> None:
    x, labels = torch.randn(6, 4), torch.arange(6) // 2
    mining = loss.removeprefix("triplet_")
    with pytest.raises(ValueError, match="no kernel for .* torch and triton backends serve it"):
        fused_triplet_loss(x, labels, mining=mining, backend=emulated_backend)
