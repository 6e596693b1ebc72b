"""Weights, thresholds and classes, made of ``reduction="none"``."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels import fused_cosface_loss, fused_triplet_loss, per_class_mean

G = torch.Generator().manual_seed(0)
X = torch.randn(40, 6, generator=G, dtype=torch.float64)
PROXIES = torch.randn(5, 6, generator=G, dtype=torch.float64)
LABELS = torch.randint(0, 5, (40,), generator=G)
WEIGHT = torch.tensor([0.2, 1.0, 3.0, 0.0, 1.5], dtype=torch.float64)


def test_class_weights_are_those_of_cross_entropy() -> None:
    """Of CosFace without a margin, which is the cross entropy of a cosine classifier."""
    ours, theirs = (X.clone().requires_grad_() for _ in range(2))
    losses = fused_cosface_loss(ours, LABELS, PROXIES, margin=0.0, scale=4.0, reduction="none")
    each = WEIGHT[LABELS]
    value = (losses * each).sum() / each.sum()
    logits = 4 * F.normalize(theirs) @ F.normalize(PROXIES).T
    expected = F.cross_entropy(logits, LABELS, weight=WEIGHT)
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_class_weights_and_thresholds_are_those_of_reducers() -> None:
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import losses, reducers

    found = fused_cosface_loss(X, LABELS, PROXIES, margin=0.2, scale=4.0, reduction="none")
    kept = (found > 1.0) & (found < 3.0)
    assert 0 < kept.sum() < len(kept)
    for reducer, value in (
        (reducers.ClassWeightedReducer(WEIGHT), (found * WEIGHT[LABELS]).mean()),
        (reducers.ThresholdReducer(low=1.0, high=3.0), found[kept].mean()),
    ):
        peer = losses.CosFaceLoss(5, 6, margin=0.2, scale=4.0, reducer=reducer).double()
        peer.W.data = PROXIES.T.clone()
        torch.testing.assert_close(value, peer(X, LABELS))


@pytest.mark.parametrize("num_classes", [None, 5, 9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_means_of_classes(num_classes: int | None, dtype: torch.dtype) -> None:
    losses = torch.rand(40, generator=G, dtype=torch.float64).to(dtype).requires_grad_()
    found = per_class_mean(losses, LABELS, num_classes)
    assert found.means.dtype == dtype and found.counts.sum() == 40
    expected: list[Tensor] = [
        losses[c == LABELS].double().mean() if (c == LABELS).any() else torch.zeros(())
        for c in found.classes
    ]
    torch.testing.assert_close(
        found.means.double(), torch.stack(expected).double(), rtol=1e-2, atol=0
    )
    (grad,) = torch.autograd.grad(found.means.sum(), losses)
    torch.testing.assert_close(grad, (1 / found.counts.clamp(min=1))[LABELS].to(dtype))


def test_classes_alike_and_labels_of_any_kind() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0, 10.0])
    found = per_class_mean(losses, torch.tensor([[7], [7], [7], [-3]]))
    assert found.classes.tolist() == [-3, 7] and found.means.tolist() == [10.0, 2.0]
    beyond = per_class_mean(losses, torch.tensor([1, 1, 2, -3]), 2)
    assert beyond.means.tolist() == [0.0, 1.5] and beyond.counts.tolist() == [0, 2]
    nothing = per_class_mean(losses[:0], torch.empty(0, dtype=torch.int64))
    assert nothing.means.shape == (0,)

    def call(rows: Tensor) -> Tensor:
        return per_class_mean(rows, LABELS[:4], 5).means

    assert torch.equal(torch.compile(call, fullgraph=True, backend="eager")(losses), call(losses))


def test_one_row_of_nan_is_one_class_of_nan() -> None:
    losses = torch.tensor([1.0, float("nan"), 3.0, 10.0])
    means = per_class_mean(losses, torch.tensor([0, 1, 2, 3])).means
    assert means.isnan().tolist() == [False, True, False, False]


def test_bad_input() -> None:
    losses = fused_triplet_loss(X, LABELS, reduction="none")
    with pytest.raises(ValueError, match=r"losses must be \(B,\), got a float64"):
        per_class_mean(losses.mean(), LABELS)
    with pytest.raises(TypeError, match="losses must be a floating tensor"):
        per_class_mean(LABELS, LABELS)
    with pytest.raises(ValueError, match="num_classes must be in"):
        per_class_mean(losses, LABELS, 0)
    with pytest.raises(ValueError, match="labels"):
        per_class_mean(losses, LABELS[:3])
