"""The defaults of options that stand in several places, here once.

Where the numbers come from is told by `TrainConfig`.
"""

from __future__ import annotations

from typing import Any

LOSS = "contrastive"
SEED = 0
DEVICE = "auto"

CLASSES_PER_BATCH = 24
SAMPLES_PER_CLASS = 4
REPRESENTATIVES_PER_CLASS = 1

PROJECTION_STEPS = 25
PROXIMAL_WEIGHT = 2e-4
PROXIMAL_DECAY = 1.0
PROXIMAL_FORM = "gradient"
IN_BATCH_WEIGHT = 1.0
BETWEEN_WEIGHT = 0.0
SIDE = "references"

HARD_SHARE = 0.25
HARD_WARMUP = 0
HARD_SEARCH = "exact"

CHECKPOINT_EVERY = 200

# Whether embeddings have length 1 is the encoder's business, so no loss changes them by default.
_OF_LOSS: dict[str, dict[str, Any]] = {
    "contrastive": {"normalize": False},
    "margin": {"normalize": False},
    "lifted_structure": {"normalize": False, "form": "generalized"},
    "n_pairs": {"normalize": False},
}


def loss_options(loss: str, given: dict[str, Any]) -> dict[str, Any]:
    """The keywords of a loss in the trainer: ``given``, and its defaults where they differ from
    those of the function."""
    return {"reduction": "mean_nonzero", **_OF_LOSS.get(loss, {}), **given}
