"""SoftTriple: anchors against classes of several centres."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.cuda.arguments import Inputs, addresses_of, arguments_of, queue_of
from dmlap_kernels.backends.device.packing import Sides, runs
from dmlap_kernels.backends.device.sweeps import Both


def soft_triple(extension: Any, sides: Sides, numbers: tuple[float, float, float]) -> Tensor:
    """`Sweeps.soft_triple`, of the numbers la, gamma, margin.

    Keeps the logarithm of the sum over the other classes, and the logit of the own one.
    """
    arguments = arguments_of(sides)
    found = sides.x.new_empty(3, sides.anchors)
    size = extension.cuda_soft_triple_workspace(arguments)
    workspace = torch.empty(size, dtype=torch.uint8, device=found.device)
    classes = runs(sides.labels_y, sides.labels_y)
    extension.cuda_soft_triple(
        arguments,
        (numbers, addresses_of(*classes)),
        *addresses_of(found, workspace),
        queue_of(found),
    )
    return found


def soft_triple_gradient(
    extension: Any, sides: Sides, numbers: tuple[float, float, float], kept: Tensor, weight: Tensor
) -> Both:
    """`Sweeps.soft_triple_gradient`."""
    classes = runs(sides.labels_y, sides.labels_y)
    found: list[Tensor | None] = []
    for rows, centres in ((sides, False), (sides.swapped(), True)):
        if not rows.x_grad:
            found.append(None)
            continue
        arguments = arguments_of(rows)
        out = torch.empty_like(rows.x)
        splits = extension.cuda_gradient_splits(arguments)
        parts = out.new_empty((splits, *out.shape) if splits > 1 else 0)
        with Inputs(*kept, weight) as given:
            extension.cuda_soft_triple_gradient(
                arguments,
                (numbers, addresses_of(*classes)),
                given,
                centres,
                *addresses_of(out, parts),
                queue_of(out),
            )
        found.append(out)
    return found[0], found[1]
