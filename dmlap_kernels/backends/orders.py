"""What ``auto`` tries for a call, first to last: the measurements of ``order.json``, else its rule.

Reads data and nothing else: which of the backends run is the registry's business.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

PATH = Path(__file__).with_name("order.json")
# The op of `nearest` and `hard_classes`, which have no loss.
SEARCH = "search"


class Entry(NamedTuple):
    """An order for the calls that no earlier entry serves.

    Attributes:
        rows: it is for up to rows^2 pairs of an anchor and a reference, which are as many as a
            batch of so many rows has.
        features: and for rows of up to so many features.
        names: backends, first to last.
        source: where the order is from, in words.
    """

    rows: float
    features: float
    names: tuple[str, ...]
    source: str

    @property
    def pairs(self) -> float:
        return self.rows**2


@functools.cache
def load() -> dict[str, Any]:
    """The content of ``order.json``."""
    return json.loads(PATH.read_text())


def chip_of(device_type: str) -> str:
    # Fake tensors are "cuda" where there is none as well.
    real = device_type == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_name() if real else device_type


def entries(orders: dict[str, Any], op: str, device_type: str, chip: str) -> tuple[Entry, ...]:
    """The orders of an op on a chip; the last one, the rule where need be, serves every call."""
    of_device = orders.get(device_type, orders["other"])
    rule = tuple(of_device["rule"])
    measured = of_device["measured"].get(chip, {}).get(op, ())
    found = []
    for one in measured:
        rows, features = (one.get(key) or math.inf for key in ("rows", "features"))
        names = tuple(one["order"])
        # What was measured may refuse a call, such as one in float64.
        names += tuple(name for name in rule if name not in names)
        found.append(Entry(rows, features, names, _words(chip, rows, features)))
        if rows == features == math.inf:
            return tuple(found)
    kind = device_type if device_type in orders else "other"
    source = f"the rule for {kind} devices; {op} was not measured on {chip} at this size"
    return (*found, Entry(math.inf, math.inf, rule, source))


def _words(chip: str, rows: float, features: float) -> str:
    limits = [
        f"up to {limit:,} {what}"
        for limit, what in ((rows, "rows"), (features, "features"))
        if limit < math.inf
    ]
    return f"measured on {chip}" + (f", {' of '.join(limits)}" if limits else "")
