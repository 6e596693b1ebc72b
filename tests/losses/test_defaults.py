"""A class name shared with pytorch-metric-learning has that library's number by default; where it
has not, the docstring says so."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F

from dmlap_kernels.losses import LOSSES, PROXY_LOSSES

peers = pytest.importorskip("pytorch_metric_learning.losses")
SHARED = {
    name: module
    for name, module in (LOSSES | PROXY_LOSSES).items()
    if hasattr(peers, module.__name__)
}


def draw(scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(4)
    labels = torch.arange(32) % 7
    return scale * torch.randn(32, 9, generator=g), labels


@pytest.mark.parametrize("name", SHARED)
def test_defaults_are_those_of_the_peer(name: str) -> None:
    module = SHARED[name]
    sizes = (7, 9) if name in PROXY_LOSSES else ()
    torch.manual_seed(2)
    ours = module(*sizes)
    torch.manual_seed(2)
    peer = getattr(peers, module.__name__)(*sizes)
    x, labels = draw()
    if name == "angular":
        assert "its default gives another number" in inspect.getdoc(module.function)
        assert not torch.isclose(ours(x, labels), peer(x, labels))
        x = F.normalize(x)
    torch.testing.assert_close(ours(x, labels), peer(x, labels), rtol=1e-5, atol=1e-6)


def test_every_shared_name_is_compared() -> None:
    assert len(SHARED) == 14


def test_triplets_differ_and_say_so() -> None:
    text = inspect.getdoc(LOSSES["triplet"].function)
    assert "Its defaults are others" in text
    x, labels = draw()
    peer = peers.TripletMarginLoss()
    ours = LOSSES["triplet"](mining="all", margin=0.05, normalize=True, reduction="mean_nonzero")
    torch.testing.assert_close(ours(x, labels), peer(x, labels), rtol=1e-5, atol=1e-6)


def test_a_batch_of_one_class(backend: str) -> None:
    """By the papers: SupCon's softmax is over the positives alone; the original lifted structure
    has the logarithm of an empty sum, so that its hinge is 0."""
    x, _ = draw(1.0)
    labels = torch.zeros(len(x), dtype=torch.int64)
    x = x.double()
    s = F.normalize(x) @ F.normalize(x).T / 0.1
    s.fill_diagonal_(-torch.inf)
    log_p = (s - s.logsumexp(1, keepdim=True)).masked_fill(torch.eye(len(x)) > 0, 0)
    truth = -(log_p.sum(1) / (len(x) - 1)).mean()
    ours = LOSSES["sup_con"](temperature=0.1, reduction="mean", backend=backend)
    torch.testing.assert_close(ours(x, labels), truth)
    rows = x.requires_grad_()
    lifted = LOSSES["lifted_structure"](form="original", backend=backend)(rows, labels)
    lifted.backward()
    assert lifted == 0 and not rows.grad.any()
