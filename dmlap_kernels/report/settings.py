"""What was run: its data, and its configuration against the defaults."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from dmlap_kernels.plurals import counted
from dmlap_kernels.report.markup import Html, element, join, table
from dmlap_kernels.report.runs import Run
from dmlap_kernels.trainer.config import TrainConfig


def render_facts(run: Run) -> Html:
    """Data, time and versions."""
    config, results = run.config, run.results
    rows: list[tuple[str, Any]] = [
        *((f"{name} split", _describe_split(part)) for name, part in results["data"].items()),
        ("steps", f"{config['steps']:,}, {results['seconds_per_step']:.4g} seconds each"),
        ("versions", ", ".join(f"{k} {v}" for k, v in results["versions"].items())),
    ]
    lines = (
        element("tr", element("th", name, scope="row"), element("td", value, class_="text"))
        for name, value in rows
    )
    return element("div", element("table", element("tbody", *lines)), class_="wide")


def _describe_split(part: dict[str, Any]) -> str:
    text = f"{counted(part['images'], 'image')} of {counted(part['classes'], 'class')}"
    seen = len(part.get("seen_in_training", ()))
    return f"{text}, {seen:,} of them also in training" if seen else text


def settings_of(run: Run) -> list[tuple[str, str, str | None]]:
    """Name, value and default of every setting; None for a default that is the value."""
    usual = TrainConfig()
    found = []
    for field in fields(TrainConfig):
        name, default = field.name, getattr(usual, field.name)
        value = run.config.get(name, default)
        found.append((name, _text(value), None if value == default else _text(default)))
    return found


def _text(value: Any) -> str:
    if value is None or value == {} or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name}={one}" for name, one in value.items())
    return str(value)


def render_settings(run: Run) -> Html:
    """Settings that differ from their defaults, and the others folded up."""
    settings = settings_of(run)
    other = [(name, value, default) for name, value, default in settings if default is not None]
    same = [(name, value) for name, value, default in settings if default is None]
    folded = element(
        "details",
        element("summary", f"{len(same)} settings at their defaults"),
        table(("setting", "value"), same),
    )
    changed = table(("setting", "value", "default"), other)
    return element("div", join((changed, folded)), class_="settings")
