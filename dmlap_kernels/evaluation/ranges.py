"""Embeddings that can be compared: finite, and of a size whose squares are finite and not zero."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlap_kernels import checks

_ROWS_AT_ONCE = 65_536
_NAMED = 5

# Values between 2^-30 and 2^30 are left as they are: sums of their squares fit float32, and so do
# squares of differences that matter. For float64 the same with its own exponents.
_EXPONENTS = {torch.float64: 450}
_EXPONENT = 30
LARGEST = 2.0**_EXPONENT


def check_finite(argument: str, rows: Tensor) -> None:
    """Refuse ``rows`` (N, D) with a NaN or an infinity, naming the rows.

    Raises:
        ValueError: with the first few of them and their number.
    """
    checks.with_data(argument, rows)
    bad: list[int] = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        finite = rows[start : start + _ROWS_AT_ONCE].isfinite().all(1)
        bad += [start + row for row in (~finite).nonzero().flatten().tolist()]
    if bad:
        named = ", ".join(map(str, bad[:_NAMED])) + (", ..." if len(bad) > _NAMED else "")
        which = f"row {named} has" if len(bad) == 1 else f"rows {named} have"
        raise ValueError(
            f"{argument} must be finite, but {which} NaN or infinite values ({len(bad):,} of "
            f"{len(rows):,} rows)"
        )


def in_range(
    x: Tensor, y: Tensor | None, *, directions: bool, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor | None]:
    """Finite rows times powers of two, so that their squared distances neither overflow nor vanish.

    Neighbours and clusters stay what they are: a power of two changes no digit. What is in range is
    returned as it is.

    Args:
        x: (N, D) floating point.
        y: (M, D) or None.
        directions: whether rows are compared by their directions alone, so that each may have a
            factor of its own; else there is one factor for all.
        dtype: what distances are taken in; default: that of ``x``, but at least float32.
    """
    both = [rows for rows in (x, y) if rows is not None and rows.numel()]
    if x.dtype == torch.float16 or not both:  # its largest value is 65,504
        return x, y
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    largest = [rows.abs().amax(1).to(wide) for rows in both]  # [N], [M]
    if not directions:
        most = torch.stack([of_rows.amax() for of_rows in largest]).amax()
        largest = [most[None]] * len(both)
    exponents = [torch.frexp(of_rows).exponent for of_rows in largest]  # 0 for rows of zeros
    # Shorter rows than 1e-12 would not be normalised to length 1, whatever the dtype.
    limit = _EXPONENT if directions else _EXPONENTS.get(dtype or x.dtype, _EXPONENT)
    if all(bool((e.abs() <= limit).all()) for e in exponents):
        return x, y
    # Powers of two that are ordinary numbers, and so are their inverses.
    bound = 1020 if wide == torch.float64 else 124
    scaled = [
        rows * torch.pow(2.0, -e.clamp(-bound, bound).to(wide)).to(rows.dtype)[:, None]
        for rows, e in zip(both, exponents, strict=True)
    ]
    return scaled[0], scaled[1] if len(scaled) > 1 else y
