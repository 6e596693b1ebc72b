"""A loss of one's own: weighted anchors, and a formula of the pairs that `PairStats` names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlap_kernels import fused_sup_con_loss
from dmlap_kernels.evaluation import retrieval_metrics


def classes(first: int, count: int, samples: int = 8) -> tuple[Tensor, Tensor]:
    """Rows of 64 features: 8 tell the class, 56 are louder noise."""
    random = torch.Generator().manual_seed(first)
    labels = torch.arange(first, first + count).repeat_interleave(samples)
    signal = torch.randn(count, 8, generator=random).repeat_interleave(samples, 0)
    signal += 0.3 * torch.randn(len(labels), 8, generator=random)
    noise = 2 * torch.randn(len(labels), 56, generator=random)
    return torch.cat((signal, noise), dim=1), labels


def own_loss(embeddings: Tensor, labels: Tensor) -> Tensor:
    """SupCon that attends to hard anchors, plus the ratio of the hardest two distances.

    No B x B matrix is made: the library finds the hardest pairs in the same pass, and what is
    written here looks at three rows an anchor.
    """
    each, stats = fused_sup_con_loss(embeddings, labels, reduction="none", return_stats=True)
    focal = ((1 - torch.exp(-each.detach())) * each).mean()
    some = (stats.hardest_positive >= 0) & (stats.hardest_negative >= 0)  # -1: has none
    anchors = F.normalize(embeddings)
    positives = anchors[stats.hardest_positive[some]]
    negatives = anchors[stats.hardest_negative[some]]
    far = (anchors[some] - positives).norm(dim=1).clamp_min(1e-6)
    near = (anchors[some] - negatives).norm(dim=1).clamp_min(1e-6)
    return focal + 0.1 * F.softplus(far.log() - near.log()).mean()


def main() -> tuple[float, float]:
    """Recall@1 on unseen classes before and after training."""
    torch.manual_seed(0)
    inputs, labels = classes(0, 100)
    test = classes(100, 50)
    encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    before = retrieval_metrics(encoder(test[0]).detach(), test[1])["recall@1"]
    for _ in range(300):
        rows = torch.randint(len(inputs), (128,))
        optimizer.zero_grad()
        own_loss(encoder(inputs[rows]), labels[rows]).backward()
        optimizer.step()
    return before, retrieval_metrics(encoder(test[0]).detach(), test[1])["recall@1"]


if __name__ == "__main__":
    print("recall@1 before and after: {:.3f}, {:.3f}".format(*main()))
