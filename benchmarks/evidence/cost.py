"""What a training step costs with DMLAP, against plain batches."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.evidence.settings import METHODS
from dmlap_kernels.data import load_data
from dmlap_kernels.trainer import TrainConfig, Trainer

STEPS = 200
_WARM_UP = 5


def measure_cost(best: dict[tuple[str, str], dict[str, Any]], source: str, path: Path) -> None:
    """Let the methods take turns, step by step, and write the ratios of their total times."""
    data = load_data(source)
    ratios: dict[str, dict[str, float]] = {}
    for loss in dict.fromkeys(loss for loss, _ in best):
        trainers = {}
        for method in METHODS:
            config = {**best[loss, method], "steps": STEPS + _WARM_UP, "validation": 0.0}
            trainers[method] = Trainer(TrainConfig(data=source, **config), data)
        totals = dict.fromkeys(METHODS, 0.0)
        for step in range(-_WARM_UP, STEPS):
            for method, trainer in trainers.items():
                began = time.perf_counter()
                trainer.train_step()
                if step >= 0:
                    totals[method] += time.perf_counter() - began
        ratios[loss] = {method: total / totals["plain"] for method, total in totals.items()}
        print(loss, ratios[loss], flush=True)
    path.write_text(json.dumps({"steps": STEPS, "ratios": ratios}, indent=2) + "\n")
