"""What the first stages of a pretrained network make of photographs, kept in a file, and the rest
of the network as the encoder that is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmlap_kernels.data import Dataset, Split, load_data

NETWORK = "tf_efficientnet_lite0"
SIDE = 128  # pixels
KEPT = 5  # stages that stay as they are
CHANNELS = 112  # of what they return
EMBEDDING_DIM = 128
# The scaling of pixels that the weights were trained with.
MEAN = DEVIATION = 0.5
_BATCH = 64


def network(weights: Path) -> nn.Module:
    """EfficientNet-Lite0 of timm with the weights of a file, whose tensors may have other names.

    Raises:
        ValueError: the tensors do not fit one after the other.
    """
    import timm

    model = timm.create_model(NETWORK, num_classes=0)
    own = model.state_dict()
    found = torch.load(weights, map_location="cpu", weights_only=True)
    given = list(found.values())[: len(own)]
    if [t.shape for t in given] != [t.shape for t in own.values()]:
        raise ValueError(f"{weights} does not hold the tensors of {NETWORK} in its order")
    model.load_state_dict(dict(zip(own, given, strict=True)))
    return model.eval()


def prepare(source: str, weights: Path, path: Path, device: str = "cpu") -> None:
    """Write to ``path`` the activations of all photographs of ``source``, and the stages after.

    Of each photograph there are two, as it is and mirrored, one after the other in its channels.
    """
    data = load_data(source, image_size=SIDE)
    model: Any = network(weights).to(device)
    content: dict[str, Any] = {
        "tail": {
            name: value.cpu()
            for part, module in _tail(model).items()
            for name, value in module.state_dict(prefix=f"{part}.").items()
        }
    }
    for name, split in (("train", data.train), ("test", data.test)):
        content[name] = {
            "images": _activations(model, split, device),
            "labels": split.labels,
            "class_names": split.class_names,
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


@torch.no_grad()
def _activations(model: Any, split: Split, device: str) -> Tensor:
    parts = []
    for rows in torch.arange(len(split)).split(_BATCH):
        images = (split.batch(rows).to(device) - MEAN) / DEVIATION
        sides = []
        for view in (images, images.flip(3)):
            hidden = model.bn1(model.conv_stem(view))
            for stage in model.blocks[:KEPT]:
                hidden = stage(hidden)
            sides.append(hidden.half())
        parts.append(torch.cat(sides, 1).cpu())
    return torch.cat(parts)


def read(path: Path) -> tuple[Dataset, dict[str, Tensor]]:
    """The data set of activations, and the weights of the stages after, as `prepare` wrote them."""
    content = torch.load(path, weights_only=True, mmap=True)
    train, test = (Split(**content[name]) for name in ("train", "test"))
    return Dataset("photographs", train, test, augment=mirrored), content["tail"]


def mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every other image, by chance, as if the photograph had been mirrored."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    swapped = images.roll(CHANNELS, 1)
    return torch.where(chosen[:, None, None, None], swapped, images)


def _tail(model: Any) -> dict[str, nn.Module]:
    return {
        "stages": model.blocks[KEPT:],
        "conv_head": model.conv_head,
        "norm": model.bn2,
    }


class Tail(nn.Module):
    """The last stages of the network and a linear head, from activations to unit embeddings.

    Args:
        weights: of the stages, from `read`.
        freeze_batch_norm: batch normalisation keeps its statistics.
    """

    def __init__(
        self,
        weights: dict[str, Tensor],
        freeze_batch_norm: bool = True,
    ) -> None:
        super().__init__()
        import timm

        model: Any = timm.create_model(NETWORK, num_classes=0)
        features = model.num_features
        for name, module in _tail(model).items():
            self.add_module(name, module)
        self.load_state_dict(weights)
        self.head = nn.Linear(features, EMBEDDING_DIM)
        self.frozen = freeze_batch_norm
        self.train()

    def train(self, mode: bool = True) -> Tail:
        super().train(mode)
        if self.frozen:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """(B, 2 * CHANNELS, H, W) activations to (B, F) features before the head."""
        hidden = self.stages(images[:, :CHANNELS].float())
        return self.norm(self.conv_head(hidden)).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.head(self.features(images)), dim=1)


@torch.no_grad()
def begin_as_principal_components(tail: Tail, split: Split) -> None:
    """Make the head of ``tail`` the principal components of a split's features.

    Of fewer images than the head has rows, the rows left over stay as they are.
    """
    device = tail.head.weight.device
    rows = torch.arange(len(split)).split(256)
    tail.eval()
    features = torch.cat([tail.features(split.batch(part).to(device)) for part in rows])
    tail.train()
    mean = features.mean(0)
    _, _, directions = torch.linalg.svd((features - mean).cpu(), full_matrices=False)
    found = directions[:EMBEDDING_DIM].to(device)
    tail.head.weight[: len(found)] = found
    tail.head.bias.copy_(-(tail.head.weight @ mean))
