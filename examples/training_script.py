"""The shape of timm's training script: `loss_fn(output, target)`, autocast, accumulation.

The loss is a module like any other criterion there; mixup and label smoothing are for classifiers
and stay off.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dmlap_kernels.evaluation import retrieval_metrics
from dmlap_kernels.losses import MultiSimilarityLoss
from dmlap_kernels.trainer import PinnedBatchSampler


def classes(first: int, count: int, samples: int = 8) -> tuple[Tensor, Tensor]:
    """Rows of 64 features: 8 tell the class, 56 are louder noise."""
    random = torch.Generator().manual_seed(first)
    labels = torch.arange(first, first + count).repeat_interleave(samples)
    signal = torch.randn(count, 8, generator=random).repeat_interleave(samples, 0)
    signal += 0.3 * torch.randn(len(labels), 8, generator=random)
    noise = 2 * torch.randn(len(labels), 56, generator=random)
    return torch.cat((signal, noise), dim=1), labels


def train_one_epoch(model, loader, optimizer, loss_fn, scaler, accumulate: int = 1) -> None:
    model.train()
    for step, (inputs, target) in enumerate(loader):
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
            output = model(inputs)
            loss = loss_fn(output, target) / accumulate
        scaler.scale(loss).backward()
        if (step + 1) % accumulate == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


def main() -> tuple[float, float]:
    """Recall@1 on unseen classes before and after training."""
    torch.manual_seed(0)
    data, test = classes(0, 100), classes(100, 50)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    sampler = PinnedBatchSampler(data[1], 100, classes_per_batch=16, samples_per_class=4)
    loader = DataLoader(TensorDataset(*data), batch_sampler=sampler)
    scaler = torch.amp.GradScaler("cpu", enabled=False)  # bfloat16 needs none
    before = retrieval_metrics(model(test[0]).detach(), test[1])["recall@1"]
    for _ in range(3):
        train_one_epoch(model, loader, optimizer, MultiSimilarityLoss(), scaler)
    return before, retrieval_metrics(model(test[0]).detach(), test[1])["recall@1"]


if __name__ == "__main__":
    print("recall@1 before and after: {:.3f}, {:.3f}".format(*main()))
