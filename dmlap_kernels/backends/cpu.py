"""The `cpu` backend: the compiled sweeps of ``csrc/cpu`` through ``dmlap_kernels._native``."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.problem import (
    DISTANCES,
    REDUCTIONS,
    ClassScores,
    Forward,
    Gradients,
    HardClasses,
    Nearest,
    PairProblem,
    PairSpec,
    PairStats,
    compute_dtype,
)

_LOSSES = {
    "triplet_hard": 0,
    "contrastive": 1,
    "triplet_semihard": 2,
    "margin": 5,
    "multi_similarity": 6,
    "lifted_structure": 7,
    "lifted_structure_original": 8,
    "nt_xent": 9,
    "n_pairs": 10,
    "sup_con": 11,
    "circle": 13,
    "proxy_nca": 14,
    "proxy_anchor": 15,
}
_DISTANCES = {name: i for i, name in enumerate(DISTANCES)}
_REDUCTIONS = {name: i for i, name in enumerate(REDUCTIONS)}
# Elements of the score matrix of a slice of classes in `hard_classes`.
_SCORE_ELEMENTS = 1 << 22


@functools.cache
def native() -> Any:
    """The extension, or as a str the reason why there is none."""
    if importlib.util.find_spec("dmlap_kernels._native") is None:
        return (
            "the extension was not built (DMLAP_NATIVE=0, or the package was not installed); "
            "reinstall with a C++ compiler"
        )
    try:
        from dmlap_kernels import _native
    except ImportError as error:
        return f"the extension does not load: {error}"
    try:
        _native.simd_level()
    except RuntimeError as error:
        return str(error)
    return _native


def _rows(rows: Tensor) -> Tensor:
    """``rows`` as the kernels read them: float32 or float64 with contiguous features."""
    rows = rows.detach().to(compute_dtype(rows.dtype))
    return rows if rows.stride(1) == 1 and rows.stride(0) >= rows.shape[1] else rows.contiguous()


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class CpuBackend:
    """Compiled sweeps for CPU tensors."""

    name = "cpu"

    def unavailable(self) -> str | None:
        found = native()
        return found if isinstance(found, str) else None

    def refuses(self, spec: PairSpec | None, device_type: str, dtype: torch.dtype) -> str | None:
        if device_type != "cpu":
            return f"it serves tensors on the cpu, got tensors on {device_type}"
        if spec is not None and spec.loss not in _LOSSES:
            return f"it has no policy {spec.loss!r}"
        return None

    def saved_like(self, spec: PairSpec, problem: PairProblem) -> Tensor:
        x = problem.x
        size = native().saved_bytes(
            _LOSSES[spec.loss],
            x.shape[0],
            problem.num_refs,
            x.shape[1],
            problem.y is None,
            compute_dtype(x.dtype) == torch.float64,
        )
        return x.new_empty(size, dtype=torch.uint8)

    def forward(self, spec: PairSpec, problem: PairProblem, stats: bool, scores: bool) -> Forward:
        x = _rows(problem.x)
        anchors = x.shape[0]
        loss = x.new_empty(anchors if spec.reduction == "none" else ())
        saved = self.saved_like(spec, problem)
        counts = values = thresholds = None
        if stats or scores:
            counts = torch.empty(2 + 2 * anchors, dtype=torch.int64)
            values = x.new_empty(3)
            thresholds = x.new_empty(anchors)
        anchor_params = _contiguous(problem.anchor_params)
        kept, arguments = _arguments(spec, problem, x)
        native().forward(
            *arguments,
            loss.data_ptr(),
            saved.data_ptr(),
            *(_address(t) for t in (counts, values, thresholds)),
            _address(anchor_params),
        )
        del kept
        if counts is None or values is None or thresholds is None:
            return Forward(loss, saved, None)
        class_scores = _loss_scores(spec, problem, x, thresholds) if scores else None
        return Forward(loss, saved, PairStats.unpack(counts, values, class_scores))

    def backward(
        self, spec: PairSpec, problem: PairProblem, saved: Tensor, grad: Tensor
    ) -> Gradients:
        x = _rows(problem.x)
        gx = torch.empty(x.shape, dtype=x.dtype)
        gy = None if problem.y is None else torch.empty(problem.y.shape, dtype=x.dtype)
        grad = grad.to(x.dtype).contiguous()
        anchor_params = _contiguous(problem.anchor_params)
        g_anchor = None if anchor_params is None else torch.empty_like(anchor_params)
        kept, arguments = _arguments(spec, problem, x)
        native().backward(
            *arguments,
            saved.data_ptr(),
            grad.data_ptr(),
            gx.data_ptr(),
            _address(gy),
            _address(anchor_params),
            _address(g_anchor),
        )
        del kept
        gx = gx.to(problem.x.dtype)
        return Gradients(gx, None if gy is None else gy.to(problem.x.dtype), g_anchor)

    def nearest(
        self, queries: Tensor, refs: Tensor | None, k: int, distance: str, normalize: bool
    ) -> Nearest:
        q = _rows(queries)
        r = q if refs is None else _rows(refs)
        distances = q.new_empty(q.shape[0], k)
        indices = torch.empty(q.shape[0], k, dtype=torch.int64)
        native().nearest(
            *_pairs(q, r, refs is None, distance, normalize),
            k,
            distances.data_ptr(),
            indices.data_ptr(),
        )
        return Nearest(distances, indices)

    def hard_classes(
        self, rows: Tensor, labels: Tensor, k: int, margin: float, distance: str, normalize: bool
    ) -> HardClasses:
        classes = torch.unique(labels)
        if classes.numel() == labels.numel():
            # One row a class: the hardest classes are the nearest rows in label order.
            order = torch.argsort(labels)
            d, index = self.nearest(_rows(rows)[order], None, k, distance, normalize)
            return HardClasses(classes, classes[index], (margin - d).relu(), d)
        x = _rows(rows)
        thresholds = torch.full((x.shape[0],), margin, dtype=x.dtype)
        step = max(1, _SCORE_ELEMENTS // classes.numel())
        parts = []
        for first in range(0, classes.numel(), step):
            count = min(step, classes.numel() - first)
            arguments = _pairs(x, x, True, distance, normalize)
            mean, low = _scores(arguments, labels, labels, thresholds, first, count, classes)
            own = torch.arange(count)
            mean[own, own + first] = -1  # below every score: a class is not its own neighbour
            low[own, own + first] = torch.inf
            by_distance = torch.sort(low, dim=1, stable=True).indices
            ranked = mean.gather(1, by_distance).sort(dim=1, descending=True, stable=True).indices
            best = by_distance.gather(1, ranked[:, :k])
            parts.append((classes[best], mean.gather(1, best), low.gather(1, best)))
        neighbors, scores, distances = (torch.cat(p) for p in zip(*parts, strict=True))
        return HardClasses(classes, neighbors, scores, distances)


def _pairs(x: Tensor, y: Tensor, self_case: bool, distance: str, normalize: bool) -> tuple:
    return (
        x.dtype == torch.float64,
        x.data_ptr(),
        x.shape[0],
        x.stride(0),
        y.data_ptr(),
        y.shape[0],
        y.stride(0),
        x.shape[1],
        self_case,
        _DISTANCES[distance],
        normalize,
        torch.get_num_threads(),
    )


def _arguments(spec: PairSpec, problem: PairProblem, x: Tensor) -> tuple[tuple, tuple]:
    """Tensors to keep alive during the call, and its leading arguments."""
    y = x if problem.y is None else _rows(problem.y)
    labels = problem.labels.contiguous()
    ref_labels = labels if problem.ref_labels is None else problem.ref_labels.contiguous()
    return (y, labels, ref_labels), (
        *_pairs(x, y, problem.y is None, spec.distance, spec.normalize),
        labels.data_ptr(),
        ref_labels.data_ptr(),
        _LOSSES[spec.loss],
        _REDUCTIONS[spec.reduction],
        spec.params,
    )


def _scores(
    arguments: tuple,
    labels: Tensor,
    ref_labels: Tensor,
    thresholds: Tensor,
    first: int,
    count: int,
    ref_classes: Tensor,
) -> tuple[Tensor, Tensor]:
    mean = thresholds.new_empty(count, ref_classes.numel())
    low = torch.empty_like(mean)
    labels, ref_labels = labels.contiguous(), ref_labels.contiguous()
    native().class_scores(
        *arguments,
        labels.data_ptr(),
        ref_labels.data_ptr(),
        thresholds.data_ptr(),
        first,
        count,
        mean.data_ptr(),
        low.data_ptr(),
    )
    return mean, low


def _loss_scores(
    spec: PairSpec, problem: PairProblem, x: Tensor, thresholds: Tensor
) -> ClassScores:
    y_rows, y_labels = problem.ref_side
    y = x if problem.y is None else _rows(y_rows)
    classes = torch.unique(problem.labels)
    ref_classes = torch.unique(y_labels)
    arguments = _pairs(x, y, problem.y is None, spec.distance, spec.normalize)
    mean, low = _scores(
        arguments, problem.labels, y_labels, thresholds, 0, classes.numel(), ref_classes
    )
    return ClassScores(classes, ref_classes, mean, low)
