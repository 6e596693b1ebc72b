"""Accelerate: DMLAP's batches through `prepare`, which gives each process every P-th of them."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dmlap_kernels import fused_triplet_loss
from dmlap_kernels.evaluation import retrieval_metrics
from dmlap_kernels.trainer import PinnedBatchSampler


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
    accelerator = Accelerator(cpu=True)
    data, test = classes(0, 100), classes(100, 50)
    encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    # rank="all": the batches of all processes in turn, so that each gets its own.
    sampler = PinnedBatchSampler(
        data[1], 300, classes_per_batch=16, samples_per_class=4, rank="all"
    )
    loader = DataLoader(TensorDataset(*data), batch_sampler=sampler)

    def recall() -> float:
        with torch.no_grad():
            return retrieval_metrics(encoder(test[0]), test[1])["recall@1"]

    before = recall()
    model, optimizer, loader = accelerator.prepare(encoder, optimizer, loader)
    for inputs, labels in loader:
        optimizer.zero_grad()
        loss = fused_triplet_loss(model(inputs), labels, margin=0.2, smooth=True)
        accelerator.backward(loss)
        optimizer.step()
    return before, recall()


if __name__ == "__main__":
    print("recall@1 before and after: {:.3f}, {:.3f}".format(*main()))
