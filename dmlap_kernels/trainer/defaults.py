"""The defaults of options that stand in several places, here once.

Where the numbers come from is told by `TrainConfig`.
"""

from __future__ import annotations

LOSS = "contrastive"
SEED = 0
DEVICE = "auto"

CLASSES_PER_BATCH = 24
SAMPLES_PER_CLASS = 4
REPRESENTATIVES_PER_CLASS = 1

PROJECTION_STEPS = 25
PROXIMAL_WEIGHT = 2e-4
PROXIMAL_DECAY = 1.0
IN_BATCH_WEIGHT = 1.0
BETWEEN_WEIGHT = 0.0
SIDE = "references"

HARD_SHARE = 0.25
HARD_WARMUP = 0
HARD_SEARCH = "exact"

CHECKPOINT_EVERY = 200
