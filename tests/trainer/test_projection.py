from __future__ import annotations

import pytest
import torch
from torch import nn

from dmlap_kernels.trainer import Projection


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Conv2d(2, 3, 3)).to(memory_format=torch.channels_last)


def _set_gradients(model: nn.Module) -> list[torch.Tensor]:
    gradients = [torch.randn_like(p) for p in model.parameters()]
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        p.grad = gradient.clone()
    return gradients


def test_the_first_projection_is_free() -> None:
    model = _model()
    projection = Projection(model.parameters(), weight=0.5)
    gradients = _set_gradients(model)
    projection.step()
    assert projection.index == 0
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(p.grad, gradient)


def test_gradient_is_weight_times_difference() -> None:
    model = _model()
    projection = Projection(model.parameters(), weight=0.3)
    centers = [p.detach().clone() for p in model.parameters()]
    projection.end_projection()
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn_like(p)
    gradients = _set_gradients(model)
    projection.step()
    for p, gradient, center in zip(model.parameters(), gradients, centers, strict=True):
        torch.testing.assert_close(p.grad, gradient + 0.3 * (p.detach() - center))
        assert (p.grad - gradient).abs().max() > 0.01


def test_the_center_is_where_the_projection_began() -> None:
    model = _model()
    projection = Projection(model.parameters(), weight=1.0)
    for index in (1, 2):
        with torch.no_grad():
            for p in model.parameters():
                p += index
        began = [p.detach().clone() for p in model.parameters()]
        projection.end_projection()
        with torch.no_grad():
            for p in model.parameters():
                p *= 2
        assert projection.index == index
        assert all(map(torch.equal, projection.centers, began))


def test_weights_without_gradient_are_left_alone() -> None:
    model = _model()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    projection = Projection(model.parameters(), weight=1.0)
    projection.end_projection()
    with torch.no_grad():
        for p in model.parameters():
            p += 1
    projection.step()
    assert all(p.grad is None for p in model.parameters())
    assert len(projection.centers) == 3


def test_the_weight_decays_with_the_projections() -> None:
    projection = Projection(_model().parameters(), weight=0.8, decay=0.5)
    weights = []
    for _ in range(4):
        weights.append(projection.present_weight)
        projection.end_projection()
    assert weights == [0.0, 0.8, 0.4, 0.2]
    with torch.no_grad():
        for p in projection.parameters:
            p += 1
            p.grad = torch.zeros_like(p)
    projection.step()
    torch.testing.assert_close(projection.parameters[0].grad, torch.full((3, 4), 0.1))


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_bad_decay_is_named(decay: float) -> None:
    with pytest.raises(ValueError, match="decay must be from 0 to 1"):
        Projection(_model().parameters(), decay=decay)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_bad_weight_is_named(weight: float) -> None:
    with pytest.raises(ValueError, match="weight must be finite and at least 0"):
        Projection(_model().parameters(), weight=weight)


def test_decoupled_moves_weights_back_by_a_share_of_the_way() -> None:
    model = _model()
    projection = Projection(model.parameters(), weight=0.5, decay=0.5, over=10)
    projection.pull()  # nothing to be tied to yet
    for weight in (0.5, 0.25):
        centers = [p.detach().clone() for p in model.parameters()]
        projection.end_projection()
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn_like(p)
        moved = [(p - c).detach() for p, c in zip(model.parameters(), centers, strict=True)]
        gradients = _set_gradients(model)
        projection.step()  # the gradient stays as it is
        assert all(
            torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True)
        )
        projection.pull(0.6)
        for p, center, way in zip(model.parameters(), centers, moved, strict=True):
            torch.testing.assert_close(p.detach(), center + (1 - 0.6 * weight / 10) * way)


def test_in_the_gradient_nothing_is_moved() -> None:
    model = _model()
    projection = Projection(model.parameters(), weight=0.5)
    projection.end_projection()
    with torch.no_grad():
        for p in model.parameters():
            p += 1
    before = [p.detach().clone() for p in model.parameters()]
    projection.pull()
    assert all(map(torch.equal, before, (p.detach() for p in model.parameters())))


def test_a_projection_has_a_step() -> None:
    with pytest.raises(ValueError, match="over must be at least 1 step, or None, got 0"):
        Projection(_model().parameters(), weight=0.5, over=0)
