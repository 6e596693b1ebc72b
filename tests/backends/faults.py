"""Backends with a planted fault, which `auto` must find: plain PyTorch but for that."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from dmlap_kernels.backends.panels import TorchBackend
from dmlap_kernels.problem import Forward, Gradients, PairProblem, PairSpec


class Good(TorchBackend):
    """None."""

    def __init__(self, name: str = "good") -> None:
        self.name = name
        self.calls = 0

    def forward(self, spec: PairSpec, problem: PairProblem, stats: bool, scores: bool) -> Forward:
        self.calls += 1
        return super().forward(spec, problem, stats, scores)


class Wrong(Good):
    """A gradient one hundredth too long."""

    def backward(self, *arguments: Any) -> Gradients:
        x, *others = super().backward(*arguments)
        assert x is not None
        return Gradients(1.01 * x, *others)


class WrongLoss(Good):
    def forward(self, *arguments: Any) -> Forward:
        found = super().forward(*arguments)
        return found._replace(loss=found.loss * 1.01)


class Nan(Good):
    """One element that nobody wrote."""

    def backward(self, *arguments: Any) -> Gradients:
        x, *others = super().backward(*arguments)
        assert x is not None
        x[-1, -1] = torch.nan
        return Gradients(x, *others)


class Restless(Good):
    """Other bits in each run."""

    def backward(self, *arguments: Any) -> Gradients:
        x, *others = super().backward(*arguments)
        assert x is not None
        return Gradients(x * (1 + 1e-6 * self.calls), *others)


class Raising(Good):
    def forward(self, *arguments: Any) -> Forward:
        raise RuntimeError("no kernel image\nis available")


class OutOfMemory(Good):
    def forward(self, *arguments: Any) -> Forward:
        raise torch.OutOfMemoryError("CUDA out of memory")


class Dying(Good):
    """Ends the process, as the crash of a compiler does."""

    def forward(self, *arguments: Any) -> Forward:
        os._exit(66)


class Slow(Good):
    def forward(self, *arguments: Any) -> Forward:
        time.sleep(0.03)
        return super().forward(*arguments)
