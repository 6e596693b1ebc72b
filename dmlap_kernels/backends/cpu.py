"""The `cpu` backend: the compiled sweeps of ``csrc/cpu`` through ``dmlap_kernels._native``."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from dmlap_kernels.backends.extension import why_missing
from dmlap_kernels.problem import (
    ClassScores,
    Forward,
    Gradients,
    HardClasses,
    Nearest,
    PairProblem,
    PairSpec,
    PairStats,
)

_REAL = (torch.float32, torch.float64)
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


@functools.cache
def _distances() -> dict[str, int]:
    return native().distances()


@functools.cache
def _reductions() -> dict[str, int]:
    return native().reductions()


def _rows(rows: Tensor) -> Tensor:
    """``rows`` as the kernels read them: float32 or float64 with contiguous features."""
    if _is_dense(rows) and rows.dtype in _REAL:
        return rows
    rows = _plain(rows)
    if rows.dtype.itemsize == 2:
        rows = rows.float()
    row, feature = rows.stride()
    return rows if feature == 1 and row >= rows.shape[1] else rows.contiguous()


def _dense(tensor: Tensor) -> Tensor:
    """``tensor`` as the kernels read labels, numbers of anchors and gradients."""
    return tensor if _is_dense(tensor) else _plain(tensor).contiguous()


def _is_dense(tensor: Tensor) -> bool:
    """Whether it can be read as it is, one value after another."""
    return (
        tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )


def _plain(tensor: Tensor) -> Tensor:
    """``tensor`` with the values that lie in its memory: a sign may be owed to them."""
    if not tensor.is_cpu or tensor.layout != torch.strided:
        raise _no_memory(tensor)
    return tensor.resolve_neg()


def _address(tensor: Tensor | None) -> int:
    """Where the elements lie. Tensors that only stand for others have no memory of the CPU."""
    if tensor is None:
        return 0
    try:
        address = tensor.data_ptr()
    except RuntimeError:
        raise _no_memory(tensor) from None
    if (address == 0 and tensor.numel() != 0) or not tensor.is_cpu:
        raise _no_memory(tensor)
    return address


def _no_memory(tensor: Tensor) -> TypeError:
    return TypeError(
        "backend 'cpu' reads dense tensors that lie in the memory of the CPU, got a "
        f"{type(tensor).__name__} ({tensor.layout}, on {tensor.device}) that does not"
    )


_CPU = torch.device("cpu")


def _empty(shape: int | tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """For results; whatever the default device is."""
    return torch.empty(shape, dtype=dtype, device=_CPU)


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
        if spec is not None and spec.match is not None:
            why = "it finds positives by equal labels, and serves no match"
            return f"{why} (the torch backend serves it)"
        return None

    def saved_like(self, spec: PairSpec, problem: PairProblem) -> Tensor:
        return _empty(_saved_bytes(spec, problem), torch.uint8)

    def forward(self, spec: PairSpec, problem: PairProblem, stats: bool, scores: bool) -> Forward:
        call = _Call(spec, problem)
        keep = problem.x.requires_grad or any(
            t is not None and t.requires_grad
            for t in (problem.y, problem.anchor_params, problem.numbers)
        )
        call.wants_refs = problem.y is not None and problem.y.requires_grad
        anchors = problem.x.shape[0]
        real = call.x.dtype
        loss = _empty(anchors if spec.reduction == "none" else (), real)
        saved = _empty(native().saved_bytes(*call.sizes), torch.uint8)
        if not (stats or scores):
            call.forward(loss, saved, keep, 0, 0, 0)
            return Forward(loss, saved, None, call)
        counts = _empty(2 + 2 * anchors, torch.int64)
        values = _empty(3, real)
        thresholds = _empty(anchors, real)
        call.forward(loss, saved, keep, *map(_address, (counts, values, thresholds)))
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
        found = call.backward(saved, _dense(grad))
        if problem.x.dtype == call.x.dtype:
            return found
        gx, gy = (None if g is None else g.to(problem.x.dtype) for g in found[:2])
        return Gradients(gx, gy, found.anchor_params)

    def parts(self, spec: PairSpec, result: Forward) -> Tensor:
        return _header(result.saved)[2:6].view(2, 2).clone()

    def with_counts(self, spec: PairSpec, saved: Tensor, counts: Tensor) -> Tensor:
        _header(saved)[:2] = counts
        return saved

    def nearest(
        self, queries: Tensor, refs: Tensor | None, k: int, distance: str, normalize: bool
    ) -> Nearest:
        q = _rows(queries)
        r = q if refs is None else _rows(refs)
        distances = _empty((q.shape[0], k), q.dtype)
        indices = _empty((q.shape[0], k), torch.int64)
        native().nearest(
            *_pairs(q, r, refs is None, distance, normalize),
            k,
            _address(distances),
            _address(indices),
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
        thresholds = x.new_full((x.shape[0],), margin)
        step = max(1, _SCORE_ELEMENTS // classes.numel())
        parts = []
        for first in range(0, classes.numel(), step):
            count = min(step, classes.numel() - first)
            arguments = _pairs(x, x, True, distance, normalize)
            mean, low = _scores(arguments, labels, labels, thresholds, first, count, classes)
            own = torch.arange(count, device="cpu")
            mean[own, own + first] = -1  # below every score: a class is not its own neighbour
            low[own, own + first] = torch.inf
            by_distance = torch.sort(low, dim=1, stable=True).indices
            ranked = mean.gather(1, by_distance).sort(dim=1, descending=True, stable=True).indices
            best = by_distance.gather(1, ranked[:, :k])
            parts.append((classes[best], mean.gather(1, best), low.gather(1, best)))
        neighbors, scores, distances = (torch.cat(p) for p in zip(*parts, strict=True))
        return HardClasses(classes, neighbors, scores, distances)


def _header(saved: Tensor) -> Tensor:
    """Denominators, sums and counts of two groups: SavedHeader in csrc/cpu/engine/problem.h."""
    return saved[:48].view(torch.float64)


def _pairs(x: Tensor, y: Tensor, self_case: bool, distance: str, normalize: bool) -> tuple:
    return (
        x.dtype == torch.float64,
        _address(x),
        x.shape[0],
        x.stride(0),
        _address(y),
        y.shape[0],
        y.stride(0),
        x.shape[1],
        self_case,
        _distances()[distance],
        normalize,
        torch.get_num_threads(),
    )


@functools.cache
def _saved_size(loss: str, self_case: bool, is_double: bool) -> tuple[int, int, int, int, bool]:
    """What a loss leaves for its backward: see SavedSize in csrc/cpu/kernels.h."""
    return native().saved_size(_losses()[loss], self_case, is_double)


def _saved_bytes(spec: PairSpec, problem: PairProblem) -> int:
    """Arithmetic alone, so that sizes may be symbols, which stay what they are."""
    rows, refs = problem.x.shape[0], problem.num_refs
    constant, anchor, reference, panel, triangle = _saved_size(
        spec.loss, problem.y is None, problem.x.dtype == torch.float64
    )
    size = constant + anchor * rows + reference * refs
    if panel == 0:
        return size
    columns = (refs + panel - 1) // panel
    if triangle:
        return size + columns * (columns + 1) // 2
    return size + (rows + panel - 1) // panel * columns


class _Call:
    """The addresses that a forward and its backward hand to the extension, and their tensors."""

    __slots__ = (
        "arguments",
        "kept",
        "labels",
        "more",
        "params",
        "ref_labels",
        "self_index",
        "sizes",
        "source",
        "wants_refs",
        "x",
        "y",
    )

    def __init__(self, spec: PairSpec, problem: PairProblem) -> None:
        x, labels, y, ref_labels, params, self_index, _ = problem
        self.x = x = _rows(x)
        self.labels = labels = _dense(labels)
        self.y = None if y is None else _rows(y)
        self.ref_labels = None if ref_labels is None else _dense(ref_labels)
        self.params = None if params is None else _dense(params)
        self.self_index = None if self_index is None else _dense(self_index)
        at_x, at_labels, (rows, dim), stride = _address(x), _address(labels), x.shape, x.stride(0)
        refs = at_x, rows, stride
        if self.y is not None:
            refs = _address(self.y), self.y.shape[0], self.y.stride(0)
        loss, is_double = _losses()[spec.loss], x.dtype is torch.float64
        self.arguments = (
            is_double,
            *(at_x, rows, stride),
            *refs,
            dim,
            y is None,
            _distances()[spec.distance],
            spec.normalize,
            torch.get_num_threads(),
            at_labels,
            at_labels if self.ref_labels is None else _address(self.ref_labels),
            loss,
            _reductions()[spec.reduction],
            spec.params,
        )
        # What `saved_bytes` takes.
        self.sizes = loss, rows, refs[1], y is None, is_double
        self.more = _address(self.params), _address(self.self_index)
        self.source = _addresses(problem)
        self.kept: Any = None  # what the forward sweep leaves for the backward sweep
        # A memory bank needs no gradient: a backward that knows of it writes none.
        self.wants_refs = self.y is not None

    def serves(self, problem: PairProblem) -> bool:
        """Whether the tensors of ``problem`` are still where they were."""
        return self.source == _addresses(problem)

    def forward(self, loss: Tensor, saved: Tensor, keep: bool, *statistics: int) -> None:
        results = _address(loss), _address(saved), *statistics
        self.kept = native().forward(*self.arguments, *results, *self.more, keep)

    def backward(self, saved: Tensor, grad: Tensor) -> Gradients:
        gx, gy = _empty_like(self.x), None
        if self.y is not None and self.wants_refs:
            gy = _empty_like(self.y)
        g_anchor = None if self.params is None else torch.empty_like(self.params)
        native().backward(
            *self.arguments,
            _address(saved),
            _address(grad),
            _address(gx),
            _address(gy),
            *self.more,
            _address(g_anchor),
            self.kept,
        )
        return Gradients(gx, gy, g_anchor)


def _addresses(problem: PairProblem) -> list[int]:
    return [_address(tensor) for tensor in problem if tensor is not None]


def _empty_like(rows: Tensor) -> Tensor:
    """For gradients, whatever the strides of ``rows`` are."""
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


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
    labels, ref_labels = _dense(labels), _dense(ref_labels)
    itself = None if self_index is None else _dense(self_index)
    native().class_scores(
        *arguments,
        _address(labels),
        _address(ref_labels),
        _address(itself),
        _address(thresholds),
        first,
        count,
        _address(mean),
        _address(low),
        ref_classes.numel(),
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
