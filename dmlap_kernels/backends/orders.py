"""What ``auto`` tries for a call, first to last: what was measured on the chip, else a rule.

Measured by ``dmlap calibrate`` on the chip itself (`cache`), or else by whoever made the package
(``order.json``). Reads data and nothing else: which backends run is the registry's business.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dmlap_kernels.backends import cache
from dmlap_kernels.backends.chips import Chip, chip_at

PATH = Path(__file__).with_name("order.json")
# The op of `nearest` and `hard_classes`, which have no loss.
SEARCH = "search"
# What `dmlap calibrate` leaves in the cache directory.
CALIBRATED = "orders.json"


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
def shipped() -> dict[str, Any]:
    """The content of ``order.json``."""
    return json.loads(PATH.read_text())


def load(device: torch.device) -> dict[str, Any]:
    """The same with what was measured on the chip of the device, which comes first."""
    table, chip = shipped(), chip_at(device)
    mine = None if chip is None else calibrated(chip)
    if mine is None:
        return table
    of_device = table.get(device.type, {**table["other"], "measured": {}})
    name = chip_of(device)
    ops = of_device["measured"].get(name, {}) | mine
    measured = of_device["measured"] | {name: ops}
    return table | {device.type: of_device | {"measured": measured}}


def calibrated(chip: Chip) -> dict[str, list[dict[str, Any]]] | None:
    """By op the entries that ``dmlap calibrate`` wrote; None where it did not, or not so."""
    content = cache.read(chip, CALIBRATED)
    if content is None:
        return None
    try:
        source = f"by dmlap calibrate on {content['when']}, {cache.path_of(chip, CALIBRATED)}"
        return {
            str(op): [_checked(entry) | {"source": source} for entry in entries]
            for op, entries in content["orders"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def fingerprint() -> str:
    """Of the calibrated orders of the CPU, whose backends leave different things for backward."""
    chip = chip_at(torch.device("cpu"))
    mine = None if chip is None else calibrated(chip)
    return "" if mine is None else hashlib.sha256(json.dumps(mine).encode()).hexdigest()[:12]


def _checked(entry: dict[str, Any]) -> dict[str, Any]:
    limits = {key: int(entry[key]) for key in ("rows", "features") if key in entry}
    if not all(isinstance(name, str) for name in entry["order"]):
        raise ValueError("an order is a list of names")
    return limits | {"order": list(entry["order"])}


def chip_of(device: torch.device) -> str:
    """The name that measured orders go by."""
    # Fake tensors are "cuda" where there is none as well.
    real = device.type == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_name(device) if real else device.type


def entries(orders: dict[str, Any], op: str, device_type: str, chip: str) -> tuple[Entry, ...]:
    """The orders of an op on a chip; the last one, the rule where need be, serves every call. What
    was not measured on the chip goes by the first chip of the kind on which it was."""
    of_device = orders.get(device_type, orders["other"])
    rule = tuple(of_device["rule"])
    by_chip = of_device["measured"]
    known = [name for name, ops in by_chip.items() if op in ops]
    source_chip = chip if chip in known or not known else known[0]
    found = []
    for one in by_chip.get(source_chip, {}).get(op, ()):
        rows, features = (one.get(key) or math.inf for key in ("rows", "features"))
        names = tuple(one["order"])
        # What was measured may refuse a call, such as one in float64.
        names += tuple(name for name in rule if name not in names)
        source = _words(source_chip, rows, features, one.get("source"))
        if source_chip != chip:
            source += f", as {op} was not on {chip}"
        found.append(Entry(rows, features, names, source))
        if rows == features == math.inf:
            return tuple(found)
    kind = device_type if device_type in orders else "other"
    source = f"the rule for {kind} devices; {op} was not measured on {chip} at this size"
    return (*found, Entry(math.inf, math.inf, rule, source))


def _words(chip: str, rows: float, features: float, by: str | None) -> str:
    limits = [
        f"up to {limit:,} {what}"
        for limit, what in ((rows, "rows"), (features, "features"))
        if limit < math.inf
    ]
    words = f"measured on {chip}" + (f" {by}" if by else "")
    return words + (f", {' of '.join(limits)}" if limits else "")
