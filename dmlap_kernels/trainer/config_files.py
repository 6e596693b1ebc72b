"""Configurations in files: those of the package, and a user's own.

A file is a JSON object from names of `TrainConfig` to values, or to objects that also tell where a
value comes from: ``{"steps": 20000, "proximal_weight": {"value": 2e-4, "source": "..."}}``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from dmlap_kernels.trainer.config import TrainConfig

CONFIGS = ("cub", "cars", "sop", "inshop")


def read_config(name: str) -> dict[str, Any]:
    """The values in the package's configuration ``name``, or in the file of that path.

    Raises:
        FileNotFoundError: there is no such configuration.
        ValueError: the file is broken, or holds what `TrainConfig` does not have.
    """
    return {key: _value(entry) for key, entry in _entries(name).items()}


def sources(name: str) -> dict[str, str]:
    """Where each value of a configuration comes from, as far as its file tells."""
    found = _entries(name).items()
    return {key: str(entry["source"]) for key, entry in found if _is_sourced(entry)}


def merged(name: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The values of a configuration, overridden by those ``given``.

    Options of the loss and of the optimizer are merged one by one; those of another loss or
    optimizer than the one given are left out.
    """
    values = {} if name is None else read_config(name)
    for name_of, options in (("loss", "loss_options"), ("optimizer", "optimizer_options")):
        if name_of in given and given[name_of] != values.get(name_of):
            values.pop(options, None)
        elif options in given and options in values:
            given = {**given, options: {**values[options], **given[options]}}
    # One way to hold out classes displaces the other.
    for one, other in (("validation", "validation_fold"), ("validation_fold", "validation")):
        if one in given:
            values.pop(other, None)
    return {**values, **given}


def _entries(name: str) -> dict[str, Any]:
    if name in CONFIGS:
        file: Any = files("dmlap_kernels") / "configs" / f"{name}.json"
    else:
        file = Path(name).expanduser()
        if not file.is_file():
            raise FileNotFoundError(
                f"config must be one of {', '.join(CONFIGS)} or a JSON file, but {name} is neither"
            )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"config {name} is not a readable JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"config {name} must hold a JSON object, got {type(content).__name__}")
    _refuse_unknown(name, list(content))
    for key in ("loss_options", "optimizer_options"):
        if key in content and not isinstance(_value(content[key]), dict):
            raise ValueError(
                f"config {name} must hold an object of names and values as {key}, got "
                f"{_value(content[key])!r}"
            )
    return content


def _refuse_unknown(name: str, keys: Sequence[str]) -> None:
    known = {field.name for field in fields(TrainConfig)}
    if unknown := sorted(set(keys) - known):
        raise ValueError(f"config {name} has entries unknown to TrainConfig: {', '.join(unknown)}")


def _is_sourced(entry: Any) -> bool:
    return isinstance(entry, dict) and set(entry) == {"value", "source"}


def _value(entry: Any) -> Any:
    return entry["value"] if _is_sourced(entry) else entry
