"""References that need no gradient: a memory bank. Their gradient is left out of the work."""

from __future__ import annotations

import pytest
import torch

from tests.losses.calls import EVERY_CALL, Call

# Few anchors, few references, and so many of both that they span several blocks of either side.
SHAPES = [(9, 1300), (1300, 40), (500, 700)]


@EVERY_CALL
@pytest.mark.parametrize(("anchors", "refs"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_the_anchors_get_the_same_gradient(
    call: Call, anchors: int, refs: int, dtype: torch.dtype, native: str
) -> None:
    g = torch.Generator().manual_seed(anchors)
    x = torch.randn(anchors, 20, generator=g, dtype=dtype)
    y = torch.randn(refs, 20, generator=g, dtype=dtype)
    labels = torch.randint(0, 11, (anchors,), generator=g)
    ref_labels = torch.randint(0, 11, (refs,), generator=g)
    found = []
    for wanted in (True, False):
        mine, bank = x.clone().requires_grad_(), y.clone().requires_grad_(wanted)
        call(mine, labels, bank, ref_labels, backend=native).backward()
        assert mine.grad is not None
        assert (bank.grad is not None) == wanted
        found.append(mine.grad)
    assert found[0].abs().max() > 0
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance * found[0].abs().max().item())


def test_anchors_that_need_none_leave_the_references_theirs(native: str) -> None:
    call = Call("contrastive", {"neg_margin": 5.0})
    x, labels, y, ref_labels = call.draw(refs=True)
    assert y is not None
    bank = y.requires_grad_()
    call(x, labels, bank, ref_labels, backend=native).backward()
    assert bank.grad is not None and bank.grad.abs().max() > 0


def test_a_second_backward_agrees(native: str) -> None:
    """It does without what the first one left behind, and takes every gradient."""
    call = Call("sup_con", {"temperature": 0.2})
    x, labels, y, ref_labels = call.draw(refs=True)
    assert x is not None
    x.requires_grad_()
    loss = call(x, labels, y, ref_labels, backend=native)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(first, second)
