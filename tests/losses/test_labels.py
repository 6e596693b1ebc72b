"""Labels and dtypes that can mean one thing only are taken; those of proxies must have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dmlap_kernels
from dmlap_kernels.losses import PROXY_LOSSES
from tests.losses.calls import EVERY_CALL, Call

FORMS: dict[str, Callable[[Tensor], Any]] = {
    "column": lambda t: t[:, None],
    "float32": lambda t: t.float(),
    "bfloat16": lambda t: t.bfloat16(),
    "float-column": lambda t: t.double()[:, None],
    "numpy": lambda t: t.numpy(),
    "numpy-int16": lambda t: t.numpy().astype(np.int16),
    "numpy-float-column": lambda t: t.numpy().astype(np.float64)[:, None],
    "numpy-read-only": lambda t: np.frombuffer(t.numpy().tobytes(), np.int64),
    "numpy-backwards": lambda t: np.ascontiguousarray(t.numpy()[::-1])[::-1],
    "numpy-big-endian": lambda t: t.numpy().astype(">i8"),
    "uint16": lambda t: t.to(torch.uint16),
    "negated-view": lambda t: torch._neg_view(-t),
}


@EVERY_CALL
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_labels(call: Call, form: str, backend: str) -> None:
    x, labels, y, ref_labels = call.draw(True)
    change = FORMS[form]
    found = call(x, change(labels), y, change(ref_labels), backend=backend)
    assert torch.equal(found, call(x, labels, y, ref_labels, backend=backend))


def test_bool_labels(backend: str) -> None:
    x, labels, *_ = Call("triplet").draw(False)
    for given in (labels > 3, (labels > 3).numpy()):
        found = dmlap_kernels.fused_triplet_loss(x, given, backend=backend)
        truth = dmlap_kernels.fused_triplet_loss(x, (labels > 3).long(), backend=backend)
        assert torch.equal(found, truth)


def test_forms_of_labels_of_hard_classes(backend: str) -> None:
    x, labels, *_ = Call("triplet").draw(False)
    truth = dmlap_kernels.hard_classes(x, labels, 2, backend=backend)
    for change in FORMS.values():
        found = dmlap_kernels.hard_classes(x, change(labels), 2, backend=backend)
        assert torch.equal(found.neighbors, truth.neighbors)


@EVERY_CALL
@pytest.mark.parametrize(
    ("batch", "memory", "common"),
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.float16, torch.float32),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_two_dtypes(
    call: Call, batch: torch.dtype, memory: torch.dtype, common: torch.dtype, backend: str
) -> None:
    """The wider one counts, and gradients come back in the dtype of their input."""
    x, labels, y, ref_labels = call.draw(True)
    rows, refs = x.to(batch).requires_grad_(), y.to(memory).requires_grad_()
    value = call(rows, labels, refs, ref_labels, backend=backend)
    truth = call(rows.to(common), labels, refs.to(common), ref_labels, backend=backend)
    assert torch.equal(value, truth)
    value.backward()
    assert rows.grad.dtype == batch and refs.grad.dtype == memory
    found = dmlap_kernels.nearest(rows, refs, 3, backend=backend)
    plain = dmlap_kernels.nearest(rows.to(common), refs.to(common), 3, backend=backend)
    assert torch.equal(found.indices, plain.indices)


@pytest.mark.parametrize("loss", PROXY_LOSSES)
@pytest.mark.parametrize(
    ("bad", "named"), [([0, 205], "label 205"), ([-1, 3], "labels -1, 3"), ([3, 1], "label 3")]
)
def test_modules_with_proxies_refuse_labels_without_one(
    loss: str, bad: list[int], named: str, backend: str
) -> None:
    module = PROXY_LOSSES[loss](3, 4, backend=backend)
    with pytest.raises(
        ValueError, match=rf"proxies has an entry for each label in 0\.\.2, got {named}"
    ):
        module(torch.randn(2, 4), torch.tensor(bad))
    assert module(torch.randn(2, 4), torch.tensor([0, 2])).isfinite()


def test_boundaries_refuse_labels_without_one(backend: str) -> None:
    x, labels = torch.randn(4, 3), torch.tensor([0, 0, 9, 9])
    beta = torch.ones(3)
    with pytest.raises(
        ValueError, match=r"beta has an entry for each label in 0\.\.2, got label 9"
    ):
        dmlap_kernels.fused_margin_loss(x, labels, beta=beta, backend=backend)
