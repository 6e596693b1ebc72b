"""Lightning: DMLAP's batches, which its Trainer must not share out a second time."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dmlap_kernels.evaluation import retrieval_metrics
from dmlap_kernels.losses import TripletLoss
from dmlap_kernels.trainer import PinnedBatchSampler


def classes(first: int, count: int, samples: int = 8) -> tuple[Tensor, Tensor]:
    """Rows of 64 features: 8 tell the class, 56 are louder noise."""
    random = torch.Generator().manual_seed(first)
    labels = torch.arange(first, first + count).repeat_interleave(samples)
    signal = torch.randn(count, 8, generator=random).repeat_interleave(samples, 0)
    signal += 0.3 * torch.randn(len(labels), 8, generator=random)
    noise = 2 * torch.randn(len(labels), 56, generator=random)
    return torch.cat((signal, noise), dim=1), labels


class Embedding(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        self.criterion = TripletLoss(margin=0.2, smooth=True)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, labels = batch
        return self.criterion(self.encoder(inputs), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main(**options: Any) -> tuple[float, float]:
    """Recall@1 on unseen classes before and after training."""
    lightning.seed_everything(0, verbose=False)
    data, test = classes(0, 100), classes(100, 50)
    # Each process draws its own classes, and 16 of them with 4 samples each for a batch.
    sampler = PinnedBatchSampler(data[1], 300, classes_per_batch=16, samples_per_class=4)
    loader = DataLoader(TensorDataset(*data), batch_sampler=sampler)
    model = Embedding()
    before = retrieval_metrics(model.encoder(test[0]).detach(), test[1])["recall@1"]
    options = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, **options}
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = lightning.Trainer(
        use_distributed_sampler=False, **dict.fromkeys(quiet, False) | options
    )
    trainer.fit(model, loader)
    return before, retrieval_metrics(model.encoder(test[0]).detach(), test[1])["recall@1"]


if __name__ == "__main__":
    print("recall@1 before and after: {:.3f}, {:.3f}".format(*main()))
