"""The `cuda` backend: compiled batch-hard mining for float32 tensors on an NVIDIA GPU.

The kernel (``csrc/cuda/hardest_pairs.cuh``) names each anchor's farthest positive and nearest
negative; values and gradients are gathers and scatters of those rows, O(B * D). Scatters add in a
fixed order, nothing waits for the GPU. `PairStats` need every pair and come from the `torch`
backend. It is used only where ``backend="cuda"`` asks for it.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmlap_kernels.backends.chunked import TorchBackend
from dmlap_kernels.backends.cpu import native
from dmlap_kernels.problem import (
    Forward,
    Gradients,
    HardClasses,
    Nearest,
    PairProblem,
    PairSpec,
)

_ONLY = "it offers fused_triplet_loss with mining='hard' and nothing else yet"
# Rows shorter than this are not brought to unit length; torch.nn.functional.normalize's default.
_SHORT = 1e-12


@functools.cache
def machine() -> dict[str, Any]:
    """What the CUDA runtime of the extension sees: versions, devices, and its error if any."""
    extension = native()
    assert not isinstance(extension, str)
    return extension.cuda_machine()


def built_archs() -> list[str]:
    """Capabilities the extension holds code for, such as ``["80", "90"]``; empty without CUDA."""
    extension = native()
    if isinstance(extension, str):
        return []
    return json.loads(extension.build_info())["cuda_archs"] or []


def why_unavailable(archs: list[str], found: dict[str, Any], torch_cuda: str | None) -> str | None:
    """Why a machine as `machine` describes it cannot run code built for ``archs``."""
    driver, runtime = found["driver_version"], found["runtime_version"]
    if driver == 0:
        return "no NVIDIA driver was found"
    if driver // 1000 < runtime // 1000:
        return (
            f"the NVIDIA driver supports CUDA {_version(driver)}, but the extension was built with "
            f"CUDA {_version(runtime)}; install a newer driver, or build with an older nvcc"
        )
    if found["error"]:
        return f"the CUDA devices could not be listed: {found['error']}"
    if not found["devices"]:
        return "no CUDA device is visible"
    capabilities = [device["capability"] for device in found["devices"]]
    if not any(_runs(archs, capability) for capability in capabilities):
        have = ", ".join(sorted({f"{major}.{minor}" for major, minor in capabilities}))
        built = ", ".join(f"{arch[:-1]}.{arch[-1]}" for arch in archs)
        return (
            f"the only capabilities here are {have}, but the extension was built for {built} "
            "(DMLAP_CUDA_ARCHS)"
        )
    if torch_cuda is None:
        return "this PyTorch was built without CUDA"
    return None


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _runs(archs: list[str], capability: tuple[int, int]) -> bool:
    """Machine code serves its own major version from its minor on, PTX everything later."""
    mine = 10 * capability[0] + capability[1]
    exact = [int(arch) for arch in archs if arch.isdigit()]
    same_major = any(arch // 10 == capability[0] and arch <= mine for arch in exact)
    later = archs[-1].isdigit() and int(archs[-1]) <= mine
    return same_major or later or f"{mine}a" in archs or f"{mine}f" in archs


class CudaBackend:
    """Compiled batch-hard mining for float32 CUDA tensors."""

    name = "cuda"

    def unavailable(self) -> str | None:
        extension = native()
        if isinstance(extension, str):
            return extension
        archs = built_archs()
        if not archs:
            return (
                "the extension was built without CUDA (no nvcc was found, or DMLAP_CUDA=0); "
                "reinstall with nvcc on PATH"
            )
        return why_unavailable(archs, machine(), torch.version.cuda)

    def refuses(self, spec: PairSpec | None, device_type: str, dtype: torch.dtype) -> str | None:
        if spec is None or spec.loss != "triplet_hard":
            return _ONLY
        if device_type != "cuda":
            return f"it serves tensors on cuda, got tensors on {device_type}"
        if dtype != torch.float32:
            return f"it serves float32, got {str(dtype).removeprefix('torch.')}"
        return None

    def saved_like(self, spec: PairSpec, problem: PairProblem) -> Tensor:
        return problem.labels.new_empty((2, problem.x.shape[0]))

    def forward(self, spec: PairSpec, problem: PairProblem, stats: bool, scores: bool) -> Forward:
        x, y = _unit_rows(spec, problem)
        mined = mine(*_mining_rows(spec, problem, x, y), *_labels(problem), y is None)
        partners = _partners(x if y is None else y, mined)
        terms, weights = _weighted(spec, mined, _terms(spec, x, *partners))
        loss = terms if spec.reduction == "none" else (terms.double() * weights).sum().float()
        summary = TorchBackend().forward(spec, problem, stats, scores).stats if stats else None
        return Forward(loss + _poison(problem), mined, summary)

    def backward(
        self,
        spec: PairSpec,
        problem: PairProblem,
        saved: Tensor,
        grad: Tensor,
        context: Any = None,
    ) -> Gradients:
        with torch.enable_grad():
            raw = [t.detach().requires_grad_() for t in (problem.x, problem.y) if t is not None]
            x, y = _unit_rows(spec, problem._replace(x=raw[0], y=raw[1] if raw[1:] else None))
            refs = x.detach() if y is None else y.detach()
            leaves = [t.detach().requires_grad_() for t in (x, *_partners(refs, saved))]
            terms, weights = _weighted(spec, saved, _terms(spec, *leaves))
            anchors, *partners = torch.autograd.grad((terms * weights.float() * grad).sum(), leaves)
        scattered = torch.zeros_like(refs)
        if refs.shape[0]:
            # index_put_ sorts before it adds, so that the order of additions is fixed.
            at = saved.clamp(min=0).reshape(-1)
            scattered.index_put_((at,), torch.cat(partners), accumulate=True)
        inner = (anchors + scattered,) if y is None else (anchors, scattered)
        sides = (x,) if y is None else (x, y)
        outer = torch.autograd.grad(sides, raw, inner) if spec.unit_rows else inner
        gradients = [g + _poison(problem) for g in outer]
        return Gradients(gradients[0], gradients[1] if gradients[1:] else None)

    def nearest(
        self, queries: Tensor, refs: Tensor | None, k: int, distance: str, normalize: bool
    ) -> Nearest:
        raise ValueError(f"backend 'cuda' cannot run nearest: {_ONLY}")

    def hard_classes(
        self, rows: Tensor, labels: Tensor, k: int, margin: float, distance: str, normalize: bool
    ) -> HardClasses:
        raise ValueError(f"backend 'cuda' cannot run hard_classes: {_ONLY}")


def mine(x: Tensor, refs: Tensor, labels: Tensor, ref_labels: Tensor, self_case: bool) -> Tensor:
    """Batch-hard mining on the GPU, by squared Euclidean distance.

    Args:
        x: (B, D) float32 on a CUDA device, with its int64 ``labels`` (B,).
        refs: (N, D), with ``ref_labels`` (N,).
        self_case: the pair (i, i) does not exist.

    Returns:
        (2, B) int64: each anchor's farthest positive, then each anchor's nearest negative; -1 if
        there is none. Equal distances go to the lower label, then to the lower index.
    """
    extension = native()
    assert not isinstance(extension, str)
    tensors = [t.contiguous() for t in (x, refs, labels, ref_labels)]
    sizes = x.shape[0], refs.shape[0], x.shape[1]
    distances = x.new_empty(2, x.shape[0])
    mined = labels.new_empty(2, x.shape[0])
    size = extension.cuda_hardest_pairs_workspace(*sizes[:2])
    workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
    extension.cuda_hardest_pairs(
        *(t.data_ptr() for t in tensors),
        *(*sizes, self_case),
        *(t.data_ptr() for t in (*distances, *mined, workspace)),
        x.device.index,
        torch.cuda.current_stream(x.device).cuda_stream,
    )
    return mined


def _labels(problem: PairProblem) -> tuple[Tensor, Tensor]:
    return problem.labels, problem.ref_side[1]


def _mining_rows(
    spec: PairSpec, problem: PairProblem, x: Tensor, y: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Rows (B, D') and (N, D') whose squared Euclidean distances have the order of ``spec``'s.

    Unit rows need nothing for the cosine: |a - b|^2 = 2 - 2 a.b. A row too short to be normalised
    lacks s = 1 - |a|^2 of it, which a coordinate sqrt(s) that the other side does not have adds.
    """
    refs = x if y is None else y
    if spec.distance != "cosine":
        return x, refs
    lack_x = _lack(problem.x, x)
    lack_y = lack_x if y is None else _lack(problem.ref_side[0], refs)
    anchors = torch.cat((x, lack_x, torch.zeros_like(lack_x)), 1)
    return anchors, torch.cat((refs, torch.zeros_like(lack_y), lack_y), 1)


def _lack(raw: Tensor, unit: Tensor) -> Tensor:
    """(B, 1) square root of 1 - |row|^2 where the raw row was too short, else 0."""
    short = torch.linalg.vector_norm(raw, dim=1, keepdim=True) < _SHORT
    missing = 1 - unit.square().sum(1, keepdim=True)
    return torch.where(short, missing.clamp(min=0).sqrt(), 0)


def _unit_rows(spec: PairSpec, problem: PairProblem) -> tuple[Tensor, Tensor | None]:
    """Anchors and references, L2-normalised where the loss asks for it."""
    x, y = problem.x, problem.y
    if spec.unit_rows:
        x = F.normalize(x, eps=_SHORT)
        y = None if y is None else F.normalize(y, eps=_SHORT)
    return x, y


def _partners(refs: Tensor, mined: Tensor) -> tuple[Tensor, Tensor]:
    """The mined rows (B, D); any row for an anchor without one (zeros if there are no rows)."""
    if refs.shape[0] == 0:
        empty = refs.new_zeros(mined.shape[1], refs.shape[1])
        return empty, empty
    positive, negative = refs[mined.clamp(min=0)]
    return positive, negative


def _terms(spec: PairSpec, x: Tensor, p: Tensor, n: Tensor) -> Tensor:
    """The loss of each triplet (B,)."""
    margin, smooth, swap = spec.params
    d_an = _distance(x, n, spec.distance)
    if swap:
        d_an = torch.minimum(d_an, _distance(p, n, spec.distance))
    excess = _distance(x, p, spec.distance) - d_an + margin
    return F.softplus(excess) if smooth else excess.relu()


def _distance(a: Tensor, b: Tensor, distance: str) -> Tensor:
    if distance == "cosine":
        return 1 - (a * b).sum(1)
    squared = (a - b).square().sum(1)
    if distance == "sqeuclidean":
        return squared
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1).sqrt(), squared)


def _weighted(spec: PairSpec, mined: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
    """Terms (B,), 0 where there is no triplet, and their weights (B,) float64 in the loss."""
    valid = (mined >= 0).all(0)
    terms = torch.where(valid, terms, 0)
    weights = valid.double()
    if spec.reduction in ("mean", "mean_nonzero"):
        counted = valid if spec.reduction == "mean" else terms > 0
        weights = weights / counted.sum().clamp(min=1)
    return terms, weights


def _poison(problem: PairProblem) -> Tensor:
    """0, or NaN where an embedding is not finite."""
    poison = problem.x.mul(0).sum()
    return poison if problem.y is None else poison + problem.y.mul(0).sum()
