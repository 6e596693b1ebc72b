"""Which family computes a loss."""

from __future__ import annotations

from dmlap_kernels.backends.device.hard import Hard
from dmlap_kernels.backends.device.terms import Family

FAMILIES: dict[str, Family] = {
    "triplet_hard": Hard(),
}
