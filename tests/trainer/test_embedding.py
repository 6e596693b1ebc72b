"""How many images an encoder gets at a time where no gradient is taken."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dmlap_kernels.data import Split
from dmlap_kernels.trainer import Trainer, embed, evaluate
from dmlap_kernels.trainer.embedding import images_at_once
from tests.trainer.helpers import TinyEncoder, quick_config, tiny_data


class Counting(TinyEncoder):
    """Notes the sizes of the batches that it gets in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.training:
            self.sizes.append(len(images))
        return super().forward(images)


def _split(side: int, images: int = 600, channels: int = 3) -> Split:
    pixels = torch.zeros(1, channels, side, side, dtype=torch.uint8).expand(images, -1, -1, -1)
    return Split(pixels, torch.arange(images) // 2, tuple(map(str, range(images // 2))))


@pytest.mark.parametrize(
    ("side", "chunk", "wanted"),
    [
        (28, None, 512),
        (64, None, 341),
        (224, None, 27),
        (2048, None, 1),
        (28, 100, 100),
        (28, 1, 1),
        (224, 100, 27),
        (224, 8, 8),
        (28, 9999, 512),
    ],
)
def test_chunks_and_bytes_bound_them(side: int, chunk: int | None, wanted: int) -> None:
    split = _split(side)
    assert images_at_once(split, chunk) == wanted
    assert wanted * 3 * side * side * 4 <= 16 << 20 or wanted == 1


def test_evaluation_at_the_size_of_photographs_takes_few_at_a_time() -> None:
    class Pixel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.sizes = nn.Parameter(torch.ones(())), []

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.sizes.append(len(images))
            return images[:, :, 0, 0] * self.scale + 1

    encoder = Pixel()
    embed(encoder, _split(224, 60))
    assert encoder.sizes == [27, 27, 6]
    encoder.sizes = []
    evaluate(encoder, _split(224, 60), gallery=_split(224, 60), chunk_size=20)
    assert encoder.sizes == [20] * 6


@pytest.mark.parametrize("chunk", [None, 5])
def test_training_embeds_in_its_chunks_everywhere(chunk: int | None) -> None:
    """In evaluations, in the mining of classes and in the choice of representatives."""
    encoder = Counting()
    config = quick_config(chunk_size=chunk, representative_choice="medoid", steps=8)
    Trainer(config, tiny_data(), encoder=encoder).run()
    assert max(encoder.sizes) == (chunk or 60)


def test_chunks_do_not_change_an_evaluation() -> None:
    encoder, split = TinyEncoder(), tiny_data().test
    torch.testing.assert_close(embed(encoder, split), embed(encoder, split, chunk_size=7))
