from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dmlap_kernels import fused_contrastive_loss
from dmlap_kernels.encoders import ConvEncoder
from dmlap_kernels.trainer import GradientCache, Trainer
from tests.trainer.helpers import TinyEncoder, quick_config, tiny_data


class Noisy(nn.Module):
    """Dropout and batch normalisation: both would show a second pass that differs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.4), nn.Linear(16, 8)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def problem(rows: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(rows)
    return torch.rand(rows, 1, 8, 8, generator=g), torch.randint(0, 9, (rows,), generator=g)


def loss_of(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return fused_contrastive_loss(embeddings, labels, neg_margin=2.0)


def gradients(encoder: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in encoder.parameters() if p.grad is not None]


@pytest.mark.parametrize("chunk", [1, 7, 25, 50, 64])
def test_an_encoder_of_single_images_gets_the_gradient_of_the_whole_batch(chunk: int) -> None:
    images, labels = problem()
    encoder = TinyEncoder().double()
    loss_of(encoder(images.double()), labels).backward()
    wanted = gradients(encoder)
    encoder.zero_grad()
    cache = GradientCache(encoder, chunk)
    cache.backward(loss_of(cache.embed(images.double()), labels))
    for mine, theirs in zip(gradients(encoder), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_chunks_draw_the_same_noise_and_update_statistics_once() -> None:
    images, labels = problem()
    found = []
    for cached in (False, True):
        torch.manual_seed(3)
        encoder = Noisy().double()
        parts = images.double().split(17)
        if cached:
            cache = GradientCache(encoder, 17)
            cache.backward(loss_of(cache.embed(images.double()), labels))
        else:
            loss_of(torch.cat([encoder(part) for part in parts]), labels).backward()
        found.append([*gradients(encoder), *encoder.buffers(), torch.rand(3)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def test_gradients_add_up() -> None:
    images, labels = problem()
    encoder = TinyEncoder()
    cache = GradientCache(encoder, 20)
    cache.backward(loss_of(cache.embed(images), labels))
    once = gradients(encoder)
    cache.backward(loss_of(cache.embed(images), labels))
    for mine, theirs in zip(gradients(encoder), once, strict=True):
        torch.testing.assert_close(mine, 2 * theirs)


def test_what_it_refuses() -> None:
    images, _ = problem()
    cache = GradientCache(TinyEncoder(), 20)
    with pytest.raises(RuntimeError, match="call embed before each backward"):
        cache.backward(torch.ones((), requires_grad=True))
    cache.embed(images)
    with pytest.raises(RuntimeError, match="must depend on the embeddings"):
        cache.backward(torch.ones((), requires_grad=True))
    for size in (0, True, 2.5):
        with pytest.raises(ValueError, match="chunk_size must be an integer of at least 1, got"):
            GradientCache(TinyEncoder(), size)


def test_the_trainer_takes_the_same_step_in_chunks() -> None:
    found = []
    for chunk in (None, 5):
        torch.manual_seed(0)
        encoder = TinyEncoder()
        trainer = Trainer(quick_config(chunk_size=chunk), tiny_data(), encoder=encoder)
        trainer.train_step()
        found.append(encoder.linear.weight.grad)
        assert len(encoder.seen[0]) == (chunk or 12)
    assert found[0].abs().max() > 0
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


_STEP = """
import resource, torch
from dmlap_kernels import fused_triplet_loss
from dmlap_kernels.encoders import ConvEncoder
from dmlap_kernels.trainer import GradientCache
encoder = ConvEncoder(widths=(8, 8, 8, 8), embedding_dim=32)
images, labels = torch.rand(4096, 1, 28, 28), torch.arange(4096) // 4
cache = GradientCache(encoder, 256)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cache.backward(fused_triplet_loss(cache.embed(images), labels))
assert all(p.grad.isfinite().all() for p in encoder.parameters())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_depends_on_the_chunk(tmp_path: Path) -> None:
    """Of 256 images; the activations of all 4,096 take more than 300 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", _STEP], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200


def test_the_built_in_encoder() -> None:
    images, labels = torch.rand(30, 1, 28, 28), torch.arange(30) // 3
    encoder = ConvEncoder(widths=(4, 4, 4, 4), embedding_dim=8)
    cache = GradientCache(encoder, 10)
    cache.backward(loss_of(cache.embed(images), labels))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert encoder.blocks[1].track_running_stats
