"""Backward of a call in which anchors or references need no gradient, on the GPU backends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dmlap_kernels.backends.device import hard
from tests.losses.calls import Call


def backward(
    call: Call, backend: str, wanted: tuple[bool, bool], launches: list[str]
) -> tuple[list[Tensor | None], list[str]]:
    """Gradients of embeddings and references, and what the backward half launched."""
    x, labels, y, ref_labels = call.draw(refs=True, rows=20, features=9)
    leaves = [
        rows.requires_grad_(w) for rows, w in zip((x, y), wanted, strict=True) if rows is not None
    ]
    loss = call(x, labels, y, ref_labels, backend=backend)
    launches.clear()
    loss.backward()
    return [leaf.grad for leaf in leaves], list(launches)


def check_one_side(
    call: Call, backend: str, launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``launches`` is where the caller's backend notes the kernels that it starts."""
    add_at = hard.add_at
    monkeypatch.setattr(hard, "add_at", lambda *a: (launches.append("add_at"), add_at(*a))[1])
    both, whole = backward(call, backend, (True, True), launches)
    assert whole
    for wanted in ((True, False), (False, True)):
        found, launched = backward(call, backend, wanted, launches)
        for mine, full, needed in zip(found, both, wanted, strict=True):
            if needed:
                assert mine is not None and full is not None
                assert full.any()
                assert torch.equal(mine, full)
            else:
                assert mine is None
        # The gradient of the one triplet of an anchor takes no kernel but for its references.
        if whole == ["add_at"]:
            assert launched == (["add_at"] if wanted[1] else [])
        else:
            assert len(launched) < len(whole)
