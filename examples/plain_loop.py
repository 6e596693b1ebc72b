"""A training loop of one's own: batch-hard triplets, and Recall@1 on classes never trained on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmlap_kernels import fused_triplet_loss
from dmlap_kernels.evaluation import retrieval_metrics


def classes(first: int, count: int, samples: int = 8) -> tuple[Tensor, Tensor]:
    """Rows of 64 features: 8 tell the class, 56 are louder noise."""
    random = torch.Generator().manual_seed(first)
    labels = torch.arange(first, first + count).repeat_interleave(samples)
    signal = torch.randn(count, 8, generator=random).repeat_interleave(samples, 0)
    signal += 0.3 * torch.randn(len(labels), 8, generator=random)
    noise = 2 * torch.randn(len(labels), 56, generator=random)
    return torch.cat((signal, noise), dim=1), labels


def main() -> tuple[float, float]:
    """Recall@1 on unseen classes before and after training."""
    torch.manual_seed(0)
    inputs, labels = classes(0, 100)
    test_inputs, test_labels = classes(100, 50)
    encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)

    def recall() -> float:
        with torch.no_grad():
            return retrieval_metrics(encoder(test_inputs), test_labels)["recall@1"]

    before = recall()
    for step in range(300):
        # 16 classes with 4 samples each, so that every anchor has positives and negatives.
        chosen = torch.randperm(100)[:16, None] * 8 + torch.rand(16, 8).argsort(1)[:, :4]
        rows = chosen.flatten()
        loss, stats = fused_triplet_loss(
            encoder(inputs[rows]), labels[rows], margin=0.2, smooth=True, return_stats=True
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            share = stats.violated / stats.constraints
            print(
                f"step {step + 1}  loss {loss:.3f}  violated {share:.0%}  recall@1 {recall():.3f}"
            )
    return before, recall()


if __name__ == "__main__":
    print("recall@1 before and after: {:.3f}, {:.3f}".format(*main()))
