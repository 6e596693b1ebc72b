"""The encoder of timm: head, normalisation, frozen batch normalisation; and timm itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dmlap_kernels.encoders import IMAGENET_MEAN, IMAGENET_STD, TimmEncoder
from dmlap_kernels.extras import MissingExtra


class Backbone(nn.Module):
    """Channel means, and whatever batch normalisation makes of them."""

    num_features = 3

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(images).mean((2, 3))


def _images(channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(4, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_images_are_normalised_as_for_imagenet() -> None:
    encoder = TimmEncoder(embedding_dim=5, backbone=Backbone(), normalize=False)
    means = _images().mean((2, 3))
    expected = (means - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    assert torch.allclose(encoder(_images()), encoder.head(expected), atol=1e-5)


def test_images_are_normalised_as_the_weights_expect() -> None:
    backbone = Backbone()
    backbone.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    encoder = TimmEncoder(embedding_dim=5, backbone=backbone, normalize=False)
    expected = encoder.head((_images().mean((2, 3)) - 0.5) / 0.5)
    assert torch.allclose(encoder(_images()), expected, atol=1e-5)


def test_embeddings_have_the_length_and_the_norm_asked_for() -> None:
    embeddings = TimmEncoder(embedding_dim=7, backbone=Backbone())(_images())
    assert embeddings.shape == (4, 7)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(4))
    with pytest.raises(ValueError, match="embedding_dim must be at least 1, got 0"):
        TimmEncoder(embedding_dim=0, backbone=Backbone())


def test_grey_images_are_three_equal_channels() -> None:
    encoder = TimmEncoder(embedding_dim=4, backbone=Backbone())
    grey = _images(1)
    assert torch.equal(encoder(grey), encoder(grey.repeat(1, 3, 1, 1)))


def test_a_pooled_head_decides_the_number_of_features() -> None:
    backbone = Backbone()
    backbone.num_features, backbone.head_hidden_size = 9, 3
    assert TimmEncoder(backbone=backbone).head.in_features == 3


@pytest.mark.parametrize("frozen", [False, True])
def test_batch_normalisation_can_be_frozen(frozen: bool) -> None:
    torch.manual_seed(0)
    encoder = TimmEncoder(embedding_dim=4, backbone=Backbone(norm=True), freeze_batch_norm=frozen)
    norm = encoder.backbone.norm
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    for _ in range(2):
        # As the trainer does around an evaluation.
        encoder.eval()
        encoder.train()
        encoder(_images()).sum().backward()
    after = norm.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before) == frozen
    assert norm.training != frozen and encoder.head.training
    assert (norm.weight.grad is None) == frozen and encoder.head.weight.grad is not None


def test_the_extra_is_named_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"'timm:resnet50' needs timm.*dmlap-kernels\[vision\]"):
        TimmEncoder()


def test_networks_of_timm() -> None:
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(f"timm does not import here: {error}")
    torch.manual_seed(0)
    for name in ("resnet10t", "mobilenetv3_small_050"):
        encoder = TimmEncoder(name, 16, freeze_batch_norm=True)
        images = torch.rand(2, 3, 64, 64)
        assert encoder(images).shape == (2, 16)
        assert encoder.frozen
    with pytest.raises(ValueError, match="encoder must name a model of timm"):
        TimmEncoder("resnet-none")
