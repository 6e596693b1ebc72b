"""A memory of past batches: anchors are compared with 512 rows for the price of a small batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmlap_kernels import fused_contrastive_loss
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
    memory, memory_labels = torch.empty(512, 32), torch.empty(512, dtype=torch.int64)

    def recall() -> float:
        with torch.no_grad():
            return retrieval_metrics(encoder(test_inputs), test_labels)["recall@1"]

    before = recall()
    for step in range(300):
        rows = torch.randint(len(inputs), (32,))
        embeddings = encoder(inputs[rows])
        # The batch takes the place of the oldest rows. There it lies among its own references, so
        # self_index says where: otherwise each row would be its own positive, at distance zero.
        places = torch.arange(32 * step, 32 * step + 32) % len(memory)
        memory[places], memory_labels[places] = embeddings.detach(), labels[rows]
        filled = min(32 * (step + 1), len(memory))
        loss = fused_contrastive_loss(
            embeddings, labels[rows], memory[:filled], memory_labels[:filled], self_index=places
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, recall()


if __name__ == "__main__":
    print("recall@1 before and after: {:.3f}, {:.3f}".format(*main()))
