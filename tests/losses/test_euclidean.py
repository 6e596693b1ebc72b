"""The derivative of Euclidean distances on a GPU keeps few differences at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dmlap_kernels.backends.chunked import blocks


class Pieces(TorchDispatchMode):
    """Bytes of the differences that each call of PyTorch's derivative would keep on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        if function is torch.ops.aten._cdist_backward.default:
            _, x, y, *_ = args
            self.bytes.append(x.shape[0] * y.shape[0] * x.shape[1] * x.element_size())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("budget", [100, 4_000, 1 << 20])
def test_pieces_fit_and_add_up(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(23, 5, generator=g, dtype=torch.float64, requires_grad=True)
    y = torch.randn(31, 5, generator=g, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(23, 31, generator=g, dtype=torch.float64)
    with torch.no_grad():
        y[3] = x[2]  # a distance of zero has no gradient
    truth = torch.autograd.grad(torch.cdist(x, y), (x, y), upstream)
    monkeypatch.setattr(blocks, "DIFFERENCE_BYTES", budget)
    monkeypatch.setattr(blocks, "_keeps_differences", lambda device: True)
    with Pieces() as seen:
        found = torch.autograd.grad(blocks.Euclidean.apply(x, y), (x, y), upstream)
    assert max(seen.bytes) <= budget
    for mine, true in zip(found, truth, strict=True):
        torch.testing.assert_close(mine, true)


def test_devices() -> None:
    assert blocks._keeps_differences(torch.device("cuda"))
    assert not blocks._keeps_differences(torch.device("cpu"))
