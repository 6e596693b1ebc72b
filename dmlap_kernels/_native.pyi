"""The compiled extension: raw addresses and sizes in, nothing owned, the GIL released.

Only `dmlap_kernels.backends` calls it. Arguments are positional. What each function does stands in
``csrc/cpu/kernels.h``, and for ``cuda_*``, which a build without CUDA lacks, in
``csrc/include/dmlap/cuda``.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

# The address of a tensor's first element, 0 for none.
_Address: TypeAlias = int
_Addresses: TypeAlias = Sequence[int]
_Sizes: TypeAlias = Sequence[int]

# What forward keeps for the backward of the same call; a capsule.
_Kept: TypeAlias = Any

def build_info() -> str: ...
def simd_level() -> str: ...
def simd_levels() -> list[str]: ...
def losses() -> dict[str, int]: ...
def distances() -> dict[str, int]: ...
def reductions() -> dict[str, int]: ...
def saved_size(loss: int, self: bool, is_double: bool) -> tuple[int, int, int, int, bool]: ...
def saved_bytes(loss: int, nx: int, ny: int, self: bool, is_double: bool) -> int: ...
def forward(
    is_double: bool,
    x: _Address,
    nx: int,
    x_stride: int,
    y: _Address,
    ny: int,
    y_stride: int,
    dim: int,
    self: bool,
    distance: int,
    normalize: bool,
    threads: int,
    x_labels: _Address,
    y_labels: _Address,
    loss: int,
    reduction: int,
    params: tuple[float, ...],
    loss_out: _Address,
    saved: _Address,
    counts: _Address,
    values: _Address,
    thresholds: _Address,
    anchor_params: _Address,
    self_index: _Address,
    keep: bool,
) -> _Kept | None: ...
def backward(
    is_double: bool,
    x: _Address,
    nx: int,
    x_stride: int,
    y: _Address,
    ny: int,
    y_stride: int,
    dim: int,
    self: bool,
    distance: int,
    normalize: bool,
    threads: int,
    x_labels: _Address,
    y_labels: _Address,
    loss: int,
    reduction: int,
    params: tuple[float, ...],
    saved: _Address,
    grad: _Address,
    gx: _Address,
    gy: _Address,
    anchor_params: _Address,
    self_index: _Address,
    g_anchor: _Address,
    kept: _Kept | None,
) -> None: ...
def nearest(
    is_double: bool,
    x: _Address,
    nx: int,
    x_stride: int,
    y: _Address,
    ny: int,
    y_stride: int,
    dim: int,
    self: bool,
    distance: int,
    normalize: bool,
    threads: int,
    k: int,
    distances: _Address,
    indices: _Address,
) -> None: ...
def class_scores(
    is_double: bool,
    x: _Address,
    nx: int,
    x_stride: int,
    y: _Address,
    ny: int,
    y_stride: int,
    dim: int,
    self: bool,
    distance: int,
    normalize: bool,
    threads: int,
    x_labels: _Address,
    y_labels: _Address,
    self_index: _Address,
    thresholds: _Address,
    first: int,
    count: int,
    mean: _Address,
    least: _Address,
    classes: int,
) -> None: ...

# Addresses, sizes, self case, distance, precision, addresses: the fields of cuda::Sides.
_Sides: TypeAlias = tuple[_Addresses, _Sizes, bool, str, str, _Addresses]
# Rate, zero, side, pivot.
_Exponent: TypeAlias = tuple[float, float, int, float]
# Device, stream.
_Queue: TypeAlias = tuple[int, int]
# Which negatives, the loss's numbers, features, the address of the anchors' numbers.
_Mining: TypeAlias = tuple[str, Sequence[float], int, _Address]
# The kind, margin and smooth and swap of triplets, the tangent of angular.
_WindowRule: TypeAlias = tuple[str, Sequence[float], float]
# The loss's numbers, runs of the centres' classes.
_SoftTripleRule: TypeAlias = tuple[Sequence[float], _Addresses]

def cuda_machine() -> dict[str, Any]: ...
def cuda_sweep_workspace(sides: _Sides) -> int: ...
def cuda_gradient_splits(sides: _Sides) -> int: ...
def cuda_extremes(sides: _Sides, out: _Addresses, workspace: _Address, queue: _Queue) -> None: ...
def cuda_hinge_sums(
    sides: _Sides,
    bounds: _Addresses,
    squared: bool,
    out: _Addresses,
    workspace: _Address,
    queue: _Queue,
) -> None: ...
def cuda_logistic_sums(
    sides: _Sides,
    positive: _Exponent,
    negative: _Exponent,
    out: _Address,
    workspace: _Address,
    queue: _Queue,
) -> None: ...
def cuda_log_sums(
    sides: _Sides,
    positive: _Exponent,
    negative: _Exponent,
    mining: _Addresses,
    out: _Addresses,
    workspace: _Address,
    queue: _Queue,
) -> None: ...
def cuda_pair_terms(
    sides: _Sides,
    kind: str,
    exponent: _Exponent,
    given: _Addresses,
    out: _Addresses,
    workspace: _Address,
    queue: _Queue,
) -> None: ...
def cuda_gradient(
    sides: _Sides,
    kind: str,
    positive: _Exponent,
    negative: _Exponent,
    tables: _Addresses,
    out: _Address,
    workspace: _Address,
    queue: _Queue,
) -> None: ...
def cuda_mined(
    sides: _Sides,
    among: _Sides,
    mining: _Mining,
    window: _Sizes,
    weight: _Address,
    out: _Addresses,
    queue: _Queue,
) -> None: ...
def cuda_mined_gradient(
    sides: _Sides,
    window: _Sizes,
    largest: _Address,
    pairs: _Addresses,
    references: bool,
    out: _Address,
    queue: _Queue,
) -> None: ...
def cuda_window_sums(
    sides: _Sides,
    among: _Sides,
    rule: _WindowRule,
    window: _Sizes,
    weight: _Address,
    out: _Addresses,
    queue: _Queue,
) -> None: ...
def cuda_window_gradient(
    sides: Sequence[_Sides],
    rule: _WindowRule,
    window: _Sizes,
    largest: _Address,
    rows: str,
    given: _Addresses,
    parts: _Address,
    queue: _Queue,
) -> None: ...
def cuda_soft_triple_workspace(sides: _Sides) -> int: ...
def cuda_soft_triple(
    sides: _Sides, rule: _SoftTripleRule, out: _Address, workspace: _Address, queue: _Queue
) -> None: ...
def cuda_soft_triple_gradient(
    sides: _Sides,
    rule: _SoftTripleRule,
    kept: _Addresses,
    centres: bool,
    out: _Address,
    workspace: _Address,
    queue: _Queue,
) -> None: ...
def cuda_class_scores(
    sides: _Sides,
    thresholds: _Address,
    ends: _Addresses,
    classes: _Sizes,
    out: _Addresses,
    queue: _Queue,
) -> None: ...
def cuda_nearest_groups(sides: _Sides) -> int: ...
def cuda_nearest(sides: _Sides, k: int, out: _Addresses, queue: _Queue) -> None: ...
