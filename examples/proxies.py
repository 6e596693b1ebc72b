"""Proxies: a learnable row for each class, so that batches need no two samples of one class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmlap_kernels.evaluation import retrieval_metrics
from dmlap_kernels.losses import ProxyAnchorLoss


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
    criterion = ProxyAnchorLoss(num_classes=100, embedding_size=32)
    # Proxies see few samples of their class, so they learn faster than the encoder.
    optimizer = torch.optim.Adam(
        [{"params": encoder.parameters()}, {"params": criterion.parameters(), "lr": 1e-1}], lr=1e-2
    )

    def recall() -> float:
        with torch.no_grad():
            found = encoder(test_inputs)
        return retrieval_metrics(found, test_labels, distance="cosine")["recall@1"]

    before = recall()
    for _ in range(300):
        rows = torch.randint(len(inputs), (64,))
        loss = criterion(encoder(inputs[rows]), labels[rows])  # labels are 0..num_classes - 1
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, recall()


if __name__ == "__main__":
    print("recall@1 before and after: {:.3f}, {:.3f}".format(*main()))
