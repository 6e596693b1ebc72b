"""The `cpu` backend: the compiled sweeps of ``csrc/cpu`` through ``dmlap_kernels._native``."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.extension import why_missing
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
)

_DISTANCES = {name: i for i, name in enumerate(DISTANCES)}
_REDUCTIONS = {name: i for i, name in enumerate(REDUCTIONS)}
# Elements of the score matrix of a slice of classes in `hard_classes`.
_SCORE_ELEMENTS = 1 << 22


@functools.cache
def native() -> Any:
    """The extension, or as a str the reason why there is none."""
    if reason := why_missing():
        return reason
    try:
        from dmlap_kernels import _native
    except ImportError as error:
        return f"the extension does not load: {error}; reinstall it, built on this machine"
    try:
        _native.simd_level()
    except RuntimeError as error:
        return str(error)
    return _native


@functools.cache
def _losses() -> dict[str, int]:
    """The numbers by which the extension knows its losses."""
    return native().losses()


def _rows(rows: Tensor) -> Tensor:
    """``rows`` as the kernels read them: float32 or float64 with contiguous features."""
    if rows.dtype.itemsize == 2:
        rows = rows.float()
    row, feature = rows.stride()
    return rows if feature == 1 and row >= rows.shape[1] else rows.contiguous()


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
        if spec is not None and spec.loss not in _losses():
            return f"it has no policy {spec.loss!r}"
        return None

    def saved_like(self, spec: PairSpec, problem: PairProblem) -> Tensor:
        return torch.empty(_saved_bytes(spec, problem), dtype=torch.uint8)

    def forward(self, spec: PairSpec, problem: PairProblem, stats: bool, scores: bool) -> Forward:
        call = _Call(spec, problem)
        keep = any(t is not None and t.requires_grad for t in problem)
        call.wants_refs = problem.y is not None and problem.y.requires_grad
        anchors = problem.x.shape[0]
        real = call.x.dtype
        loss = torch.empty(anchors if spec.reduction == "none" else (), dtype=real)
        saved = self.saved_like(spec, problem)
        if not (stats or scores):
            call.forward(loss, saved, keep, 0, 0, 0)
            return Forward(loss, saved, None, call)
        counts = torch.empty(2 + 2 * anchors, dtype=torch.int64)
        values = torch.empty(3, dtype=real)
        thresholds = torch.empty(anchors, dtype=real)
        statistics = counts.data_ptr(), values.data_ptr(), thresholds.data_ptr()
        call.forward(loss, saved, keep, *statistics)
        class_scores = _loss_scores(spec, problem, call.x, thresholds) if scores else None
        return Forward(loss, saved, PairStats.unpack(counts, values, class_scores), call)

    def backward(
        self,
        spec: PairSpec,
        problem: PairProblem,
        saved: Tensor,
        grad: Tensor,
        context: Any = None,
    ) -> Gradients:
        call = context if context and context.serves(problem) else _Call(spec, problem)
        if grad.dtype != call.x.dtype:
            grad = grad.to(call.x.dtype)
        found = call.backward(saved, grad.contiguous())
        if problem.x.dtype == call.x.dtype:
            return found
        gx, gy = (None if g is None else g.to(problem.x.dtype) for g in found[:2])
        return Gradients(gx, gy, found.anchor_params)

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


def _saved_bytes(spec: PairSpec, problem: PairProblem) -> int:
    rows, features = problem.x.shape
    refs, self_case = problem.num_refs, problem.y is None
    is_double = problem.x.dtype == torch.float64
    return native().saved_bytes(_losses()[spec.loss], rows, refs, features, self_case, is_double)


class _Call:
    """The addresses that a forward and its backward hand to the extension, and their tensors."""

    __slots__ = (
        "arguments",
        "kept",
        "labels",
        "params",
        "ref_labels",
        "self_index",
        "source",
        "wants_refs",
        "x",
        "y",
    )

    def __init__(self, spec: PairSpec, problem: PairProblem) -> None:
        x, labels, y, ref_labels, params, self_index, _ = problem
        self.x = x = _rows(x)
        self.y = None if y is None else _rows(y)
        refs = x if self.y is None else self.y
        self.labels = labels.contiguous()
        self.ref_labels = self.labels if ref_labels is None else ref_labels.contiguous()
        self.params = None if params is None else params.contiguous()
        self.self_index = None if self_index is None else self_index.contiguous()
        self.arguments = (
            *_pairs(x, refs, y is None, spec.distance, spec.normalize),
            self.labels.data_ptr(),
            self.ref_labels.data_ptr(),
            _losses()[spec.loss],
            _REDUCTIONS[spec.reduction],
            spec.params,
        )
        self.source = _addresses(problem)
        self.kept: Any = None  # what the forward sweep leaves for the backward sweep
        # A memory bank needs no gradient: a backward that knows of it writes none.
        self.wants_refs = self.y is not None

    def serves(self, problem: PairProblem) -> bool:
        """Whether the tensors of ``problem`` are still where they were."""
        return self.source == _addresses(problem)

    def forward(self, loss: Tensor, saved: Tensor, keep: bool, *statistics: int) -> None:
        results = loss.data_ptr(), saved.data_ptr(), *statistics
        itself = _address(self.self_index)
        self.kept = native().forward(*self.arguments, *results, _address(self.params), itself, keep)

    def backward(self, saved: Tensor, grad: Tensor) -> Gradients:
        gx = torch.empty(self.x.shape, dtype=self.x.dtype)
        gy = None
        if self.y is not None and self.wants_refs:
            gy = torch.empty(self.y.shape, dtype=self.x.dtype)
        g_anchor = None if self.params is None else torch.empty_like(self.params)
        native().backward(
            *self.arguments,
            saved.data_ptr(),
            grad.data_ptr(),
            gx.data_ptr(),
            _address(gy),
            _address(self.params),
            _address(self.self_index),
            _address(g_anchor),
            self.kept,
        )
        return Gradients(gx, gy, g_anchor)


def _addresses(problem: PairProblem) -> list[int]:
    return [_address(tensor) for tensor in problem]


def _scores(
    arguments: tuple,
    labels: Tensor,
    ref_labels: Tensor,
    thresholds: Tensor,
    first: int,
    count: int,
    ref_classes: Tensor,
    self_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    mean = thresholds.new_empty(count, ref_classes.numel())
    low = torch.empty_like(mean)
    labels, ref_labels = labels.contiguous(), ref_labels.contiguous()
    itself = None if self_index is None else self_index.contiguous()
    native().class_scores(
        *arguments,
        labels.data_ptr(),
        ref_labels.data_ptr(),
        _address(itself),
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
        arguments,
        problem.labels,
        y_labels,
        thresholds,
        0,
        classes.numel(),
        ref_classes,
        problem.self_index,
    )
    return ClassScores(classes, ref_classes, mean, low)
