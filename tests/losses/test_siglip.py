"""SigLIP's loss against the formula as its authors and open_clip write it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels import fused_siglip_loss


def sigmoid_loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Row i of both belongs together; the sum over all pairs by the number of images."""
    logits = scale * F.normalize(images) @ F.normalize(texts).T + bias
    signs = 2 * torch.eye(len(images), dtype=images.dtype) - 1
    return -F.logsigmoid(signs * logits).sum() / len(images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_against_their_texts(dtype: torch.dtype, backend: str) -> None:
    """The value, and the gradients at both sides, at the logarithm of the scale and at the bias."""
    g = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 33, 12, generator=g, dtype=dtype)
    found = []
    for ours in (True, False):
        rows = images.clone().requires_grad_(), texts.clone().requires_grad_()
        log_scale = torch.tensor(10.0, dtype=dtype).log().requires_grad_()
        bias = torch.tensor(-4.0, dtype=dtype, requires_grad=True)
        if ours:
            names = torch.arange(len(images))
            numbers = {"scale": log_scale.exp(), "bias": bias}
            loss = fused_siglip_loss(rows[0], names, rows[1], names, **numbers, backend=backend)
        else:
            loss = sigmoid_loss(*rows, log_scale.exp(), bias)
        found.append((loss, *torch.autograd.grad(loss, (*rows, log_scale, bias))))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_batch_itself(backend: str) -> None:
    """Every row of a class is a positive; the pair of a row and itself is none."""
    x = F.normalize(torch.randn(9, 5, generator=torch.Generator().manual_seed(1)).double())
    labels = torch.arange(9) % 3
    total = torch.zeros((), dtype=torch.float64)
    for i in range(9):
        for j in range(9):
            if i != j:
                sign = 1 if labels[i] == labels[j] else -1
                total -= torch.sigmoid(sign * (10 * x[i] @ x[j] - 10)).log()
    loss = fused_siglip_loss(x, labels, backend=backend)
    torch.testing.assert_close(loss, total / 9)
    loss = fused_siglip_loss(x, labels, reduction="none", backend=backend)
    torch.testing.assert_close(loss.sum(), total)
